"""Since when nobody has used the guest: no request was under way, and no command ran."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Activity:
    """What is asked with each PING. No time of use is shorter than it says, by one PING at most.

    Args:
        is_busy: whether a request is under way, or a command runs, now.
    """

    def __init__(
        self, is_busy: Callable[[], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_busy = is_busy
        self._now = now
        self._was_used = False
        self._idle_since = now()

    def use(self) -> None:
        """A request has begun."""
        self._was_used = True

    def idle_s(self) -> float:
        """Return for how many seconds nobody has used the guest, as far as is known."""
        is_busy = self._is_busy()
        if is_busy or self._was_used:
            self._idle_since = self._now()
        self._was_used = is_busy  # it may end at once after this
        return self._now() - self._idle_since
