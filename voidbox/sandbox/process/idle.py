"""Ends a sandbox that nobody has used for so long: `idle_timeout`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from voidbox.agent.core import Pong

_PERIOD_S_MIN = 0.05
_LOOKS = 4  # in the time limit


class IdleLimit:
    """Hears of each answer to a PING how long the guest has been idle. Thread: any.

    Who lies about it in the guest lives as long as without a limit, or not as long: that is its own
    affair.

    Args:
        limit_s: None for no limit.
        on_idle: called once, on the heartbeat's thread.
    """

    def __init__(
        self,
        limit_s: float | None,
        on_idle: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._on_idle = on_idle
        self._now = now
        self._lock = threading.Lock()  # covers _used_at
        self._used_at = now()
        self._is_over = False

    def period_s(self, usual_s: float) -> float:
        """Return how often to look."""
        if self._limit_s is None:
            return usual_s
        return max(_PERIOD_S_MIN, min(usual_s, self._limit_s / _LOOKS))

    def use(self) -> None:
        """Something was asked of the sandbox that its guest does not see."""
        with self._lock:
            self._used_at = self._now()

    def take(self, pong: Pong) -> None:
        """Take an answer; one of an agent that knows nothing of it means that it is in use."""
        if self._limit_s is None or self._is_over:
            return
        idle_s = pong.info.get("idle_s")
        if not isinstance(idle_s, int | float) or not math.isfinite(idle_s):
            return
        with self._lock:
            idle_s = min(idle_s, self._now() - self._used_at)
        if idle_s >= self._limit_s:
            self._is_over = True
            self._on_idle()
