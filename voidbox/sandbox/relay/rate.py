"""How often something may happen: a bucket of tokens that may run into debt."""

from __future__ import annotations


class Rate:
    """Sans-IO: the time is an argument.

    Args:
        per_s: tokens that come in a second.
        burst: the most that are saved up, and the most that may be owed.
    """

    __slots__ = ("_at_ns", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = self._tokens = burst
        self._at_ns: int | None = None

    def charge(self, now_ns: int) -> float | None:
        """Take a token; returns the seconds to wait before using it, None if too many are owed."""
        if self._at_ns is not None:
            grown = (now_ns - self._at_ns) * self._per_s / 1e9
            self._tokens = min(self._burst, self._tokens + grown)
        self._at_ns = now_ns
        if self._tokens - 1 < -self._burst:
            return None
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def charge_more(self, tokens: float) -> None:
        """Take more for what turned out to be dear; later charges wait for it."""
        self._tokens = max(-self._burst, self._tokens - tokens)
