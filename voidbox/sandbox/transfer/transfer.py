"""Files and folders between host and guest: `files.upload()` and `files.download()`.

A folder's small files go in batches: all requests of a batch are under way at once, and the disk
is one call to a thread. Big files go in pieces; see pieces.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from voidbox.agent import protocol
from voidbox.agent.aio import AsyncCall
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Data
from voidbox.errors import AgentError, HostError
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import pieces
from voidbox.sandbox.transfer.host_tree import HostFolder
from voidbox.sandbox.transfer.pieces import ConnectionLost, again
from voidbox.sandbox.transfer.trees import (
    ENTRIES_MAX,
    SMALL_BYTES,
    Entry,
    Tree,
    make_folders,
    open_source,
    read_all,
    scan,
    sort_listed,
    write_all,
)

_logger = logging.getLogger("voidbox")

_BATCH_FILES, _BATCH_BYTES = 32, 2 << 20
_WORKERS = 4
_DEPTH = 100_000

T = TypeVar("T")

# Called with the bytes done so far, and all that there are.
Progress = Callable[[int, int], object]


class TransferResult(NamedTuple):
    """What was copied.

    Attributes:
        files: how many.
        bytes: in them.
        skipped: what was not copied, each with the reason: links that lead outside, sockets.
        seconds: how long it took.
        carrier: what it went over: "vsock" or "serial".
    """

    files: int
    bytes: int
    skipped: tuple[str, ...]
    seconds: float
    carrier: str


class Transfer:
    """One upload or download, and what is told about it."""

    def __init__(
        self,
        session: Session,
        what: str,
        user: str | None,
        progress: Progress | None,
        limit_s: float,
    ) -> None:
        self._session = session
        self._agent = session.agent
        self._what = what
        self._user = user
        self._progress = progress
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._done_bytes = self._total_bytes = 0
        self._files = 0
        self.skipped: list[str] = []

    def _values(self, path: str, **others: object) -> dict[str, Any]:
        return self._session.values(self._user, path=path, **others)

    def _begin(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._on_bytes(0)

    def _on_bytes(self, count: int) -> None:
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, max(self._total_bytes, self._done_bytes))

    def _end(self) -> TransferResult:
        seconds = time.monotonic() - self._started
        carrier = self._agent.carrier
        result = TransferResult(
            self._files, self._done_bytes, tuple(self.skipped), seconds, carrier
        )
        for line in self.skipped:
            _logger.info("%s: %s: left out", self._session.name, line)
        _logger.info(
            "%s: %s: %d files, %d bytes in %.2f s via %s",
            self._session.name, self._what, *result[:2], seconds, carrier,
        )  # fmt: skip
        return result

    # To the guest.

    async def upload_file(self, source: str, path: str) -> TransferResult:
        """Copy a file of the host."""
        file = await asyncio.to_thread(open_source, source)
        with file:
            status = os.fstat(file.fileno())
            self._begin(status.st_size)
            values = self._values(
                path, mode=stat.S_IMODE(status.st_mode) & 0o777, mtime_ns=status.st_mtime_ns
            )
            await pieces.send(
                self._session, values, file, limit_s=self._limit_s, on_bytes=self._on_bytes
            )
        self._files = 1
        return self._end()

    async def upload_folder(self, source: str, path: str) -> TransferResult:
        """Copy a folder of the host into one of the guest, which may exist."""
        tree = await asyncio.to_thread(scan, source)
        self.skipped += tree.skipped
        self._begin(sum(entry.size for entry in tree.files))
        root = Entry((), 0, stat.S_IMODE(os.stat(source).st_mode), 0)
        await self._make_folders(path, [root, *tree.folders])
        await self._share(
            tree.files,
            partial(self._upload_batch, source, path),
            partial(self._upload_one, source, path),
        )
        await self._make_links(path, tree.links)
        return self._end()

    async def _make_folders(self, path: str, folders: Sequence[Entry]) -> None:
        for batch in _cut(folders):
            requests = [
                (
                    protocol.FILE_MKDIR,
                    self._values(_join(path, entry.parts), mode=entry.mode & 0o777 | 0o700),
                )
                for entry in batch
            ]
            await self._together(requests)

    async def _make_links(self, path: str, links: list[tuple[tuple[str, ...], str]]) -> None:
        link = await self._agent.link(self._limit_s)
        if links and protocol.CAN_LINK not in link.capabilities:
            self.skipped += (
                f"{'/'.join(parts)}: the guest's agent is too old" for parts, _ in links
            )
            return
        for batch in _cut(links):
            await self._together(
                [
                    (protocol.FILE_LINK, self._values(_join(path, parts), target=target))
                    for parts, target in batch
                ]
            )

    async def _together(self, requests: list[tuple[int, dict[str, Any]]]) -> None:
        """Make requests that are answered at once and may be made twice."""

        async def attempt() -> None:
            with _Calls() as calls:
                for type, values in requests:
                    call = await self._agent.call(type, values, values["path"], self._limit_s)
                    calls.append(call)
                for call in calls:
                    try:
                        await call.result(self._limit_s)
                    except AgentError as error:
                        raise ConnectionLost(error) if call.is_lost else error from None

        await again(self._agent, attempt, self._limit_s)

    async def _upload_one(self, source: str, path: str, entry: Entry) -> None:
        file = await asyncio.to_thread(open_source, "/".join((source, *entry.parts)), False)
        with file:
            values = self._values(
                _join(path, entry.parts), mode=entry.mode & 0o777, mtime_ns=entry.mtime_ns
            )
            await pieces.send(
                self._session, values, file, limit_s=self._limit_s, on_bytes=self._on_bytes
            )
        self._files += 1

    async def _upload_batch(self, source: str, path: str, batch: Sequence[Entry]) -> None:
        contents = await asyncio.to_thread(read_all, source, batch)

        async def attempt() -> None:
            with _Calls() as calls:
                for entry, (data, checksum) in zip(batch, contents, strict=True):
                    target = _join(path, entry.parts)
                    values = self._values(
                        target, mode=entry.mode & 0o777, mtime_ns=entry.mtime_ns, parents=False
                    )
                    call = await self._agent.call(
                        protocol.FILE_WRITE, values, f"write {target}", self._limit_s
                    )
                    calls.append(call)
                    await call.write(data, self._limit_s)
                    call.end_input({"checksum": checksum})
                for call in calls:
                    await pieces.finish_write(call, self._limit_s)

        await again(self._agent, attempt, self._limit_s)
        self._files += len(batch)
        self._on_bytes(sum(len(data) for data, _ in contents))

    # From the guest.

    async def download_file(self, path: str, size: int, target: str) -> TransferResult:
        """Copy a file of the guest, as long as it was said to be."""
        self._begin(size)
        target = os.path.realpath(target)  # of the user's own links
        folder, _, name = target.rpartition("/")
        with HostFolder(folder or "/") as host:
            await self._download_one(path, host, Entry((name,), size, 0o666, 0))
        return self._end()

    async def _download_one(self, path: str, host: HostFolder, entry: Entry) -> None:
        with host.new_file(entry.parts, entry.mode) as file:
            info = await pieces.receive(
                self._session,
                self._values(path),
                file,
                size=entry.size,
                limit_s=self._limit_s,
                bytes_max=entry.size,
                on_bytes=self._on_bytes,
            )
            try:
                await asyncio.to_thread(file.commit, info.mode, info.mtime_ns)
            except OSError as error:
                raise HostError(
                    f"cannot write {file.name}: {error.strerror}", error.errno or 0
                ) from error
        self._files += 1

    async def download_folder(self, path: str, target: str) -> TransferResult:
        """Copy a folder of the guest into one of the host, which may exist."""
        tree = await self._list(path)
        self.skipped += tree.skipped
        self._begin(sum(entry.size for entry in tree.files))
        host = await asyncio.to_thread(HostFolder, target)
        with host:
            await asyncio.to_thread(make_folders, host, tree.folders)

            async def one(entry: Entry) -> None:
                await self._download_one(_join(path, entry.parts), host, entry)

            await self._share(tree.files, partial(self._download_batch, path, host), one)
            for parts, link_target in tree.links:
                host.link(parts, link_target)
        return self._end()

    async def download_some(
        self, path: str, host: HostFolder, files: Sequence[Entry]
    ) -> TransferResult:
        """Copy some files of a folder of the guest, by their names in it."""
        self._begin(sum(entry.size for entry in files))

        async def one(entry: Entry) -> None:
            await self._download_one(_join(path, entry.parts), host, entry)

        await self._share(files, partial(self._download_batch, path, host), one)
        return self._end()

    async def _list(self, path: str) -> Tree:
        tree = Tree([], [], [], [])
        count = 0
        values = self._values(path, depth=_DEPTH)
        call = await self._agent.call(protocol.FILE_LIST, values, f"list {path}", self._limit_s)
        with call:
            while events := await call.batch(self._limit_s):
                for event in events:
                    entries = None if isinstance(event, Data) else event.values.get("entries")
                    if not isinstance(entries, list):
                        raise AgentError("the guest's agent gave no list of entries")
                    count += len(entries)
                    if count > ENTRIES_MAX:
                        raise AgentError(f"{path}: more than {ENTRIES_MAX} files")
                    for item in entries:
                        sort_listed(item, tree)
        return tree

    async def _download_batch(self, path: str, host: HostFolder, batch: Sequence[Entry]) -> None:
        removed: list[str] = []

        async def attempt() -> list[tuple[Entry, bytes]]:
            removed.clear()
            found = []
            with _Calls() as calls:
                requests = [
                    self._values(_join(path, entry.parts), length=entry.size) for entry in batch
                ]
                for values in requests:
                    what = f"read {values['path']}"
                    call = await self._agent.call(protocol.FILE_READ, values, what, self._limit_s)
                    calls.append(call)
                for entry, values, call in zip(batch, requests, calls, strict=True):
                    try:
                        data = await pieces.finish_read(call, values, self._limit_s)
                    except RequestFailed as error:
                        if error.code != "ENOENT":
                            raise
                        removed.append(f"{'/'.join(entry.parts)}: it was removed meanwhile")
                    else:
                        found.append((entry, data[0]))
            return found

        found = await again(self._agent, attempt, self._limit_s)
        self.skipped += removed
        await asyncio.to_thread(write_all, host, found)
        self._files += len(found)
        self._on_bytes(sum(len(data) for _, data in found))

    async def _share(
        self,
        files: Sequence[Entry],
        do_batch: Callable[[Sequence[Entry]], Awaitable[None]],
        do_one: Callable[[Entry], Awaitable[None]],
    ) -> None:
        """Have a few coroutines do all files, the small ones in batches."""
        small = [entry for entry in files if entry.size <= SMALL_BYTES]
        work: list[Callable[[], Awaitable[None]]] = [
            partial(do_batch, batch) for batch in _cut(small)
        ]
        work += [partial(do_one, entry) for entry in files if entry.size > SMALL_BYTES]
        waiting = iter(work)

        async def worker() -> None:
            for action in waiting:
                await action()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_WORKERS, len(work))):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Calls(list[AsyncCall]):
    """Requests under way together; as a context manager it cancels those that have not ended."""

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self:
            if not call.is_over:
                call.cancel()


def _cut(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut into batches of so many, and of so many bytes if they are files."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = item.size if isinstance(item, Entry) else 0
        if batch and (len(batch) == _BATCH_FILES or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _join(path: str, parts: tuple[str, ...]) -> str:
    return "/".join((path.rstrip("/") if parts else path, *parts))
