"""Two ends of the serial link, a clock of our own, and a line that does its worst."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.agent import serial_link
from voidbox.agent.serial_link import CLOSED, CONNECTING, OPEN, SerialLink

MS = 1_000_000


class Line:
    """Joins two ends. Each direction moves `bytes_per_ms`, and now and then does harm.

    Args:
        harm: of 1,000 writes, how many are lost, changed or preceded by noise.
    """

    def __init__(self, bytes_per_ms: int = 1000, harm: int = 0, seed: int = 0) -> None:
        self.host = SerialLink(session=7)
        self.guest = SerialLink()
        self.now_ns = 0
        self.received = {"host": b"", "guest": b""}
        self._bytes_per_ms = bytes_per_ms
        self._harm = harm
        self._random = random.Random(seed)
        self._under_way = {"host": bytearray(), "guest": bytearray()}
        self.written = 0

    def step(self) -> None:
        """Let a millisecond pass."""
        self.now_ns += MS
        for name, link, other in (
            ("host", self.host, self.guest),
            ("guest", self.guest, self.host),
        ):
            data = link.to_write(self.now_ns)
            self.written += len(data)
            self._under_way[name] += self._do_harm(data)
            other.feed(bytes(self._under_way[name][: self._bytes_per_ms]), self.now_ns)
            del self._under_way[name][: self._bytes_per_ms]
        self.received["host"] += self.host.receive()
        self.received["guest"] += self.guest.receive()

    def _do_harm(self, data: bytes) -> bytes:
        if not data or self._random.randrange(1000) >= self._harm:
            return data
        kind = self._random.randrange(4)
        at = self._random.randrange(len(data))
        if kind == 0:
            return data[:at] + data[at + 1 :]
        if kind == 1:
            return data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :]
        if kind == 2:
            return b"[    1.0] console noise vbxS\xff\r\n" + data
        return b""

    def exchange(self, to_guest: bytes, to_host: bytes, limit_ms: int = 600_000) -> None:
        """Send both ways until all has arrived."""
        queues = [(self.host, bytearray(to_guest)), (self.guest, bytearray(to_host))]
        for _ in range(limit_ms):
            for link, queue in queues:
                taken = min(len(queue), link.room)
                link.send(bytes(queue[:taken]))
                del queue[:taken]
            self.step()
            if self.received == {"host": to_host, "guest": to_guest}:
                return
        raise AssertionError("it does not arrive")


def test_bytes_arrive_both_ways() -> None:
    line = Line()
    line.exchange(bytes(range(256)) * 100, b"answer " * 1000)
    assert line.host.state == line.guest.state == OPEN


def test_a_slow_line_is_not_filled_with_copies() -> None:
    """An emulated UART gives two bytes a millisecond: no time-out may come before the answer."""
    line = Line(bytes_per_ms=2)
    data = bytes(20_000)
    line.exchange(data, b"")
    assert line.written < 1.2 * len(data)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    harm=st.integers(0, 100),
    speed=st.integers(50, 5000),
    sizes=st.tuples(st.integers(0, 30_000), st.integers(0, 30_000)),
)
def test_harm_is_mended(seed: int, harm: int, speed: int, sizes: tuple[int, int]) -> None:
    source = random.Random(seed)
    # The magic inside the data must not confuse anybody.
    to_guest = source.randbytes(sizes[0]) + serial_link.MAGIC
    to_host = serial_link.MAGIC * 3 + source.randbytes(sizes[1])
    Line(speed, harm, seed).exchange(to_guest, to_host)


@given(st.binary(max_size=5000), st.integers(1, 50))
def test_noise_alone_opens_nothing_and_does_not_pile_up(noise: bytes, piece: int) -> None:
    guest = SerialLink()
    for at in range(0, len(noise), piece):
        guest.feed(noise[at : at + piece], 0)
    assert guest.state == CONNECTING and guest.receive() == b""
    assert len(guest._line) <= serial_link.HEADER_BYTES + serial_link.SEGMENT_BYTES_MAX


def test_a_new_host_begins_a_new_session() -> None:
    line = Line()
    line.exchange(b"first", b"")
    line.host = SerialLink(session=8)
    line.received = {"host": b"", "guest": b""}
    line.step()  # what the guest says before it knows of the new host goes to the old one
    line.step()
    line.exchange(b"second", b"hello")
    assert line.guest.generation == 2


def test_the_end_is_told_and_the_guest_waits_for_the_next() -> None:
    line = Line()
    line.exchange(b"x", b"y")
    line.host.close()
    line.step()
    assert (line.host.state, line.guest.state) == (CLOSED, CONNECTING)


def test_a_restarted_guest_ends_the_hosts_session() -> None:
    line = Line()
    line.exchange(b"x", b"")
    line.guest = SerialLink()
    line.host.send(b"more")
    for _ in range(100):
        line.step()
    assert line.host.state == CLOSED


def test_a_dead_line_is_given_up() -> None:
    line = Line()
    line.exchange(b"x", b"")
    line.host.send(b"more")
    for _ in range(200):
        line.host.to_write(line.now_ns)
        line.now_ns += 1000 * MS
    assert line.host.state == CLOSED


def test_what_is_to_be_sent_is_bounded() -> None:
    line = Line()
    line.exchange(b"x", b"")
    line.host.send(bytes(line.host.room))
    assert line.host.room == 0
