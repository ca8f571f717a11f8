"""From the guest: `files.download()`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import printable
from voidbox.errors import HostError
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import pieces, threads
from voidbox.sandbox.transfer.again import again
from voidbox.sandbox.transfer.host_tree import HostFolder
from voidbox.sandbox.transfer.listing import read_list
from voidbox.sandbox.transfer.steady import ReadInfo, steady
from voidbox.sandbox.transfer.telling import Progress
from voidbox.sandbox.transfer.transfer import Calls, Transfer, join
from voidbox.sandbox.transfer.trees import (
    SMALL_BYTES,
    Entry,
    Tree,
    finish_folders,
    make_folders,
    sort_listed,
    write_all,
)

_DEPTH = 100_000


class Download(Transfer):
    """One download: run() what one of these returns.

    Attributes:
        lost: files that could not be read, each with a line that says why.
        gone: files that were removed meanwhile.
    """

    def __init__(
        self,
        session: Session,
        what: str,
        user: str | None,
        progress: Progress | None,
        limit_s: float,
    ) -> None:
        super().__init__(session, what, user, progress, limit_s)
        self.lost: dict[tuple[str, ...], str] = {}
        self.gone: dict[tuple[str, ...], str] = {}
        self._limit_bytes: int | None = None
        self._mode = 0  # what the host's user may do with any file that comes

    def _on_bytes(self, count: int) -> None:
        super()._on_bytes(count)
        if self._limit_bytes is not None and self._done_bytes > self._limit_bytes:
            raise HostError(
                f"the guest sent more than {self._limit_bytes} bytes, which is the limit"
            )

    async def file(self, path: str, size: int, target: str) -> None:
        """Copy a file of the guest that was `size` bytes long a moment ago."""
        self._begin(size)
        target = os.path.realpath(target)  # of the user's own links
        folder, _, name = target.rpartition("/")
        with HostFolder(folder or "/") as host:
            await self._copy(path, host, Entry((name,), size, 0o666, 0))

    async def _copy(self, path: str, host: HostFolder, entry: Entry) -> None:
        async def read(takes_growth: bool) -> None:
            with host.new_file(entry.parts, entry.mode) as file:
                info = await pieces.receive(
                    self._session,
                    self._values(path),
                    file,
                    limit_s=self._limit_s,
                    on_bytes=self._on_bytes,
                    takes_growth=takes_growth,
                )
                try:
                    await threads.in_thread(file.commit, info.mode | self._mode, info.mtime_ns)
                except OSError as error:
                    raise HostError(
                        f"cannot write {file.name}: {error.strerror}", error.errno or 0
                    ) from error

        await steady(read)
        self._files += 1

    async def folder(self, path: str, root: Entry, target: str) -> None:
        """Copy a folder of the guest into one of the host, which may exist."""
        tree = await self._list(path)
        self._skipped += tree.skipped
        self._errors += tree.errors
        self._begin(sum(entry.size for entry in tree.files))
        with HostFolder(target) as host:
            made = await threads.in_thread(make_folders, host, tree.folders)
            if host.is_new:
                made.append(root)
            await self._copy_all(path, host, tree.files)
            for parts, link_target in tree.links:
                host.link(parts, link_target)
            # Last of all, for whatever is put into a folder changes its time.
            await threads.in_thread(finish_folders, host, made)

    async def some(
        self, path: str, host: HostFolder, files: Sequence[Entry], limit_bytes: int
    ) -> None:
        """Copy some files of a folder of the guest, by their names in it.

        The host's user may read and write them, whatever their permissions are in the guest.

        Raises:
            HostError: they are more than so many bytes.
        """
        self._limit_bytes, self._mode = limit_bytes, 0o600
        self._begin(sum(entry.size for entry in files))
        await self._copy_all(path, host, files)

    async def _copy_all(self, path: str, host: HostFolder, files: Sequence[Entry]) -> None:
        async def one(entry: Entry) -> None:
            try:
                await self._copy(join(path, entry.parts), host, entry)
            except RequestFailed as error:
                self._leave_out(entry, error)

        async def batch(entries: Sequence[Entry]) -> None:
            for entry in await self._copy_small(path, host, entries):
                await one(entry)

        await self._share(files, batch, one)

    async def _list(self, path: str) -> Tree:
        values = self._values(path, depth=_DEPTH)

        async def attempt() -> Tree:
            tree = Tree()
            await read_list(
                self._agent, values, self._limit_s, lambda item: sort_listed(item, tree)
            )
            return tree

        return await again(self._agent, attempt, self._limit_s)

    async def _copy_small(self, path: str, host: HostFolder, batch: Sequence[Entry]) -> list[Entry]:
        """Copy files that were small; return those that are not, or have changed meanwhile."""
        failed: list[tuple[Entry, RequestFailed]] = []

        async def attempt() -> list[tuple[Entry, bytes, ReadInfo]]:
            failed.clear()
            found = []
            with Calls() as calls:
                requests = [
                    self._values(join(path, entry.parts), length=SMALL_BYTES) for entry in batch
                ]
                for values in requests:
                    what = f"read {values['path']}"
                    call = await self._agent.call(protocol.FILE_READ, values, what, self._limit_s)
                    calls.append(call)
                for entry, values, call in zip(batch, requests, calls, strict=True):
                    try:
                        piece, info = await pieces.finish_read(call, values, self._limit_s)
                        found.append((entry, piece.data, info))
                    except RequestFailed as error:
                        failed.append((entry, error))
            return found

        found = await again(self._agent, attempt, self._limit_s)
        for entry, error in failed:
            self._leave_out(entry, error)
        # A file of the kernel's may be longer or shorter than it says.
        whole = [
            (entry, data, info)
            for entry, data, info in found
            if info.is_as(info) and (len(data) == info.size or len(data) < SMALL_BYTES)
        ]
        await threads.in_thread(write_all, host, whole, self._mode)
        self._files += len(whole)
        self._on_bytes(sum(len(data) for _, data, _ in whole))
        done = {entry.parts for entry, _, _ in whole}
        return [entry for entry, _, _ in found if entry.parts not in done]

    def _leave_out(self, entry: Entry, error: RequestFailed) -> None:
        shown = printable("/".join(entry.parts))
        if error.code == "ENOENT":
            line = self.gone[entry.parts] = f"{shown}: it was removed meanwhile"
        else:
            line = self.lost[entry.parts] = f"{shown}: {str(error).rpartition(': ')[2]}"
            self._errors += 1
        self._skipped.append(line)
