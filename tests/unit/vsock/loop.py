"""A small event loop on the test's own thread: real epoll, and turns when the test says so."""

from __future__ import annotations

import heapq
import select
import time
from collections import deque
from collections.abc import Callable


class Timer:
    def __init__(self, when_s: float, callback: Callable[[], None]) -> None:
        self.when_s = when_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when_s < other.when_s


class EpollLoop:
    """Counts the callbacks it makes, which is how a busy loop shows."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self.soon: deque[Callable[[], None]] = deque()
        self.timers: list[Timer] = []
        self.calls = 0

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        if fd in self.callbacks:
            self.epoll.modify(fd, events)
        else:
            self.epoll.register(fd, events)
        self.callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        if self.callbacks.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self.timers, timer)
        return timer

    def turn(self, timeout_s: float = 0) -> int:
        """One pass; returns the number of callbacks."""
        before = self.calls
        for _ in range(len(self.soon)):
            self.calls += 1
            self.soon.popleft()()
        for fd, events in self.epoll.poll(0 if self.soon else timeout_s):
            if (callback := self.callbacks.get(fd)) is not None:
                self.calls += 1
                callback(events)
        while self.timers and self.timers[0].when_s <= time.monotonic():
            timer = heapq.heappop(self.timers)
            if timer.callback is not None:
                self.calls += 1
                timer.callback()
        return self.calls - before

    def close(self) -> None:
        self.epoll.close()
