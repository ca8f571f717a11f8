"""The start and the end of a sandbox's process as coroutines, which can be given up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.launch import OWNER, launch, reap, wait_ended
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk.undoing import finished_or_undone

_KILL_PAUSE_S = 0.02  # until a process that was being started can be found
KILL_S = 10.0

_logger = logging.getLogger("voidbox")


def make_zygote(owner: str = OWNER) -> Zygote:
    """Start what forks sandboxes' processes, and belongs to this program.

    Raises:
        HostError: the host gives no process.
    """
    return Zygote(owner, environment())


class Launch:
    """One start.

    Args:
        record: what Store.create() takes.
        parent_fd: see launch().
        secret_envs: see Store.create().
        zygote, secrets: see launch().
    """

    def __init__(
        self,
        store: Store,
        record: SandboxRecord,
        parent_fd: int | None,
        secret_envs: Mapping[str, str] | None = None,
        zygote: Zygote | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._zygote = zygote
        self._secrets = secrets
        self._secret_envs = secret_envs
        self._draft = record
        self._parent_fd = parent_fd
        self._record: SandboxRecord | None = None
        self._lock = threading.Lock()  # covers _has_begun and _is_given_up
        self._has_begun = False
        self._is_given_up = False
        self._is_over = threading.Event()  # the start, well or not

    async def run(self) -> SandboxRecord:
        """Make it and start it; return its record. Whoever is cancelled leaves nothing behind.

        Raises:
            VoidboxError: see launch().
        """
        task = asyncio.create_task(asyncio.to_thread(self._make))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            await self.give_up()
            raise

    def _make(self) -> SandboxRecord:
        """Thread: one of the pool."""
        with self._lock:
            if self._is_given_up:
                raise HostError("the start was given up")
            self._has_begun = True
        try:
            self._store.clean_at_times()
            self._record = record = self._store.create(self._draft, self._secret_envs)
            launch(self._store, record, self._parent_fd, zygote=self._zygote, secrets=self._secrets)
            try:
                return self._store.read(record.id)
            except VoidboxError:  # it runs, and nobody will know it
                self._end(record)
                raise
        finally:
            self._is_over.set()

    async def give_up(self) -> None:
        """Undo it, and wait for that, however often we are cancelled.

        On a thread of its own: those of the pool may all be starting sandboxes, and this one goes
        on though the event loop, or the whole program, is told to end meanwhile.
        """
        loop, undone = asyncio.get_running_loop(), asyncio.Event()

        def undo() -> None:
            try:
                self._undo()
            finally:
                with contextlib.suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(undone.set)

        try:
            threading.Thread(target=undo, name="voidbox-give-up").start()
        except RuntimeError:  # the interpreter ends
            undo()
        while not undone.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await undone.wait()

    def _undo(self) -> None:
        with self._lock:
            self._is_given_up = True
            if not self._has_begun:
                return
        while not self._is_over.wait(_KILL_PAUSE_S):
            if self._record is not None:
                with contextlib.suppress(VoidboxError):
                    kill_process(self._store, self._record.id)
        if self._record is not None:
            self._end(self._record)  # it may have gone well

    def _end(self, record: SandboxRecord) -> None:
        """Leave nothing of it, whatever there is. A descriptor may be missing just then."""
        deadline = time.monotonic() + KILL_S
        while True:
            try:
                kill_process(self._store, record.id)
                wait_ended(self._store, record.id, KILL_S)
                self._store.clean()
                if os.path.isdir(self._store.path(record.id)):
                    self._store.remove(record.id)
                return
            except VoidboxError as error:
                problem = error
            if time.monotonic() > deadline:
                break
            time.sleep(_KILL_PAUSE_S)
        _logger.warning("a start that was given up leaves something behind: %s", problem)


def kill_process(store: Store, id: str) -> None:
    """Kill a sandbox's process; one that is gone is fine.

    Raises:
        HostError: see Store.open_owner.
    """
    fd = store.open_owner(id)
    if fd is not None:
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


async def wait_or_kill(store: Store, id: str, limit_s: float) -> None:
    """Wait for the end of a sandbox's process, and kill one that takes longer."""
    if not await wait_gone(store, id, limit_s):
        _logger.warning("%s: its process does not end: killing it", id)
        await asyncio.to_thread(kill_process, store, id)
        await wait_gone(store, id, KILL_S)
        await asyncio.to_thread(store.clean)


async def kill_and_remove(store: Store, id: str) -> None:
    """Kill a sandbox's process, wait for its end, and leave nothing of it.

    Raises:
        HostError: see Store.open_owner.
    """
    await asyncio.to_thread(kill_process, store, id)
    await wait_gone(store, id, KILL_S)
    await asyncio.to_thread(store.clean)
    with contextlib.suppress(ConfigError):  # it was one that leaves no record
        await asyncio.to_thread(store.remove, id)


def read_truly(store: Store, key: str) -> SandboxRecord:
    """Return a record that knows it, if the sandbox's process was killed.

    Raises:
        ConfigError: see Store.read.
    """
    record = store.read(key)
    if not record.state.has_process or store.is_alive(record.id):
        return record
    store.clean()
    return store.read(record.id)


async def wait_gone(store: Store, id: str, timeout_s: float | None) -> bool:
    """Wait for the end of a sandbox's process, however long, without holding a thread.

    Returns:
        False if `timeout_s` seconds pass before.
    """
    fd = await finished_or_undone(asyncio.to_thread(store.open_owner, id), _close)
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


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
