"""To the guest: `files.upload()`."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.core import printable
from voidbox.errors import AgentError
from voidbox.sandbox.transfer import pieces, threads
from voidbox.sandbox.transfer.again import again, lost_or
from voidbox.sandbox.transfer.reading import checksum_of
from voidbox.sandbox.transfer.transfer import Calls, Transfer, cut, join
from voidbox.sandbox.transfer.trees import Entry, entry_of, open_source, read_all, scan


class Upload(Transfer):
    """One upload: run() what one of these returns."""

    async def file(self, source: str, path: str) -> None:
        """Copy a file of the host."""
        file = await threads.in_thread(open_source, source)
        with file:
            self._begin(os.fstat(file.fileno()).st_size)
            await self._send(file, path)

    async def _send(self, file: io.FileIO, path: str) -> None:
        entry = entry_of((), os.fstat(file.fileno()))  # as it is now, whatever it was
        values = self._values(path, mode=entry.mode & 0o777, mtime_ns=entry.mtime_ns)
        await pieces.send(
            self._session, values, file, limit_s=self._limit_s, on_bytes=self._on_bytes
        )
        self._files += 1

    async def folder(self, source: str, path: str, leaving_out: str | None = None) -> None:
        """Copy a folder of the host into one of the guest, which may exist; see scan()."""
        tree = await asyncio.to_thread(scan, source, leaving_out)
        self._skipped += tree.skipped
        self._begin(sum(entry.size for entry in tree.files))
        made = await self._make_folders(path, [entry_of((), os.stat(source)), *tree.folders])
        await self._share(
            tree.files,
            partial(self._upload_batch, source, path),
            partial(self._upload_one, source, path),
        )
        await self._make_links(path, tree.links)
        # Last of all, for whatever is put into a folder changes its time.
        await self._make_folders(path, made, is_end=True)

    async def _make_folders(
        self, path: str, folders: Sequence[Entry], is_end: bool = False
    ) -> list[Entry]:
        """Make folders, or finish them; return those that there were not before."""
        made: list[Entry] = []
        for batch in cut(folders):
            requests = []
            for entry in batch:
                values = self._values(join(path, entry.parts), mode=entry.mode & 0o777 | 0o700)
                if is_end:
                    values["mtime_ns"] = entry.mtime_ns
                requests.append((protocol.FILE_MKDIR, values))
            answers = await self._together(requests)
            made += (
                entry
                for entry, answer in zip(batch, answers, strict=True)
                if answer.get("created") is True
            )
        return made

    async def _make_links(self, path: str, links: list[tuple[tuple[str, ...], str]]) -> None:
        link = await self._agent.link(self._limit_s)
        if links and protocol.CAN_LINK not in link.capabilities:
            self._skipped += (
                f"{printable('/'.join(parts))}: the guest's agent is too old" for parts, _ in links
            )
            return
        for batch in cut(links):
            await self._together(
                [
                    (protocol.FILE_LINK, self._values(join(path, parts), target=target))
                    for parts, target in batch
                ]
            )

    async def _together(self, requests: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Make requests that are answered at once and may be made twice; return the answers."""

        async def attempt() -> list[dict[str, Any]]:
            with Calls() as calls:
                for type, values in requests:
                    call = await self._agent.call(type, values, values["path"], self._limit_s)
                    calls.append(call)
                answers = []
                for call in calls:
                    try:
                        answers.append(await call.result(self._limit_s))
                    except AgentError as error:
                        raise lost_or(call, error) from error
            return answers

        return await again(self._agent, attempt, self._limit_s)

    async def _upload_one(self, source: str, path: str, entry: Entry) -> None:
        name = "/".join((source, *entry.parts))
        file = await threads.in_thread(open_source, name, False)
        with file:
            await self._send(file, join(path, entry.parts))

    async def _upload_batch(self, source: str, path: str, batch: Sequence[Entry]) -> None:
        found = await asyncio.to_thread(read_all, source, batch)
        small = [(entry, data) for entry, data in found if data is not None]

        async def attempt() -> None:
            with Calls() as calls:
                for entry, data in small:
                    target = join(path, entry.parts)
                    values = self._values(
                        target, mode=entry.mode & 0o777, mtime_ns=entry.mtime_ns, parents=False
                    )
                    call = await self._agent.call(
                        protocol.FILE_WRITE, values, f"write {target}", self._limit_s
                    )
                    calls.append(call)
                    await call.write(data, self._limit_s)
                    call.end_input({"checksum": checksum_of(data)})
                for (entry, _), call in zip(small, calls, strict=True):
                    await pieces.finish_write(call, join(path, entry.parts), self._limit_s)

        await again(self._agent, attempt, self._limit_s)
        self._files += len(small)
        self._on_bytes(sum(len(data) for _, data in small))
        for entry, data in found:
            if data is None:
                await self._upload_one(source, path, entry)
