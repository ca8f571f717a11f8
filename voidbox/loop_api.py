"""What lower layers ask of the event loop, so that none of them has to know which loop it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Never make it. Idempotent. Thread: loop."""
        ...


class Loop(Protocol):
    """A level-triggered event loop on one thread. Thread: loop, but for `call_soon`."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` while any of `events` holds; again for `fd` replaces both.

        `events` is select.EPOLLIN | select.EPOLLOUT, or 0 for errors and hang-ups alone, which
        are always reported.
        """
        ...

    def unwatch(self, fd: int) -> None:
        """Stop watching; must come before the descriptor is closed. Idempotent."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call it on the loop. Thread: any; calls from one thread keep their order."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Call it on the loop after a delay."""
        ...
