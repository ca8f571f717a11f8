"""A command's time limit, which stands still while the guest does.

The guest's clock goes on while its CPUs are paused. So time is counted in small steps, and a step
that took much longer than it should counts for no more than it might have: the guest was paused.
"""

from __future__ import annotations

import time

from guest_agent.loop import Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STEP_S = 0.5
_NOTHING_S = 0.001  # sums of fractions are not exact
STEP_S_MAX = 1.0  # a busy guest may be as late as this, and the time counts


class TimeLimit:
    """Calls `on_expired` once, after so many seconds in which the guest ran."""

    def __init__(self, loop: Loop, seconds: float, on_expired: Callable[[], None]) -> None:
        self._loop = loop
        self._left_s = seconds
        self._on_expired = on_expired
        self._timer: Timer | None = None
        self._wait()

    def _wait(self) -> None:
        self._began_at = time.monotonic()
        self._timer = self._loop.call_later(min(self._left_s, STEP_S), self._on_step)

    def _on_step(self) -> None:
        self._left_s -= min(time.monotonic() - self._began_at, STEP_S_MAX)
        if self._left_s > _NOTHING_S:
            self._wait()
        else:
            self._timer = None
            self._on_expired()

    def cancel(self) -> None:
        """Never call it. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
