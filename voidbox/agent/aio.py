"""The agent's client as coroutines: requests wait on asyncio's events, not on threads.

    coroutine ─ AsyncCall ─ Call ─► the link's thread ─► socket
        ▲                    │
        └─ call_soon_threadsafe ◄─ Call.on_change

The link's one thread moves the bytes of all requests. Only what may really block (connecting, and
waiting for a dead guest's post-mortem) goes to asyncio's pool of threads.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from voidbox.agent import connect
from voidbox.agent.call import Call
from voidbox.agent.client import REQUEST_TIMEOUT_S
from voidbox.agent.core import Data, Event
from voidbox.agent.endpoint import Endpoint
from voidbox.agent.link import Link
from voidbox.errors import AgentError, SandboxTimeout

_STEPS_PER_PASS = 16  # of one coroutine that never has to wait; then others get their turn


class AsyncCall:
    """A request and its answers. Thread: that of the event loop it was made on.

    As a context manager it cancels what has not ended.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_waking = False  # a wake-up is on its way
        self._steps = 0
        call.on_change = self._on_change  # what came before is looked at before any wait

    def _on_change(self) -> None:
        """Thread: the link's."""
        if not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # before anybody looks: whatever comes now wakes us again
        self._changed.set()

    async def _until(self, is_true: Callable[[], bool], timeout_s: float | None) -> None:
        self._steps += 1
        if self._steps % _STEPS_PER_PASS == 0:
            await asyncio.sleep(0)
        if is_true():
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not is_true():
                    self._changed.clear()
                    if not is_true():
                        await self._changed.wait()
        except TimeoutError:
            raise self._call.stalled(timeout_s) from None

    @property
    def is_over(self) -> bool:
        """Whether the request has ended, well or not."""
        return self._call.is_over

    @property
    def is_lost(self) -> bool:
        """Whether it ended because the connection is lost."""
        return self._call.is_lost

    async def next(self, timeout_s: float | None = None) -> Event | Data | None:
        """Return what came next, or None at the end, which result() then has.

        Raises:
            RequestFailed, AgentError, SandboxTimeout: see Call.next().
        """
        call = self._call
        await self._until(lambda: call.has_next, timeout_s)
        if call.is_lost and not call.has_events:
            return await asyncio.to_thread(call.next)  # it waits for the post-mortem
        return call.next()

    async def batch(self, timeout_s: float | None = None) -> list[Event | Data]:
        """Return all that came, at least one; an empty list at the end.

        Raises:
            RequestFailed, AgentError, SandboxTimeout: see Call.next().
        """
        first = await self.next(timeout_s)
        found = [] if first is None else [first]
        while first is not None and self._call.has_events:
            event = self._call.next()
            assert event is not None
            found.append(event)
        return found

    async def result(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for the end, dropping what comes before it; return the result's map.

        Raises:
            RequestFailed, AgentError: see Call.next().
            SandboxTimeout: it has not ended after so long; the request is cancelled.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while await self.next(None if deadline is None else deadline - time.monotonic()):
                if deadline is not None and time.monotonic() > deadline:
                    raise self._call.stalled(timeout_s)  # events without end are no answer
        except SandboxTimeout:
            self.cancel()
            raise self._call.stalled(timeout_s) from None
        return self._call.result()

    async def write(self, data: bytes | memoryview, timeout_s: float | None = None) -> None:
        """Send data, waiting while the guest is slow to take it; after the end nothing is sent.

        Raises:
            SandboxTimeout: the guest took nothing for so long.
        """
        await self._until(lambda: self._call.has_room, timeout_s)
        self._call.write(data, 0)

    def end_input(self, values: dict[str, Any] | None = None) -> None:
        """Say that no more data follows."""
        self._call.end_input(values)

    def cancel(self) -> None:
        """Ask for the request's end, which still comes as a result or an error."""
        self._call.cancel()

    def drop(self) -> None:
        """Cancel it once the event loop comes to it. Thread: any, a collector's too."""
        with suppress(RuntimeError):  # the event loop is closed, so the connection goes as well
            self._loop.call_soon_threadsafe(self.__exit__)

    def __enter__(self) -> AsyncCall:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_over:
            self.cancel()


class AsyncAgent:
    """The agent of one guest; connects when it is needed, and again after a lost connection.

    Args:
        request_timeout_s: for each request, and each sign of life in long ones; not for commands
            and what is watched.
        log: takes a line at a time; see voidbox.agent.connect.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        secret: bytes,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.request_timeout_s = request_timeout_s
        self._endpoint = endpoint
        self._secret = secret
        self._log = log
        self._lock = threading.Lock()  # covers _link and _is_closed; never held while waiting
        self._link: Link | None = None
        self._hang_up: weakref.finalize[[], AsyncAgent] | None = None  # _link's end with ours
        self._is_closed = False
        self._connecting: asyncio.Task[Link] | None = None
        self._foreign: list[Link | None] = []

    async def link(self, timeout_s: float | None = None) -> Link:
        """Return a connection that is not lost, as far as one can know.

        Raises:
            AgentError: the guest has ended.
            SandboxTimeout: no answer within `timeout_s` seconds.
        """
        link = self._link
        if link is not None and not link.is_lost:
            return link
        task = self._connecting
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            timeout_s = self.request_timeout_s if timeout_s is None else timeout_s
            task = asyncio.create_task(asyncio.to_thread(self._connect, timeout_s))
            task.add_done_callback(_look_at)
            self._connecting = task
        return await asyncio.shield(task)  # one who gives up does not take it from the others

    def _connect(self, timeout_s: float) -> Link:
        """Thread: one of the pool; it stores what it makes, for nobody may wait for it any more."""
        with self._lock:
            self._check_open()
            old = self._link
        if old is not None:
            if not old.is_lost:
                return old
            old.close()
        link = connect.connect(
            self._endpoint, self._secret, timeout_s, self._log, is_daemon=True
        ).link
        _close_at_exit(self)
        with self._lock:
            other = self._link if self._link is not old else None
            if other is None and not self._is_closed:
                self._keep(link)
                return link
        link.close()
        self._check_open()
        assert other is not None  # of another event loop, which was faster
        return other

    def _keep(self, link: Link | None) -> None:
        """Have this be our connection; it ends with us, if nobody closes it before. Lock: held."""
        if self._hang_up is not None:
            self._hang_up.detach()
            self._hang_up = None
        self._link = link
        if link is not None:
            self._hang_up = weakref.finalize(self, link.hang_up)
            self._hang_up.atexit = False  # see _close_all

    def _check_open(self) -> None:
        if self._is_closed:
            raise AgentError("this sandbox's connection is closed: connect() again")

    @property
    def carrier(self) -> str:
        """What the bytes go over: "vsock" or "serial"."""
        return "serial" if self._link is not None and self._link.is_serial else "vsock"

    async def call(
        self, type: int, values: dict[str, Any], what: str, timeout_s: float | None = None
    ) -> AsyncCall:
        """Begin a request.

        Raises:
            AgentError, SandboxTimeout: there is no connection; see link().
        """
        link = await self.link(timeout_s)
        return AsyncCall(link.call(type, values, what))

    async def request(
        self, type: int, values: dict[str, Any], what: str, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Make a request that is answered at once; return the answer's map.

        Raises:
            RequestFailed: the guest could not do it.
            AgentError, SandboxTimeout: there is no connection, or no answer.
        """
        if timeout_s is None:
            timeout_s = self.request_timeout_s
        with await self.call(type, values, what, timeout_s) as call:
            return await call.result(timeout_s)

    def close(self) -> None:
        """End the connection, and make no other. Idempotent."""
        with self._lock:
            self._is_closed = True
        self.disconnect()

    def disconnect(self) -> None:
        """End the connection; commands that are not in the background end with it. Idempotent."""
        with self._lock:
            link = self._link
            self._keep(None)
        if link is not None:
            link.close()

    def forget(self) -> None:
        """Have no connection, without ending it: it is the parent process's."""
        self._lock = threading.Lock()
        self._foreign.append(self._link)  # its descriptors must not be closed by chance
        self._keep(None)
        self._connecting = None


def _look_at(task: asyncio.Task[Link]) -> None:
    """Whoever waited for it has the error; if nobody does any more, it is of no interest."""
    if not task.cancelled():
        task.exception()


# Agents with a connection. A user need not close them: the threads of their links do not keep the
# process from its end, and are ended then. A child without exec has none of these threads, so it
# makes connections of its own.
_connected: weakref.WeakSet[AsyncAgent] = weakref.WeakSet()
_connected_lock = threading.Lock()
_is_registered = False


def _close_at_exit(agent: AsyncAgent) -> None:
    global _is_registered
    with _connected_lock:
        _connected.add(agent)
        if not _is_registered:
            _is_registered = True
            atexit.register(_close_all)
            os.register_at_fork(after_in_child=_forget_all)


def _close_all() -> None:
    for agent in list(_connected):
        agent.close()


def _forget_all() -> None:
    global _connected_lock
    _connected_lock = threading.Lock()
    for agent in list(_connected):
        agent.forget()
