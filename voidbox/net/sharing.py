"""How streams of the guest and streams to it share the line. No I/O, no clock.

What goes to the guest waits in its receive buffers, up to megabytes of it, and what acknowledges
the guest's own data waits behind. Then a stream of the guest moves one window each time that all of
this has been worked off, and starves beside one the other way. So while there are both, less may be
in flight to the guest, as long as it gets more than twice what it sends; and more again otherwise.
"""

from __future__ import annotations

STREAM_BYTES_MIN = 4096  # of a segment: a stream's, not a request's
PERIOD_NS = 20_000_000  # how long is counted before something changes
SILENCE_NS = 50_000_000  # after so long without a segment like that the guest's stream is over
# On each connection. The most is what is kept for it anyway; the least keeps a guest busy that is
# a millisecond away.
FLIGHT_BYTES_MIN, FLIGHT_BYTES_MAX = 128 << 10, 2 << 20


class Sharing:
    """Thread: loop.

    Attributes:
        is_active: the guest sends a stream.
        flight_bytes_max: what may be in flight to the guest on each connection, while it does.
    """

    __slots__ = ("_from_guest", "_last_ns", "_start_ns", "_to_guest", "flight_bytes_max",
                 "is_active")  # fmt: skip

    def __init__(self) -> None:
        self.is_active = False
        self.flight_bytes_max = FLIGHT_BYTES_MAX
        self._from_guest = self._to_guest = 0
        self._start_ns = self._last_ns = 0

    def took(self, size: int, now_ns: int) -> None:
        """The guest has sent a segment with at least STREAM_BYTES_MIN."""
        if not self.is_active:
            self.is_active = True
            self._start(now_ns)
        self._from_guest += size
        self._last_ns = now_ns

    def gave(self, size: int) -> None:
        """Data was sent to the guest, while is_active."""
        self._to_guest += size

    def look(self, now_ns: int) -> None:
        """Draw the consequences, while is_active."""
        if now_ns - self._last_ns > SILENCE_NS:
            self.is_active = False
            self.flight_bytes_max = FLIGHT_BYTES_MAX
        elif now_ns - self._start_ns >= PERIOD_NS:
            if self._to_guest > 2 * self._from_guest:
                self.flight_bytes_max = max(self.flight_bytes_max // 2, FLIGHT_BYTES_MIN)
            elif self._from_guest > 2 * self._to_guest:
                self.flight_bytes_max = min(self.flight_bytes_max * 2, FLIGHT_BYTES_MAX)
            self._start(now_ns)

    def _start(self, now_ns: int) -> None:
        self._start_ns = now_ns
        self._from_guest = self._to_guest = 0
