"""How many sandboxes are started at a time: a limit that follows how long their starts take."""

from __future__ import annotations

_GROWTH = 0.25  # a start that was quick lets a quarter of another one be under way
_QUICK, _SLOW = 1.5, 3.0  # times the quickest start of late
_FORGET = 0.02  # of the quickest, a start: a host may get busier for good
_SMOOTHING = 0.2


class StartLimit:
    """Widens while starts are quick, and halves when they are slow or fail. Pure.

    Args:
        first: the limit at the beginning.
        most: what it never exceeds.

    Attributes:
        mean_s: how long starts took of late; 0 before the first.
    """

    def __init__(self, first: int, most: int) -> None:
        self._limit = float(first)
        self._most = most
        self._quickest_s = 0.0
        self._holds = 0  # so many starts to come were begun before the limit was narrowed
        self.mean_s = 0.0

    @property
    def limit(self) -> int:
        """How many starts may be under way, 1 or more."""
        return int(self._limit)

    def succeeded(self, took_s: float) -> None:
        """A start took so long."""
        self.mean_s += (_SMOOTHING if self.mean_s else 1.0) * (took_s - self.mean_s)
        self._quickest_s += self._quickest_s * _FORGET
        if not self._quickest_s or took_s < self._quickest_s:
            self._quickest_s = took_s
        if took_s <= self._quickest_s * _QUICK:
            self._limit = min(float(self._most), self._limit + _GROWTH)
        elif took_s > self._quickest_s * _SLOW:
            self._narrow()
        elif self._holds:
            self._holds -= 1

    def failed(self) -> None:
        """A start failed: perhaps there were too many."""
        self._narrow()

    def _narrow(self) -> None:
        if self._holds:  # it began under the limit that has been narrowed since
            self._holds -= 1
            return
        self._holds = self.limit - 1
        self._limit = max(1.0, self._limit / 2)
