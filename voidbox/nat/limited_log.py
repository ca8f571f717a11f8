"""What a guest makes the network say, as lines of a log; too few to fill the host's disk."""

from __future__ import annotations

from collections.abc import Callable

from voidbox.loop_api import Loop, TimerHandle

LINES_MAX = 20  # in a second; the rest is counted
_PERIOD_S = 1.0


class LimitedLog:
    """Thread: loop.

    Args:
        log: takes a line.
    """

    def __init__(self, loop: Loop, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._log = log
        self._lines = self._omitted = 0
        self._timer: TimerHandle | None = None

    def add(self, text: str) -> None:
        """Write a line, if there is room for it in this second."""
        if self._timer is None:
            self._timer = self._loop.call_later(_PERIOD_S, self._end_period)
        if self._lines < LINES_MAX:
            self._lines += 1
            self._log(text)
        else:
            self._omitted += 1

    def _end_period(self) -> None:
        self._timer = None
        if self._omitted:
            self._log(f"and {self._omitted} more in that second")
        self._lines = self._omitted = 0

    def close(self) -> None:
        """Say what is still to be said."""
        if self._timer is not None:
            self._timer.cancel()
            self._end_period()
