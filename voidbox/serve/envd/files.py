"""/files: what is in files, up and down, never held as a whole."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.errors import AgentError
from voidbox.sandbox.transfer.pieces import finish_write
from voidbox.serve.envd import access
from voidbox.serve.envd.entries import METADATA
from voidbox.serve.envd.multipart import Begin, End, MultipartError, MultipartParser, boundary_of
from voidbox.serve.envd.users import GuestUser
from voidbox.serve.errors import ApiError, bad
from voidbox.serve.served import Served

PIECE_BYTES = 1 << 20
_ENDLESS_BYTES_MAX = 16 << 20  # of a file that says it has none, as those of /proc do
_REQUEST_S = 60.0
_FILES_MAX = 1000  # of one upload
_UNZIP_BYTES = 1 << 20
_METADATA_HEADER = "x-metadata-"
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,100}")
_METADATA_BYTES_MAX = 4096
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_STATUS_OF = {"ENOENT": 404, "EISDIR": 400, "ENOTDIR": 400, "ENOSPC": 507, "EDQUOT": 507}


async def _user(served: Served, request: Request) -> GuestUser:
    name = request.query_params.get("username") or access.user_name(request)
    return await served.users.find(name)


def _as_api_error(error: RequestFailed) -> ApiError:
    if error.code in ("EOPNOTSUPP", "ENOTSUP"):  # two names of one number: which is the agent's
        return bad(f"{error}: the file system there keeps no metadata")
    status = _STATUS_OF.get(error.code, 403 if error.code in ("EACCES", "EPERM") else 400)
    return ApiError(status, str(error))


# Down.


async def download(served: Served, request: Request) -> Response:
    """Send a file."""
    user = await _user(served, request)
    path = user.path(request.query_params.get("path", ""))
    try:
        info = await served.files.stat(path, user=str(user.uid))
        if info.type == "folder":
            raise bad(f"path '{path}' is a directory")
        if info.type != "file":
            raise bad(f"path '{path}' is not a regular file")
        if not info.size:
            return await _send_endless(served, user, path)
        begin, end = _range(request, info.size)
        first = await _part(served, user, path, begin, min(PIECE_BYTES, end - begin))
    except RequestFailed as error:
        raise _as_api_error(error) from error
    headers = {**_headers(path), "Content-Length": str(end - begin)}
    is_part = (begin, end) != (0, info.size)
    if is_part:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{info.size}"
    if end - begin <= len(first):
        return Response(first, 206 if is_part else 200, headers)
    body = _pieces(served, user, path, begin, end, first)
    return StreamingResponse(body, 206 if is_part else 200, headers)


def _headers(path: str) -> dict[str, str]:
    name = posixpath.basename(path).encode("ascii", "replace").decode()
    name = re.sub(r'["\\\x00-\x1f]', "_", name)
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'inline; filename="{name}"',
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }


def _range(request: Request, size: int) -> tuple[int, int]:
    """Return which bytes are wanted: from, and up to but not including. RFC 9110 §14."""
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or not (found[1] or found[2]):
        return 0, size
    if not found[1]:
        return max(0, size - int(found[2])), size
    begin, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if begin >= size or end <= begin:
        raise ApiError(416, "no such part of the file", {"Content-Range": f"bytes */{size}"})
    return begin, min(end, size)


async def _send_endless(served: Served, user: GuestUser, path: str) -> Response:
    """Send a file that is empty, or one of the kernel's, which does not know its length."""
    data = await _part(served, user, path, 0, _ENDLESS_BYTES_MAX)
    return Response(data, 200, _headers(path))


async def _part(served: Served, user: GuestUser, path: str, offset: int, length: int) -> bytes:
    return await served.files.read_part(
        path, offset, length, user=str(user.uid), request_timeout=_REQUEST_S
    )


async def _pieces(
    served: Served, user: GuestUser, path: str, begin: int, end: int, first: bytes
) -> AsyncIterator[bytes]:
    """Yield a part of a file; while one piece is sent the next is fetched.

    A file that has become shorter breaks the answer off: its length was promised.
    """
    piece, offset = first, begin + len(first)
    while piece:
        following = None
        if offset < end:
            length = min(PIECE_BYTES, end - offset)
            following = asyncio.create_task(_part(served, user, path, offset, length))
        try:
            yield piece
        except BaseException:
            if following is not None:
                following.cancel()
            raise
        if following is None:
            return
        piece = await following
        offset += len(piece)


# Up.


