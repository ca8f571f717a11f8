"""What ends a sandbox from outside: its time limit, and the end of the process that owns it."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from functools import partial

from voidbox.event_loop import EventLoop
from voidbox.loop_api import TimerHandle

log = logging.getLogger(__name__)

_DELAY_S_MAX = 10**9  # some thirty years


class Limits:
    """Watches both on a thread of its own. Thread: any.

    Args:
        parent_fd: the end of a pipe that the owning process holds the other end of, or None; it is
            closed here.
        on_time: called on the thread when the time is over.
        on_orphaned: called on the thread when the owning process is gone.
    """

    def __init__(
        self,
        parent_fd: int | None,
        on_time: Callable[[], None],
        on_orphaned: Callable[[], None],
    ) -> None:
        self._parent_fd = parent_fd
        self._on_time = on_time
        self._on_orphaned = on_orphaned
        self._timer: TimerHandle | None = None
        self._left_s: float | None = None  # when _timer was set, or while time stands still
        self._set_at = 0.0
        self._is_held = False
        self._loop = EventLoop(self._on_fault)

    def start(self) -> None:
        """Begin to watch."""
        if self._parent_fd is not None:
            self._loop.call_soon(partial(self._watch_parent, self._parent_fd))
        self._loop.start()

    def forget_parent(self) -> None:
        """Go on when the owning process is gone. Idempotent."""
        self._loop.call_soon(self._forget_parent)

    def watch_end(self, fd: int, on_end: Callable[[], None]) -> None:
        """Call `on_end` on the thread when nobody holds the other end of a pipe any more.

        Args:
            fd: the reading end, which stays the caller's.
        """

        def ended(ready: int) -> None:
            self._loop.unwatch(fd)
            on_end()

        self._loop.call_soon(lambda: self._loop.watch(fd, select.EPOLLIN, ended))

    def set_time(self, seconds: float | None) -> None:
        """End the sandbox so many seconds from now; None for never."""
        self._loop.call_soon(partial(self._set_time, seconds))

    def hold(self) -> None:
        """Have the time stand still: the guest does."""
        self._loop.call_soon(self._hold)

    def go_on(self) -> None:
        """Let the time go on. Idempotent."""
        self._loop.call_soon(self._go_on)

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        self._loop.close()
        fd, self._parent_fd = self._parent_fd, None
        if fd is not None:
            os.close(fd)

    def _set_time(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._left_s, self._set_at = seconds, time.monotonic()
        if seconds is not None and not self._is_held:
            self._timer = self._loop.call_later(min(seconds, _DELAY_S_MAX), self._on_time)

    def _hold(self) -> None:
        left_s = self._left_s
        if left_s is not None and not self._is_held:
            left_s = max(0.0, left_s - (time.monotonic() - self._set_at))
        self._is_held = True
        self._set_time(left_s)

    def _go_on(self) -> None:
        self._is_held = False
        self._set_time(self._left_s)

    def _watch_parent(self, fd: int) -> None:
        self._loop.watch(fd, select.EPOLLIN, partial(self._on_parent, fd))

    def _forget_parent(self) -> None:
        fd, self._parent_fd = self._parent_fd, None
        if fd is not None:
            self._loop.unwatch(fd)
            os.close(fd)

    def _on_parent(self, fd: int, ready: int) -> None:
        if ready & select.EPOLLIN and os.read(fd, 4096):
            return  # nothing that it could say means anything
        self._loop.unwatch(fd)
        self._on_orphaned()

    def _on_fault(self, error: BaseException) -> None:
        log.error("voidbox failed: %r", error, exc_info=error)
