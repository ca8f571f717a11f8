"""Files in a sandbox: `sandbox.files`."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from typing import Any, BinaryIO, Literal, overload

from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.errors import ConfigError
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import pieces
from voidbox.sandbox.transfer.again import again
from voidbox.sandbox.transfer.download import Download
from voidbox.sandbox.transfer.listing import FileInfo, describe, info_of, numbers_of, read_list
from voidbox.sandbox.transfer.steady import steady
from voidbox.sandbox.transfer.telling import Progress
from voidbox.sandbox.transfer.transfer import TransferResult
from voidbox.sandbox.transfer.trees import Entry
from voidbox.sandbox.transfer.upload import Upload
from voidbox.sandbox.workspace.watching import SharedFolderWatch
from voidbox.sdk.watch import AsyncWatch, OnEvent, SharedCall

READ_BYTES_MAX = 1 << 30  # into memory: a hostile file must not fill it
_OFFSET_MAX = (1 << 63) - 1  # loff_t

Path = str | os.PathLike[str]


class AsyncFiles:
    """Reads, writes and watches files of a sandbox.

    Relative paths begin in the sandbox's workdir, /workspace by default. Everything is done as
    `user`, the sandbox's by default. `request_timeout` limits each request, and in long ones the
    time without a sign of life.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    # Contents.

    @overload
    async def read(
        self,
        path: str,
        format: Literal["text"] = "text",
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str: ...

    @overload
    async def read(
        self,
        path: str,
        format: Literal["bytes"],
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> bytes: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes"] = "text",
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str | bytes:
        """Return what is in a file of at most 1 GiB.

        Args:
            format: "text" for a str, in which U+FFFD stands for what is no UTF-8, or "bytes".
        Raises:
            RequestFailed: it cannot be read; its `code` is "ENOENT", say.
        """
        if format not in ("text", "bytes"):
            raise ConfigError(f'format={format!r}: give "text" or "bytes"')
        values, limit_s = self._values(path, user), self._session.limit_s(request_timeout)

        async def attempt(takes_growth: bool) -> bytes:
            output = io.BytesIO()
            await pieces.receive(
                self._session,
                values,
                output,
                limit_s=limit_s,
                bytes_max=READ_BYTES_MAX,
                takes_growth=takes_growth,
            )
            return output.getvalue()

        data = await steady(attempt)
        return data.decode("utf-8", "replace") if format == "text" else data

    async def read_part(
        self,
        path: str,
        offset: int,
        length: int,
        *,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> bytes:
        """Return `length` bytes of a file from `offset` on, or fewer where it ends.

        Raises:
            RequestFailed: it cannot be read.
        """
        if not (0 <= offset <= _OFFSET_MAX and 0 <= length <= READ_BYTES_MAX):
            raise ConfigError(f"offset={offset}, length={length}: there is no such part of a file")
        values = self._values(path, user, offset=offset, length=length)
        limit_s = self._session.limit_s(request_timeout)
        return await pieces.receive_part(self._session.agent, values, limit_s)

    async def write(
        self,
        path: str,
        data: str | bytes | BinaryIO,
        *,
        mode: int | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> int:
        """Write a file, whole or not at all; return its size. Folders above it are made.

        Args:
            data: text, bytes, or an open binary file.
            mode: its permissions; an existing file's, or 0644, by default.
        Raises:
            RequestFailed: it cannot be written.
        """
        source: Any = data
        if isinstance(data, str | bytes | bytearray | memoryview):
            source = io.BytesIO(data.encode() if isinstance(data, str) else data)
        elif not hasattr(data, "read"):
            raise ConfigError(f"cannot write {type(data).__name__}: give str, bytes or a file")
        values = self._values(path, user, mode=mode)
        limit_s = self._session.limit_s(request_timeout)
        return await pieces.send(self._session, values, source, limit_s=limit_s)

    # Names.

    async def list(
        self,
        path: str = ".",
        *,
        depth: int = 1,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> list[FileInfo]:
        """List a folder, with `depth` above 1 also the folders in it.

        What cannot be read is listed too; see FileInfo.error.
        """
        values = self._values(path, user, depth=depth)
        limit_s = self._session.limit_s(request_timeout)

        async def attempt() -> list[FileInfo]:
            found: list[FileInfo] = []
            await read_list(
                self._session.agent,
                values,
                limit_s,
                lambda item: found.append(info_of(item, values["path"])),
            )
            return found

        return await again(self._session.agent, attempt, limit_s)

    async def stat(
        self,
        path: str,
        *,
        follow: bool = True,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> FileInfo:
        """Describe a file; with follow=False a link itself rather than what it leads to."""
        values = self._values(path, user, follow=follow)
        item = await describe(self._session.agent, values, self._session.limit_s(request_timeout))
        return info_of(item, values["path"].rpartition("/")[0])

    async def exists(
        self, path: str, *, user: str | None = None, request_timeout: float | None = None
    ) -> bool:
        """Whether there is such a file or folder, as far as `user` can see."""
        try:
            await self.stat(path, user=user, request_timeout=request_timeout)
        except RequestFailed as error:
            if error.code in ("ENOENT", "ENOTDIR"):
                return False
            raise
        return True

    async def make_dir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> bool:
        """Make a folder, and those above it; False if it exists."""
        values = self._values(path, user, mode=mode)
        answer = await self._request(protocol.FILE_MKDIR, values, "make", request_timeout)
        return answer.get("created") is True

    async def remove(
        self,
        path: str,
        *,
        recursive: bool = False,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> None:
        """Remove a file or an empty folder; with `recursive` a folder with all that is in it."""
        values = self._values(path, user, recursive=recursive)
        limit_s = self._session.limit_s(request_timeout)
        what = f"remove {path}"
        with await self._session.agent.call(protocol.FILE_REMOVE, values, what, limit_s) as call:
            while await call.next(limit_s) is not None:
                pass  # an event now and then: it goes on

    async def rename(
        self, old: str, new: str, *, user: str | None = None, request_timeout: float | None = None
    ) -> None:
        """Rename a file or folder, replacing a file of the new name."""
        values = self._values(old, user, to=self._session.path(new))
        await self._request(protocol.FILE_RENAME, values, "rename", request_timeout)

    # Watching.

    async def watch_dir(
        self,
        path: str = ".",
        on_event: OnEvent | None = None,
        *,
        recursive: bool = False,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> AsyncWatch:
        """Watch a folder; what happens after this returns is told.

        Iterate over what it returns, or give `on_event`, a function or coroutine function. In a
        workspace that is shared live what the host changes is told too; but not to who watches a
        folder above it.

        Raises:
            RequestFailed: there is no such folder, or `user` may not read it.
            ConfigError: it is in a live workspace, and the host cannot watch it.
        """
        values = self._values(path, user, recursive=recursive)
        limit_s = self._session.limit_s(request_timeout)
        call = await self._session.agent.call(protocol.FILE_WATCH, values, f"watch {path}", limit_s)
        try:
            await call.next(limit_s)  # it watches
            shared = self._session.shared_parts(values["path"])
            if shared is None:
                return AsyncWatch(call, path, on_event)
            folder = await asyncio.to_thread(SharedFolderWatch, *shared, recursive)
            return AsyncWatch(SharedCall(call, folder), path, on_event)
        except BaseException:
            call.cancel()
            raise

    # Transfers.

    async def upload(
        self,
        source: Path,
        path: str,
        *,
        progress: Progress | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> TransferResult:
        """Copy a file or a folder of the host to `path` in the guest.

        Files get their names when they are whole; permissions, times and links go along. A folder
        that exists keeps what else is in it, and its own permissions; one that is made may be
        entered and changed by its owner in any case. A lost connection is made again, and the
        transfer goes on.

        Args:
            path: what it is called there; with a slash at the end, the folder it goes into.
            progress: called with the bytes done, and all that there are; may be a coroutine
                function.
        Raises:
            ConfigError: the source cannot be read.
            RequestFailed: the guest cannot write it.
        """
        name = os.path.abspath(os.fspath(source))
        if path.endswith("/"):
            path += os.path.basename(name)
        limit_s = self._session.limit_s(request_timeout)
        upload = Upload(self._session, f"upload {name} to {path}", user, progress, limit_s)
        try:
            is_folder = stat.S_ISDIR((await asyncio.to_thread(os.stat, name)).st_mode)
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from error
        copy = upload.folder if is_folder else upload.file
        return await upload.run(copy(name, self._session.path(path)))

    async def download(
        self,
        path: str,
        target: Path,
        *,
        progress: Progress | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> TransferResult:
        """Copy a file or a folder of the guest to `target` on the host.

        As upload(); but the guest is not trusted: nothing is written outside `target`, links that
        lead out of the folder are left out (see TransferResult.skipped), and set-user-id bits too.
        So is what cannot be read in a folder. A file that changes while it is read is read again;
        one that grows all the time, as a log does, is copied as long as it was.

        Args:
            target: what it is called here; with a slash at the end, the folder it goes into.
            progress: called with the bytes done, and all that there are; may be a coroutine
                function.
        Raises:
            ConfigError, HostError: it cannot be written here.
            RequestFailed: it cannot be read there.
        """
        name = os.fspath(target)
        source = self._session.path(path)
        if name.endswith("/"):
            last = os.path.basename(source.rstrip("/"))
            if last in ("", ".", ".."):
                raise ConfigError(f"{path}: say what it is to be called in {name}")
            name += last
        name = os.path.abspath(name)
        limit_s = self._session.limit_s(request_timeout)
        download = Download(self._session, f"download {path} to {name}", user, progress, limit_s)
        item = await describe(self._session.agent, self._values(path, user), limit_s)
        size, mode, mtime_ns = numbers_of(item, "size", "mode", "mtime_ns")
        if item.get("type") == "folder":
            root = Entry((), 0, mode, mtime_ns)
            return await download.run(download.folder(source, root, name))
        if await asyncio.to_thread(os.path.isdir, name):
            raise ConfigError(f"{name} is a folder: write {name}/ to copy into it")
        return await download.run(download.file(source, size, name))

    # Common to these.

    def _values(self, path: str, user: str | None, **others: object) -> dict[str, Any]:
        return self._session.values(user, path=self._session.path(path), **others)

    async def _request(
        self, type: int, values: dict[str, Any], what: str, request_timeout: float | None
    ) -> dict[str, Any]:
        limit_s = self._session.limit_s(request_timeout)
        return await self._session.agent.request(type, values, f"{what} {values['path']}", limit_s)
