"""The event loop: epoll, timers and the ends of child processes, on one thread."""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
_EVENTS_MAX = 64


def log(text: str) -> None:
    """Write a line to the guest's console, which is where standard error goes."""
    with contextlib.suppress(OSError):  # a console that takes nothing is no reason to end
        os.write(2, f"voidbox-agent: {text}\n".encode("utf-8", "backslashreplace"))


def describe_fault(error: BaseException) -> str:
    """Return the traceback of a fault of the agent's own."""
    import traceback  # 5 ms of every start otherwise

    return "a fault of the agent's own:\n" + "".join(traceback.format_exception(error))


class Timer:
    """A call to come."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never make it. Idempotent."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """Runs callbacks. What a callback raises is logged, and the loop goes on: PID 1 must not end.

    Attributes:
        on_signal: called with the number of a signal that came, SIGCHLD excepted.
    """

    def __init__(self) -> None:
        self.on_signal: Callable[[int], None] = lambda number: None
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._running = True

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` while any of `events` holds; again for `fd` replaces both."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call it after `delay` seconds."""
        timer = Timer(time.monotonic() + delay, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call `callback(wait status)` when the child ends."""
        self._children[pid] = callback

    def catch(self, signals: tuple[int, ...]) -> None:
        """Take these signals, and SIGCHLD, as events. The main thread only."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Python writes each signal's number to this descriptor from its C handler.
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (*signals, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: None)
        self.watch(read_fd, READ, lambda ready: self._take_signals(read_fd))

    def _take_signals(self, fd: int) -> None:
        numbers = set(os.read(fd, 4096))
        self._reap()
        for number in numbers - {signal.SIGCHLD}:
            self.on_signal(number)

    def _reap(self) -> None:
        """Collect every child that ended; those that nobody waits for are PID 1's orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                self._guard(callback, status)

    def run(self) -> None:
        """Run until stop()."""
        while self._running:
            for fd, ready in self._epoll.poll(self._timeout(), _EVENTS_MAX):
                callback = self._callbacks.get(fd)  # an earlier one may have unwatched it
                if callback is not None:
                    self._guard(callback, ready)
            now = time.monotonic()
            while self._timers and self._timers[0].when <= now:
                due = heapq.heappop(self._timers).callback
                if due is not None:
                    self._guard(due)

    def stop(self) -> None:
        """Return from run() after this callback."""
        self._running = False

    def _timeout(self) -> float:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else -1

    @staticmethod
    def _guard(callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            log(describe_fault(error))
