"""What ends a sandbox from outside: its time limit, and the end of the process that owns it."""

from __future__ import annotations

import logging
import os
import select
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
        self._loop = EventLoop(self._on_fault)

    def start(self) -> None:
        """Begin to watch."""
        if self._parent_fd is not None:
            self._loop.call_soon(partial(self._watch_parent, self._parent_fd))
        self._loop.start()

    def set_time(self, seconds: float | None) -> None:
        """End the sandbox so many seconds from now; None for never."""
        self._loop.call_soon(partial(self._set_time, seconds))

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
        if seconds is not None:
            self._timer = self._loop.call_later(min(seconds, _DELAY_S_MAX), self._on_time)

    def _watch_parent(self, fd: int) -> None:
        self._loop.watch(fd, select.EPOLLIN, partial(self._on_parent, fd))

    def _on_parent(self, fd: int, ready: int) -> None:
        if ready & select.EPOLLIN and os.read(fd, 4096):
            return  # nothing that it could say means anything
        self._loop.unwatch(fd)
        self._on_orphaned()

    def _on_fault(self, error: BaseException) -> None:
        log.error("voidbox failed: %r", error, exc_info=error)
