"""The start of a sandbox from a record, and copies of one: snapshots, forks, suspend and resume."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Mapping
from typing import TypeVar

from voidbox.errors import SandboxTimeout
from voidbox.sandbox import launch
from voidbox.sandbox.guarding import copied_values
from voidbox.sandbox.snapshots import restored
from voidbox.sandbox.snapshots.shelf import Lent, Shelf
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import parent_pipe, snapshots, zygotes
from voidbox.sdk.ending import EndingSandbox
from voidbox.sdk.launching import Launch
from voidbox.sdk.snapshots import SnapshotInfo
from voidbox.sdk.undoing import finished_or_undone

_STARTS_AT_ONCE = 8

Self = TypeVar("Self", bound="CopiedSandbox")


class CopiedSandbox(EndingSandbox):
    """A sandbox that can be copied; see AsyncSandbox."""

    @classmethod
    async def _launch(
        cls: type[Self],
        store: Store,
        record: SandboxRecord,
        detached: bool,
        keep: bool,
        limit_s: float | None,
        secret_envs: Mapping[str, str] | None = None,
        zygote: Zygote | None = None,
        values: Mapping[str, str] | None = None,
    ) -> Self:
        """Start the sandbox of a record; nothing of it is left if that fails."""
        parent_fd = None if detached else parent_pipe.reading_end()
        if limit_s is not None:
            record = record._replace(start_s=limit_s)
        launch = Launch(store, record, parent_fd, secret_envs, zygote, values)
        try:
            async with asyncio.timeout(limit_s):
                record = await launch.run()
        except TimeoutError:
            raise SandboxTimeout(f"the sandbox did not start within {limit_s:g} s") from None
        try:
            sandbox = cls(store, record, keep)
        except BaseException:  # no descriptor for its files, say
            await launch.give_up()
            raise
        if record.state is State.CREATING:
            return sandbox  # it is held
        try:
            await sandbox._workspace.copy_in(sandbox._session.limit_s(None))
        except BaseException:
            await sandbox.kill()
            raise
        return sandbox

    async def resume(self, *, request_timeout: float | None = None) -> None:
        """Let it go on after pause(), or wake it after suspend()."""
        record = await asyncio.to_thread(self._store.read, self._id)
        if launch.is_asleep(self._store, record):
            await snapshots.wake(self._store, self._id)
        else:
            await self._control("resume", request_timeout)

    async def suspend(self, *, request_timeout: float | None = None) -> None:
        """Bring it to the disk, where it needs no memory; resume() or connect() wakes it.

        It is the same then: its processes, files, CID, and published ports, and the clock is right.
        Connections through its network have ended, and so have those of programs to it; commands
        that ran can be found by commands.connect(). Its time limit stands still meanwhile, and it
        stays when this program ends.

        Raises:
            ConfigError: it shares a folder live, or something else that cannot be kept.
            HostError: it cannot be written: it goes on.
        """
        await self._control("suspend", request_timeout or snapshots.SNAPSHOT_S)
        await self._place.wait_gone(None)
        await self._disconnect()

    async def snapshot(
        self, name: str | None = None, *, request_timeout: float | None = None
    ) -> SnapshotInfo:
        """Save it as it is now, memory and disk; it stands still for some milliseconds.

        create(snapshot=…) makes any number of sandboxes of it, each one of its own. What it holds
        includes all secrets in its memory.

        Raises:
            ConfigError: the name is taken, or it shares a folder live, say.
            HostError: it cannot be written: nothing of it is left.
        """
        id = await self._save(name or "", False, request_timeout)
        return await asyncio.to_thread(self._place.find_snapshot, id)

    async def fork(
        self: Self, count: int = 1, *, request_timeout: float | None = None
    ) -> builtins.list[Self | Exception]:
        """Make so many sandboxes that go on from where this one is, which goes on too.

        Each has its own random numbers, names, disk, and ports. They end as this one does: with
        their context, and with this program.

        Returns:
            The sandboxes; in place of one that could not be started, why.
        Raises:
            ConfigError, HostError: see snapshot().
        """
        record = await asyncio.to_thread(self._store.read, self._id)
        return await self._fork_as(record.is_owned, count, request_timeout)

    async def _fork_as(
        self: Self, is_owned: bool, count: int, request_timeout: float | None = None
    ) -> builtins.list[Self | Exception]:
        """See fork(), and whether they are to end with this program."""
        snapshots.check_count(count)
        saved = await finished_or_undone(self._save_for_forks(request_timeout), Lent.close)
        starts: builtins.list[asyncio.Task[Self]] = []
        try:
            record = restored.record_of(saved.record)._replace(is_owned=is_owned)
            starts = await self._begin_several(record, count)
            found = await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.to_thread(saved.close)  # they have it open
        except BaseException:  # nobody gets those that run already
            await asyncio.gather(*map(_undo, starts))
            await asyncio.shield(asyncio.to_thread(saved.close))
            raise
        return [one if not isinstance(one, BaseException) else _as_error(one) for one in found]

    async def _save_for_forks(self, request_timeout: float | None) -> Lent:
        id = await self._save("", True, request_timeout)
        return await asyncio.to_thread(Shelf(self._store.folder).lend, id)

    async def _begin_several(
        self: Self, record: SandboxRecord, count: int
    ) -> builtins.list[asyncio.Task[Self]]:
        """Begin to start so many of a record, with our secrets' values."""
        original = await asyncio.to_thread(self._store.read, self._id)
        values = await asyncio.to_thread(copied_values, self._store, original)
        gate = asyncio.Semaphore(_STARTS_AT_ONCE)
        zygote = await asyncio.to_thread(zygotes.current)
        is_detached = not record.is_owned

        async def start() -> Self:
            async with gate:
                return await type(self)._launch(
                    self._store,
                    record,
                    is_detached,
                    self._keeps,
                    None,
                    zygote=zygote,
                    values=values,
                )

        return [asyncio.create_task(start()) for _ in range(count)]

    async def _save(self, name: str, is_fork: bool, request_timeout: float | None) -> str:
        """Have a snapshot written; return its ID."""
        limit_s = request_timeout or snapshots.SNAPSHOT_S
        answer = await self._control("snapshot", limit_s, name=name, fork=is_fork)
        return str(answer.get("snapshot"))

    @staticmethod
    async def list_snapshots(*, state_folder: str | None = None) -> builtins.list[SnapshotInfo]:
        """List all snapshots, oldest first."""
        store = await asyncio.to_thread(Store, state_folder)
        return await asyncio.to_thread(snapshots.list_all, store)

    @staticmethod
    async def remove_snapshot(
        snapshot: str | SnapshotInfo, *, state_folder: str | None = None
    ) -> None:
        """Delete a snapshot; sandboxes that were made of it go on.

        Raises:
            ConfigError: there is none.
        """
        store = await asyncio.to_thread(Store, state_folder)
        shelf, key = Shelf(store.folder), snapshots.key_of(snapshot)
        await asyncio.to_thread(lambda: shelf.remove(shelf.id_of(key)))


async def _undo(start: asyncio.Task[Self]) -> None:
    """Leave nothing of a start, however it ends."""
    start.cancel()
    await asyncio.wait((start,))
    if not start.cancelled() and start.exception() is None:
        sandbox = start.result()
        sandbox._keeps = False
        await sandbox.kill()


def _as_error(error: BaseException) -> Exception:
    """Return what fork() has in place of a sandbox; what is no error of a start is raised."""
    if isinstance(error, Exception):
        return error
    raise error