class _Upload:
    """A file on its way into the guest. It gets its name when all of it is there."""

    def __init__(self, call: AsyncCall, path: str) -> None:
        self.path = path
        self._call = call
        self._checksum = hashlib.blake2b(digest_size=protocol.CHECKSUM_BYTES)

    @classmethod
    async def begin(
        cls, served: Served, user: GuestUser, path: str, metadata: dict[str, str]
    ) -> _Upload:
        values: dict[str, Any] = {"path": path, "user": str(user.uid)}
        if metadata:
            values["attributes"] = {METADATA + name: text for name, text in metadata.items()}
        agent = served.session.agent
        call = await agent.call(protocol.FILE_WRITE, values, f"write {path}", _REQUEST_S)
        return cls(call, path)

    async def write(self, data: bytes) -> None:
        if self._call.is_over:  # it has failed, and says why
            await self._call.result(_REQUEST_S)
            raise AgentError(f"{self.path}: the guest's agent ended the file early")
        self._checksum.update(data)
        view = memoryview(data)
        for start in range(0, len(view), protocol.CHUNK_BYTES):
            await self._call.write(view[start : start + protocol.CHUNK_BYTES], _REQUEST_S)

    async def finish(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Give the file its name; return what the client is told of it."""
        self._call.end_input({"checksum": self._checksum.digest()})
        await finish_write(self._call, self.path, _REQUEST_S)
        entry = {"path": self.path, "name": posixpath.basename(self.path), "type": "file"}
        return {**entry, "metadata": metadata} if metadata else entry

    def give_up(self) -> None:
        if not self._call.is_over:
            self._call.cancel()


async def upload(served: Served, request: Request) -> Response:
    """Take files: one as the body itself, or any number as parts of a form."""
    user = await _user(served, request)
    metadata = _metadata(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            written = await _take_form(served, user, request, metadata)
        elif kind == "application/octet-stream":
            written = [await _take_body(served, user, request, metadata)]
        else:
            raise ApiError(415, "send multipart/form-data or application/octet-stream")
    except RequestFailed as error:
        raise _as_api_error(error) from error
    except MultipartError as error:
        raise bad(f"error parsing multipart form: {error}") from error
    except ClientDisconnect:
        raise bad("the body ended early") from None
    return JSONResponse(written)


def _metadata(request: Request) -> dict[str, str]:
    """Return what is to be kept with the files.

    Raises:
        ApiError: a name or a value cannot be kept.
    """
    found = {
        name.removeprefix(_METADATA_HEADER): value
        for name, value in request.headers.items()
        if name.startswith(_METADATA_HEADER)
    }
    for name, value in found.items():
        if not _METADATA_NAME.fullmatch(name) or not value.isprintable():
            raise bad(f"metadata {name!r}: names are letters, digits, '_', '.', '-'; values text")
    if sum(len(name) + len(value) for name, value in found.items()) > _METADATA_BYTES_MAX:
        raise bad(f"metadata of more than {_METADATA_BYTES_MAX} bytes")
    return found


async def _take_body(
    served: Served, user: GuestUser, request: Request, metadata: dict[str, str]
) -> dict[str, Any]:
    path = request.query_params.get("path")
    if not path:
        raise bad("give the file's path as the parameter path")
    file = await _Upload.begin(served, user, user.path(path), metadata)
    try:
        async for data in _decoded(request):
            await file.write(data)
        return await file.finish(metadata)
    finally:
        file.give_up()


async def _decoded(request: Request) -> AsyncIterator[bytes]:
    """Yield a body's bytes, unpacked if it is gzip."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise ApiError(415, f"Content-Encoding {encoding!r}: send gzip, or none")
    if encoding == "identity":
        async for chunk in request.stream():
            yield chunk
        return
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        async for chunk in request.stream():
            while chunk:
                yield unzip.decompress(chunk, _UNZIP_BYTES)
                chunk = unzip.unconsumed_tail
        yield unzip.flush()
    except zlib.error as error:
        raise bad(f"the body is no gzip: {error}") from None
    if not unzip.eof:
        raise bad("the body's gzip ended early")


async def _take_form(
    served: Served, user: GuestUser, request: Request, metadata: dict[str, str]
) -> list[dict[str, Any]]:
    parser = MultipartParser(boundary_of(request.headers.get("content-type", "")))
    path = request.query_params.get("path")
    written: list[dict[str, Any]] = []
    file: _Upload | None = None
    try:
        async for chunk in _decoded(request):
            for event in parser.feed(chunk):
                if isinstance(event, Begin):
                    if event.name != "file":
                        continue
                    if len(written) >= _FILES_MAX or (path and written):
                        raise bad("too many files" if not path else "one path, and several files")
                    name = path or event.filename
                    if not name:
                        raise bad("a file without a path")
                    file = await _Upload.begin(served, user, user.path(name), metadata)
                elif file is None:
                    continue  # another part than a file
                elif isinstance(event, End):
                    written.append(await file.finish(metadata))
                    file = None
                else:
                    await file.write(event)
    finally:
        if file is not None:
            file.give_up()
    if not parser.is_over:
        raise bad("error parsing multipart form: it ended early")
    return written
