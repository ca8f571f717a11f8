"""Files in a sandbox: `sandbox.files`."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, overload

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data, printable
from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import pieces
from voidbox.sandbox.transfer.pieces import FileInfo
from voidbox.sandbox.transfer.transfer import Progress, Transfer, TransferResult
from voidbox.sandbox.transfer.trees import ENTRIES_MAX

READ_BYTES_MAX = 1 << 30  # into memory: a hostile file must not fill it

Path = str | os.PathLike[str]


class FileEvent(NamedTuple):
    """Something that happened in a watched folder.

    Attributes:
        kind: "create", "write", "chmod", "remove", "rename" (to another name, which comes as
            "create"), or "overflow": some were lost.
        name: relative to the folder.
        is_folder: whether it is about a folder.
    """

    kind: str
    name: str
    is_folder: bool


OnEvent: TypeAlias = Callable[[FileEvent], object] | Callable[[FileEvent], Awaitable[object]]


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
        output = io.BytesIO()
        await pieces.receive(
            self._session,
            self._values(path, user),
            output,
            size=None,
            limit_s=self._session.limit_s(request_timeout),
            bytes_max=READ_BYTES_MAX,
        )
        data = output.getvalue()
        return data.decode("utf-8", "replace") if format == "text" else data

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
        """List a folder, with `depth` above 1 also the folders in it."""
        values = self._values(path, user, depth=depth)
        limit_s = self._session.limit_s(request_timeout)
        found: list[FileInfo] = []
        call = await self._session.agent.call(protocol.FILE_LIST, values, f"list {path}", limit_s)
        with call:
            while (event := await call.next(limit_s)) is not None:
                entries = None if isinstance(event, Data) else event.values.get("entries")
                if not isinstance(entries, list):
                    raise AgentError("the guest's agent gave no list of entries")
                found += (_info(item, values["path"]) for item in entries)
                if len(found) > ENTRIES_MAX:
                    raise AgentError(f"{path}: more than {ENTRIES_MAX} files")
        return found

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
        answer = await self._request(protocol.FILE_STAT, values, "stat", request_timeout)
        return _info(answer, values["path"].rpartition("/")[0])

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

        Iterate over what it returns, or give `on_event`, a function or coroutine function.
        """
        values = self._values(path, user, recursive=recursive)
        limit_s = self._session.limit_s(request_timeout)
        call = await self._session.agent.call(protocol.FILE_WATCH, values, f"watch {path}", limit_s)
        try:
            await call.next(limit_s)  # it watches
        except BaseException:
            call.cancel()
            raise
        return AsyncWatch(call, on_event)

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
        that exists keeps what else is in it. A lost connection is made again, and the transfer
        goes on.

        Args:
            path: what it is called there; with a slash at the end, the folder it goes into.
            progress: called with the bytes done, and all that there are.
        Raises:
            ConfigError: the source cannot be read.
            RequestFailed: the guest cannot write it.
        """
        name = os.path.abspath(os.fspath(source))
        if path.endswith("/"):
            path += os.path.basename(name)
        transfer = self._transfer(f"upload {name} to {path}", user, progress, request_timeout)
        try:
            is_folder = stat.S_ISDIR((await asyncio.to_thread(os.stat, name)).st_mode)
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from error
        if is_folder:
            return await transfer.upload_folder(name, self._session.path(path))
        return await transfer.upload_file(name, self._session.path(path))

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

        Args:
            target: what it is called here; with a slash at the end, the folder it goes into.
            progress: called with the bytes done, and all that there are.
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
        transfer = self._transfer(f"download {path} to {name}", user, progress, request_timeout)
        info = await self.stat(path, user=user, request_timeout=request_timeout)
        if info.is_folder:
            return await transfer.download_folder(source, name)
        if await asyncio.to_thread(os.path.isdir, name):
            raise ConfigError(f"{name} is a folder: write {name}/ to copy into it")
        return await transfer.download_file(source, info.size, name)

    # Common to these.

    def _values(self, path: str, user: str | None, **others: object) -> dict[str, Any]:
        return self._session.values(user, path=self._session.path(path), **others)

    async def _request(
        self, type: int, values: dict[str, Any], what: str, request_timeout: float | None
    ) -> dict[str, Any]:
        limit_s = self._session.limit_s(request_timeout)
        return await self._session.agent.request(type, values, f"{what} {values['path']}", limit_s)

    def _transfer(
        self,
        what: str,
        user: str | None,
        progress: Progress | None,
        request_timeout: float | None,
    ) -> Transfer:
        limit_s = self._session.limit_s(request_timeout)
        return Transfer(self._session, what, user, progress, limit_s)


class AsyncWatch:
    """What happens in a folder: iterate over it, until close() or the folder's end."""

    def __init__(self, call: AsyncCall, on_event: OnEvent | None = None) -> None:
        self._call = call
        self._task = asyncio.create_task(self._tell(on_event)) if on_event is not None else None

    async def _tell(self, on_event: OnEvent) -> None:
        async for event in self:
            answer = on_event(event)
            if inspect.isawaitable(answer):
                await answer

    async def next(self, timeout: float | None = None) -> FileEvent | None:
        """Return the next event; None when the folder is gone, or after close().

        Raises:
            SandboxTimeout: nothing happened for so long.
        """
        try:
            event = await self._call.next(timeout)
        except RequestFailed as error:
            if error.code == protocol.CANCELLED:
                return None
            raise
        if event is None or isinstance(event, Data):
            return None
        values = event.values
        name = str(values.get("name", ""))
        return FileEvent(str(values.get("kind")), name, values.get("is_folder") is True)

    async def __aiter__(self) -> AsyncIterator[FileEvent]:
        while (event := await self.next()) is not None:
            yield event

    async def close(self) -> None:
        """Watch no longer. Idempotent."""
        if not self._call.is_over:
            self._call.cancel()
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _info(item: object, folder: str) -> FileInfo:
    """Return what the guest says of a file.

    Raises:
        AgentError: it says nothing of sense.
    """
    values = item if isinstance(item, dict) else {}
    name, kind = values.get("name"), values.get("type")
    numbers = [values.get(key) for key in ("size", "mode", "uid", "gid", "mtime_ns")]
    if (
        not isinstance(name, str)
        or not isinstance(kind, str)
        or not all(isinstance(number, int) for number in numbers)
    ):
        raise AgentError("the guest's agent described a file without sense")
    size, mode, uid, gid, mtime_ns = (int(number) for number in numbers if number is not None)
    target = str(values.get("target", ""))
    path = f"{folder.rstrip('/')}/{name}"
    return FileInfo(name, path, printable(kind), size, mode, uid, gid, mtime_ns / 1e9, target)
