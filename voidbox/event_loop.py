"""The event loop: one thread, level-triggered epoll, timers, and calls from other threads.

Some facts about epoll that the code relies on: a closed descriptor leaves the set by itself only if
no duplicate of it is open, hence `unwatch` before `close`; a descriptor can be reported that an
earlier callback of the same pass unwatched, hence the look-up for each event; regular files are
refused (EPERM).
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from threading import Event, Lock, Thread

from voidbox.errors import HostError

_EVENTS_MAX = 64


class TimerHandle:
    """A call to come; `cancel()` on the loop thread undoes it."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never call it. Idempotent."""
        self.callback = None


class _Call:
    """Work of another thread, which is run once or not at all."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.done = Event()
        self.error: Exception | None = None
        self._work = work
        self._is_taken = Lock()

    def run(self) -> None:
        if self._is_taken.acquire(blocking=False):
            try:
                self._work()
            except Exception as error:  # the caller's to handle
                self.error = error
            finally:
                self.done.set()

    def give_up(self) -> bool:
        """Have it not run; False if it began already."""
        return self._is_taken.acquire(blocking=False)


class EventLoop:
    """Runs callbacks on a thread of its own. Thread: loop, but for `call_soon` and `close`.

    Args:
        on_error: takes whatever a callback raised; the loop goes on.
        is_daemon: the thread does not keep the process from its end; whoever asks for this closes
            the loop then.
        name: the thread's.
    """

    def __init__(
        self,
        on_error: Callable[[BaseException], None],
        is_daemon: bool = False,
        name: str = "voidbox-loop",
    ) -> None:
        self._on_error = on_error
        try:
            self._epoll = select.epoll()
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise HostError.from_errno("epoll", error.errno or 0) from error
        self._callbacks: dict[int, Callable[[int], None]] = {self._wake_fd: self._drain_soon}
        # A heap: when, in which order, what. Tuples, which C compares.
        self._timers: list[tuple[int, int, TimerHandle]] = []
        self._order = count()
        self._soon: deque[Callable[[], None]] = deque()
        self._soon_lock = Lock()  # covers _awake only; never held while calling out
        self._awake = False
        self._stopping = False
        self._ends_itself = False
        self._closed = False
        self._thread = Thread(target=self._run, name=name, daemon=is_daemon)
        self._epoll.register(self._wake_fd, select.EPOLLIN)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` whenever one of `events` holds; again for `fd` replaces both.

        Args:
            events: select.EPOLLIN | select.EPOLLOUT; errors and hang-ups are always reported.
        Raises:
            OSError: EPERM for a regular file.
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; must come before the descriptor is closed. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop. Thread: any. Calls from one thread keep their order."""
        if self._closed:
            return
        self._soon.append(callback)
        with self._soon_lock:
            wake, self._awake = not self._awake, True
            # Under the lock, so that close() cannot free the descriptor in between.
            if wake and not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def call(self, work: Callable[[], None], timeout_s: float) -> None:
        """Run `work` on the loop and wait for it; here, if the loop's thread has ended.

        Thread: any but the loop.

        Raises:
            HostError: the loop did not get to it in time; it will not run any more.
            Exception: what `work` raised.
        """
        call = _Call(work)
        self.call_soon(call.run)
        deadline = time.monotonic() + timeout_s
        while not call.done.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            if not self._thread.is_alive():
                call.run()
            elif time.monotonic() >= deadline and call.give_up():
                raise HostError(f"{self._thread.name} is busy and did not answer in {timeout_s} s")
        if call.error is not None:
            raise call.error

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Run `callback` on the loop after `delay_s` seconds."""
        handle = TimerHandle(callback)
        when_ns = time.monotonic_ns() + int(delay_s * 1e9)
        heapq.heappush(self._timers, (when_ns, next(self._order), handle))
        return handle

    def _run(self) -> None:
        poll, callbacks, timers = self._epoll.poll, self._callbacks, self._timers
        clock_ns = time.monotonic_ns
        timeout_s = 0.0
        while not self._stopping:
            for fd, ready in poll(timeout_s, _EVENTS_MAX):
                callback = callbacks.get(fd)
                if callback is not None:
                    try:
                        callback(ready)
                    except Exception as error:  # handed on, not hidden: the machine ends with it
                        self._on_error(error)
            timeout_s = -1.0
            if timers:
                when_ns, _, handle = timers[0]
                timeout_s = (when_ns - clock_ns()) / 1e9
                if timeout_s <= 0 or handle.callback is None:
                    timeout_s = self._run_timers()
        self._drain_soon()
        if self._ends_itself:
            self._free()
            self._drain()  # what came before that

    def _run_timers(self) -> float:
        """Run what is due; returns for how many seconds to wait then, -1 for ever."""
        timers = self._timers
        now_ns = time.monotonic_ns()
        has_run = False
        while timers:
            when_ns, _, handle = timers[0]
            callback = handle.callback
            if callback is not None and when_ns > now_ns:
                # What ran took time, and may have added what is due: one pass is bounded.
                return 0 if has_run else (when_ns - now_ns) / 1e9
            heapq.heappop(timers)
            if callback is not None:
                self._guard(callback)
                has_run = True
        return -1

    def _drain_soon(self, _ready: int = 0) -> None:
        with self._soon_lock:
            self._awake = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        self._drain()

    def _drain(self) -> None:
        # What is added from here on wakes the loop again; one pass is bounded.
        for _ in range(len(self._soon)):
            self._guard(self._soon.popleft())

    def _guard(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # as in _run
            self._on_error(error)

    def stop(self) -> None:
        """Run what was handed in and end the thread. Idempotent. Thread: any but the loop.

        Afterwards the caller may act in the loop's place: unwatch, close what was watched.
        """
        if self._thread.is_alive():
            self.call_soon(self._stop)
            self._thread.join()

    def end(self) -> None:
        """End the thread after what was handed in, and free the loop's own descriptors.

        What is handed in later is never run.
        """
        self._ends_itself = True
        self._stopping = True

    def close(self) -> None:
        """Stop, and free the loop's own descriptors. Idempotent. Thread: any but the loop."""
        self.stop()
        self._free()

    def _free(self) -> None:
        with self._soon_lock:
            if not self._closed:
                self._closed = True
                self._epoll.close()
                os.close(self._wake_fd)

    def _stop(self) -> None:
        self._stopping = True
