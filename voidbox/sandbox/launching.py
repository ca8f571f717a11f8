"""The start and the end of a sandbox's process as coroutines, which can be given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from voidbox.errors import VoidboxError
from voidbox.sandbox.launch import launch, reap
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_KILL_PAUSE_S = 0.02  # until a process that was being started can be found


class Launch:
    """One start.

    Args:
        record: what Store.create() takes.
        parent_fd: see launch().
    """

    def __init__(self, store: Store, record: SandboxRecord, parent_fd: int | None) -> None:
        self._store = store
        self._draft = record
        self._parent_fd = parent_fd
        self._record: SandboxRecord | None = None

    async def run(self) -> SandboxRecord:
        """Make it and start it; return its record. Whoever is cancelled leaves nothing behind.

        Raises:
            VoidboxError: see launch().
        """
        task = asyncio.create_task(asyncio.to_thread(self._make))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._give_up(task)
            raise

    def _make(self) -> SandboxRecord:
        """Thread: one of the pool."""
        self._store.clean()
        self._record = record = self._store.create(self._draft)
        launch(self._store, record, self._parent_fd)
        return self._store.read(record.id)

    async def _give_up(self, task: asyncio.Task[SandboxRecord]) -> None:
        while not task.done():
            if self._record is not None:
                await asyncio.to_thread(self._kill, self._record.id)
            await asyncio.wait([task], timeout=_KILL_PAUSE_S)
        with contextlib.suppress(VoidboxError):
            task.result()
        if self._record is not None:
            await asyncio.to_thread(self._remove, self._record.id)

    def _kill(self, id: str) -> None:
        with contextlib.suppress(VoidboxError):
            fd = self._store.open_owner(id)
            if fd is not None:
                try:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)

    def _remove(self, id: str) -> None:
        with contextlib.suppress(VoidboxError):
            self._store.clean()
            self._store.remove(id)


async def wait_gone(store: Store, id: str, timeout_s: float | None) -> bool:
    """Wait for the end of a sandbox's process, however long, without holding a thread.

    Returns:
        False if `timeout_s` seconds pass before.
    """
    fd = await asyncio.to_thread(store.open_owner, id)
    if fd is not None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fd, gone.set)
        try:
            async with asyncio.timeout(timeout_s):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
            os.close(fd)
    reap()
    return True
