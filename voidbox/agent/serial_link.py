"""A reliable byte stream over a serial line, for guests whose vsock does not work.

The line may carry anything before and between our segments, lose bytes and change them. So each
segment starts with a magic and ends its header with a checksum, is numbered, acknowledged and sent
again (go-back-N). A session begins with the host's SYN; a new SYN ends the session before.

How fast the line is shows only in use: an emulated UART takes two exits a byte. So the time until
something is sent again follows the measured round trips, and the number of segments under way
starts at one and grows with every acknowledgement: else a slow line would fill with copies.

    struct segment { char magic[4]; u8 type, zero; u16 length; u32 session, number, crc32; ... }

    host   SYN ─►              DATA 0 ─► DATA 1 ─►                  RESET ─►
    guest        ◄─ SYN_ACK                  ◄─ ACK 2 ◄─ DATA 0

`crc32` is that of the header before it and the payload. Sans-IO: bytes and times in, bytes out.
This file runs on both sides: the image build packs it beside the guest's agent.
"""

from __future__ import annotations

import struct
from binascii import crc32

MAGIC = b"vbxS"
SYN, SYN_ACK, DATA, ACK, NAK, RESET = 1, 2, 3, 4, 5, 6
_HEADER = struct.Struct("<4sBBHII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
SEGMENT_BYTES_MAX = 1024  # of payload
IN_FLIGHT_MAX = 8  # segments: a tty buffers 64 KiB and drops what comes beyond
BUFFER_BYTES_MAX = 4 << 10  # of what is to be sent: then `room` is 0
RETRY_NS = 1_000_000_000  # before a round trip was measured, and the least
RETRY_NS_MAX = 10_000_000_000
RETRIES_MAX = 8

CONNECTING, OPEN, CLOSED = "connecting", "open", "closed"

assert HEADER_BYTES == 20


def _encode(type: int, session: int, number: int, payload: bytes = b"") -> bytes:
    header = _HEADER.pack(MAGIC, type, 0, len(payload), session, number)
    return header + _CRC.pack(crc32(payload, crc32(header))) + payload


class SerialLink:
    """One end of the line.

    The host's end is made with the number of its session, a random one. The guest's is made
    without, and takes part in whatever session comes; `generation` counts them.

    Attributes:
        state: CONNECTING, OPEN or CLOSED.
        generation: how many sessions were opened here.
        is_dirty: bytes were thrown away as no segment: the line is not clean.
    """

    def __init__(self, session: int | None = None) -> None:
        self._is_host = session is not None
        self._session = session or 0
        self.state = CONNECTING
        self.generation = 0
        self.is_dirty = False
        self._line = bytearray()  # came, not yet cut into segments
        self._received = bytearray()
        # Segments without a payload, sent first: the latest of each type, which says all that those
        # before it did. A peer that sends and does not read fills no memory with answers.
        self._control: dict[int, bytes] = {}
        self._begin()
        self._is_syn_due = self._is_host

    def _begin(self) -> None:
        self._pending = bytearray()  # not yet in a segment
        self._in_flight: list[bytes] = []
        self._window = 1  # how many segments may be in flight
        self._timed: tuple[int, int] | None = None  # a segment's number and when it was sent
        self._round_trip_ns = 0  # smoothed; 0 before the first
        self._first = 0  # number of _in_flight[0]
        self._sent = 0  # how many of _in_flight are on their way
        self._expected = 0
        self._retries = 0
        self._has_gone_back = False
        self._retry_at_ns: int | None = None

    @property
    def room(self) -> int:
        """How many bytes send() takes now."""
        return max(0, BUFFER_BYTES_MAX - len(self._pending)) if self.state == OPEN else 0

    @property
    def is_idle(self) -> bool:
        """Whether the other side has acknowledged all that was sent."""
        return not self._pending and not self._in_flight

    @property
    def deadline_ns(self) -> int | None:
        """When to_write() is to be asked again though nothing happened."""
        return self._retry_at_ns

    def send(self, data: bytes) -> None:
        """Take bytes for the other side; `room` says how many fit."""
        if len(data) > self.room:
            raise ValueError(f"{len(data)} bytes where {self.room} fit")
        self._pending += data

    def receive(self) -> bytes:
        """Return what came from the other side since the last call."""
        data = bytes(self._received)
        self._received.clear()
        return data

    def close(self) -> None:
        """End the session; to_write() still returns the RESET."""
        if self.state != CLOSED and self._session:
            self._answer(RESET, self._session)
        self._end()

    def _end(self) -> None:
        self._begin()
        self._is_syn_due = False
        # The guest's end waits for the next session.
        self.state = CLOSED if self._is_host else CONNECTING

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take bytes from the line."""
        line = self._line
        line += data
        while True:
            start = line.find(MAGIC)
            if start != 0:
                # Keep what may be the beginning of a magic.
                keep = 0 if start > 0 else min(len(line), len(MAGIC) - 1)
                waste = start if start > 0 else len(line) - keep
                self.is_dirty |= waste > 0
                del line[:waste]
                if start < 0:
                    return
            if len(line) < HEADER_BYTES:
                return
            _, type, _, length, session, number = _HEADER.unpack_from(line)
            end = HEADER_BYTES + length
            if length > SEGMENT_BYTES_MAX:
                self._skip()
                continue
            if len(line) < end:
                return
            payload = bytes(line[HEADER_BYTES:end])
            checksum = crc32(payload, crc32(line[: _HEADER.size]))
            if _CRC.unpack_from(line, _HEADER.size)[0] != checksum:
                self._skip()  # a whole segment may lie within what this one claimed
                continue
            del line[:end]
            self._on_segment(type, session, number, payload, now_ns)

    def _skip(self) -> None:
        self.is_dirty = True
        del self._line[:1]

    def _on_segment(
        self, type: int, session: int, number: int, payload: bytes, now_ns: int
    ) -> None:
        if type == SYN and not self._is_host:
            self._on_syn(session)
        elif type == DATA and not self._is_host and not self._is_open(session):
            self._answer(RESET, session)  # that session is over
        elif session != self._session or not session:
            pass
        elif type == SYN_ACK and self._is_host and self.state == CONNECTING:
            self._open()
        elif type == DATA and self.state == OPEN:
            # NAK says that a segment is missing; a second copy is merely acknowledged again.
            answer = NAK if number > self._expected else ACK
            if number == self._expected:
                self._expected += 1
                self._received += payload
            self._answer(answer, session, self._expected)
        elif type in (ACK, NAK) and self.state == OPEN:
            self._on_ack(number, now_ns)
            if type == NAK:
                self._go_back()
        elif type == RESET:
            self._end()

    def _on_syn(self, session: int) -> None:
        if session and session != self._session:
            self._end()
            self._received.clear()
            self._session = session
            self._open()
        self._answer(SYN_ACK, session)

    def _is_open(self, session: int) -> bool:
        return self.state == OPEN and session == self._session

    def _answer(self, type: int, session: int, number: int = 0) -> None:
        self._control[type] = _encode(type, session, number)

    def _open(self) -> None:
        self.state = OPEN
        self.generation += 1
        self._is_syn_due = False
        self._retry_at_ns = None
        self._retries = 0

    def _on_ack(self, number: int, now_ns: int) -> None:
        done = number - self._first
        if 0 < done <= len(self._in_flight):
            self._window = min(self._window + done, IN_FLIGHT_MAX)
            if self._timed is not None and number > self._timed[0]:
                round_trip_ns = now_ns - self._timed[1]
                old_ns = self._round_trip_ns or round_trip_ns
                self._round_trip_ns = (7 * old_ns + round_trip_ns) // 8
                self._timed = None
            del self._in_flight[:done]
            self._first = number
            self._sent = max(0, self._sent - done)
            self._retries = 0
            self._has_gone_back = False
            self._retry_at_ns = None  # to_write() sets it anew

    def _go_back(self) -> None:
        """Send everything again, once: what is already under way brings more NAKs."""
        if not self._has_gone_back:
            self._has_gone_back = True
            self._sent = 0
            self._timed = None  # which of the copies is acknowledged could not be told

    def to_write(self, now_ns: int) -> bytes:
        """Return the bytes for the line now, often none."""
        if self._retry_at_ns is not None and now_ns >= self._retry_at_ns:
            self._on_timeout()
        out = bytearray().join(self._control.values())
        self._control.clear()
        if self._is_syn_due:
            out += _encode(SYN, self._session, 0)
            self._is_syn_due = False
            self._set_timer(now_ns)
        if self.state == OPEN:
            while self._pending and len(self._in_flight) < self._window:
                payload = bytes(self._pending[:SEGMENT_BYTES_MAX])
                del self._pending[:SEGMENT_BYTES_MAX]
                number = self._first + len(self._in_flight)
                self._in_flight.append(_encode(DATA, self._session, number, payload))
            end = min(len(self._in_flight), self._window)
            if self._sent < end:
                out += b"".join(self._in_flight[self._sent : end])
                self._sent = end
                if self._timed is None and not self._retries:
                    self._timed = (self._first + end - 1, now_ns)
                self._set_timer(now_ns)
            elif self._in_flight and self._retry_at_ns is None:
                self._set_timer(now_ns)
        return bytes(out)

    def _on_timeout(self) -> None:
        self._retry_at_ns = None
        if self.state == CONNECTING:  # how long to go on is the caller's to decide
            self._is_syn_due = True
            return
        self._retries += 1
        self._sent = 0
        self._timed = None
        self._window = 1
        if self._retries > RETRIES_MAX:
            self.close()

    def _set_timer(self, now_ns: int) -> None:
        # Four round trips: a window that has just doubled takes two.
        retry_ns = max(RETRY_NS, 4 * self._round_trip_ns)
        self._retry_at_ns = now_ns + min(retry_ns << self._retries, RETRY_NS_MAX)
