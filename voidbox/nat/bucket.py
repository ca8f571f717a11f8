"""How many bytes a second may pass: a token bucket. No clock, no I/O."""

from __future__ import annotations

BURST_S = 0.1  # what may pass at once, in time at the rate


class Bucket:
    """Fills as time passes. Whoever finds something in it may take more, and the next one waits.

    Args:
        rate_bytes_s: at least 1.
        now_ns: a monotonic clock's.
    """

    def __init__(self, rate_bytes_s: int, now_ns: int) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._bytes = 0.0
        self._now_ns = now_ns

    def spend(self, size: int, now_ns: int) -> None:
        """Take bytes out, also more than there are."""
        earned = (now_ns - self._now_ns) * self._rate_bytes_s / 1e9
        self._now_ns = now_ns
        self._bytes = min(self._bytes + earned, self._rate_bytes_s * BURST_S) - size

    def wait_s(self, now_ns: int) -> float:
        """Return how long to wait until something may pass; 0 for now."""
        self.spend(0, now_ns)
        return 0.0 if self._bytes > 0 else (1 - self._bytes) / self._rate_bytes_s
