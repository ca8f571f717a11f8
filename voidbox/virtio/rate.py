"""How much a device may do a second: token buckets, for bytes and for requests. No clock, no I/O.

A bucket holds what may be used at once; it fills as time passes. A request that finds something in
it may take more than there is: the next one waits until that is paid for. So a request of any size
is served, and the rate holds on average.
"""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple

BURST_S = 0.1  # what a bucket holds, in time at its rate
_S = 1_000_000_000


class Rates(NamedTuple):
    """Limits of a device; None for none.

    Attributes:
        bytes_s: both directions together.
        requests_s: of any size.
    """

    bytes_s: int | None = None
    requests_s: int | None = None


class TokenBucket:
    """One limit.

    Args:
        rate: tokens a second, at least 1.
        now_ns: a monotonic clock's.
    """

    def __init__(self, rate: int, now_ns: int) -> None:
        if rate < 1:
            raise ValueError(f"a rate of {rate}")
        self._rate = rate
        self._size = max(1.0, rate * BURST_S)
        self._tokens = self._size
        self._at_ns = now_ns

    def wait_ns(self, now_ns: int) -> int:
        """Return how long to wait until something may be taken; 0 for now."""
        earned = (now_ns - self._at_ns) * self._rate / _S
        self._at_ns = now_ns
        self._tokens = min(self._size, self._tokens + earned)
        return 0 if self._tokens > 0 else int((1 - self._tokens) * _S / self._rate) + 1

    def take(self, count: int) -> None:
        """Take tokens, also more than there are."""
        self._tokens -= count


class RateLimiter:
    """The limits of one device. Thread: the device's."""

    def __init__(self, rates: Rates, now_ns: int) -> None:
        self.rates = rates
        self._bytes = TokenBucket(rates.bytes_s, now_ns) if rates.bytes_s is not None else None
        self._requests = (
            TokenBucket(rates.requests_s, now_ns) if rates.requests_s is not None else None
        )

    def wait_ns(self, now_ns: int) -> int:
        """Return how long to wait until the next request may begin; 0 for now."""
        buckets = (self._bytes, self._requests)
        return max((bucket.wait_ns(now_ns) for bucket in buckets if bucket is not None), default=0)

    def take(self, byte_count: int) -> None:
        """A request of so many bytes has begun."""
        if self._bytes is not None:
            self._bytes.take(byte_count)
        if self._requests is not None:
            self._requests.take(1)
