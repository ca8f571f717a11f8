"""The serial line's stream: two ends joined by a line that loses, doubles, changes and injects."""

from __future__ import annotations

import os
import random
import struct
from binascii import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.agent.serial_link import (
    ACK,
    BUFFER_BYTES_MAX,
    CLOSED,
    CONNECTING,
    DATA,
    IN_FLIGHT_MAX,
    MAGIC,
    NAK,
    OPEN,
    RESET,
    RETRIES_MAX,
    RETRY_NS_MAX,
    SEGMENT_BYTES_MAX,
    SYN,
    SYN_ACK,
    SerialLink,
)

SESSION = 0x1234567
STEP_NS = 50_000_000


def segment(type: int, session: int, number: int, payload: bytes = b"") -> bytes:
    """A segment as its description has it, independently of the code."""
    header = MAGIC + struct.pack("<BBHII", type, 0, len(payload), session, number)
    return header + struct.pack("<I", crc32(header + payload)) + payload


class Pair:
    """Two ends and the line between them; `spoil` does to the bytes of each step what it likes."""

    def __init__(self, session: int = SESSION) -> None:
        self.host, self.guest = SerialLink(session), SerialLink()
        self.now_ns = 0
        self.spoil = lambda data: data
        self.to_send = {"host": b"", "guest": b""}
        self.got = {"host": b"", "guest": b""}

    def step(self, step_ns: int = STEP_NS) -> None:
        self.now_ns += step_ns
        for name, end, other in (
            ("host", self.host, self.guest),
            ("guest", self.guest, self.host),
        ):
            room = end.room
            end.send(self.to_send[name][:room])
            self.to_send[name] = self.to_send[name][room:]
            other.feed(self.spoil(end.to_write(self.now_ns)), self.now_ns)
            self.got["guest" if name == "host" else "host"] += other.receive()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def connect(self) -> Pair:
        self.steps(2)
        assert (self.host.state, self.guest.state) == (OPEN, OPEN)
        return self


def test_the_bytes_of_a_segment() -> None:
    host = SerialLink(SESSION)
    assert host.to_write(0) == segment(SYN, SESSION, 0)
    host.feed(segment(SYN_ACK, SESSION, 0), 0)
    host.send(b"some")
    assert host.to_write(0) == segment(DATA, SESSION, 0, b"some")
    host.feed(segment(DATA, SESSION, 0, b"answer") + segment(ACK, SESSION, 1), 0)
    assert host.receive() == b"answer" and host.to_write(0) == segment(ACK, SESSION, 1)
    host.close()
    assert host.to_write(0) == segment(RESET, SESSION, 0)


def test_much_data_both_ways() -> None:
    pair = Pair().connect()
    there, back = os.urandom(300_000), MAGIC * 20_000
    pair.to_send = {"host": there, "guest": back}
    pair.steps(100)
    assert pair.got == {"guest": there, "host": back}
    assert not pair.host.is_dirty and not pair.guest.is_dirty


@pytest.mark.parametrize("step", [1, 2, 7, 19, 21, 1000])
def test_segments_come_out_however_the_line_cuts_them(step: int) -> None:
    guest = SerialLink()
    payload = b"vbx" + MAGIC + bytes(range(256)) + segment(SYN, 99, 0)  # as unlucky as can be
    line = segment(SYN, SESSION, 0) + b"".join(
        segment(DATA, SESSION, number, payload) for number in range(3)
    )
    for at in range(0, len(line), step):
        guest.feed(line[at : at + step], 0)
    assert guest.receive() == payload * 3 and guest.generation == 1


NOISE = {
    "a 0xFF": b"\xff",
    "the beginning of a magic": b"vbx",
    "a magic": MAGIC,
    "ten of them": MAGIC * 10,
    "a console": b"[    0.000000] Linux version 6.12\r\n" * 100,
    "a segment cut off": segment(SYN, SESSION, 0)[:-1],
    "a segment changed": segment(DATA, SESSION, 0, b"changed").replace(b"changed", b"Changed"),
    "a length beyond all": MAGIC + b"\xff" * 16,
    "a type that is none": segment(77, SESSION, 0),
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_before_and_between_segments(noise: bytes) -> None:
    pair = Pair()
    pair.guest.feed(noise, 0)
    pair.host.feed(noise, 0)
    pair.steps(60)  # a header that lies is mended by what comes after it
    assert pair.guest.state == OPEN
    pair.guest.feed(noise, 0)
    pair.host.feed(noise, 0)
    pair.to_send = {"host": b"there" * 1000, "guest": b"back" * 1000}
    pair.steps(200)
    assert pair.got == {"guest": b"there" * 1000, "host": b"back" * 1000}


class Spoiler:
    """Spoils a share of what passes: drops, doubles, changes, injects; at times whole bursts."""

    def __init__(self, seed: int, rate: float) -> None:
        self.random = random.Random(seed)
        self.rate = rate

    def __call__(self, data: bytes) -> bytes:
        out = bytearray()
        at = 0
        while at < len(data):
            piece = data[at : at + self.random.randint(1, 2000)]
            at += len(piece)
            if self.random.random() >= self.rate:
                out += piece
                continue
            kind = self.random.choice(["drop", "double", "change", "inject", "cut"])
            if kind == "double":
                out += piece * 2
            elif kind == "change":
                spot = self.random.randrange(len(piece))
                out += piece[:spot] + bytes([piece[spot] ^ 0x40]) + piece[spot + 1 :]
            elif kind == "inject":
                out += piece + self.random.choice([b"\xff", MAGIC, b"panic\r\n", piece[:20]])
            elif kind == "cut":
                out += piece[: len(piece) // 2]
        return bytes(out)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.floats(0.01, 0.4),
    st.binary(max_size=30),
    st.integers(0, 60_000),
)
def test_a_bad_line_delivers_all_in_order_or_ends(
    seed: int, rate: float, pattern: bytes, size: int
) -> None:
    there = (b"%d:" % seed + pattern + MAGIC) * (size // 20 + 1)
    back = there[::-1]
    pair = Pair()
    pair.to_send = {"host": there, "guest": back}
    pair.spoil = Spoiler(seed, rate)
    for _ in range(20_000):
        pair.step()
        assert there.startswith(pair.got["guest"]) and back.startswith(pair.got["host"])
        if pair.host.state == CLOSED or pair.got == {"guest": there, "host": back}:
            break
        if pair.guest.generation and pair.guest.state == CONNECTING:
            break
    else:
        raise AssertionError("neither done nor over")


def test_a_line_that_is_mostly_good_delivers_everything() -> None:
    delivered = 0
    for seed in range(10):
        pair = Pair()
        pair.to_send = {"host": bytes(30_000), "guest": b"x" * 30_000}
        pair.spoil = Spoiler(seed, 0.05)
        pair.steps(1000)
        delivered += pair.got == {"guest": bytes(30_000), "host": b"x" * 30_000}
    assert delivered == 10


def test_what_was_lost_is_sent_again_at_once_where_something_follows_it() -> None:
    pair = Pair().connect()
    losses = iter([True])
    pair.spoil = lambda data: data[100:] if len(data) > 5000 and next(losses, False) else data
    pair.to_send["host"] = bytes(200_000)
    for _ in range(8):
        pair.step(1)  # no time goes by: only a NAK can have asked for it
    assert len(pair.got["guest"]) > 3 * IN_FLIGHT_MAX * SEGMENT_BYTES_MAX


def test_a_missing_segment_is_told_and_a_second_copy_is_acknowledged_again() -> None:
    guest = SerialLink()
    guest.feed(segment(SYN, SESSION, 0), 0)
    guest.to_write(0)
    guest.feed(segment(DATA, SESSION, 1, b"b"), 0)
    assert guest.to_write(0) == segment(NAK, SESSION, 0) and guest.receive() == b""
    guest.feed(segment(DATA, SESSION, 0, b"a"), 0)
    assert guest.to_write(0) == segment(ACK, SESSION, 1)
    guest.feed(segment(DATA, SESSION, 0, b"a"), 0)
    assert guest.to_write(0) == segment(ACK, SESSION, 1) and guest.receive() == b"a"


def test_the_host_asks_until_somebody_answers() -> None:
    host, now_ns, count = SerialLink(SESSION), 0, 0
    for _ in range(100):
        count += host.to_write(now_ns) == segment(SYN, SESSION, 0)
        assert host.state == CONNECTING and host.deadline_ns is not None
        now_ns = host.deadline_ns
    assert count == 100


def test_a_new_syn_ends_the_session_before() -> None:
    pair = Pair().connect()
    pair.to_send["guest"] = b"for the first" * 1000
    pair.guest.send(b"never seen")
    second = SerialLink(SESSION + 1)
    pair.guest.feed(second.to_write(0), 0)
    assert (pair.guest.generation, pair.guest.state) == (2, OPEN)
    second.feed(pair.guest.to_write(0), 0)
    assert second.state == OPEN and second.receive() == b""
    pair.guest.send(b"for the second")
    second.feed(pair.guest.to_write(0), 0)
    assert second.receive() == b"for the second"
    # What the first still sends ends it.
    pair.host.send(b"late")
    pair.guest.feed(pair.host.to_write(pair.now_ns), 0)
    assert pair.guest.receive() == b""
    pair.host.feed(pair.guest.to_write(pair.now_ns), 0)
    assert pair.host.state == CLOSED and pair.guest.state == OPEN


def test_a_syn_said_twice_opens_one_session() -> None:
    guest = SerialLink()
    guest.feed(segment(SYN, SESSION, 0) * 2 + segment(DATA, SESSION, 0, b"x"), 0)
    guest.feed(segment(SYN, SESSION, 0), 0)
    assert guest.generation == 1 and guest.receive() == b"x"


def test_reset_ends_the_session_and_the_guest_waits_for_another() -> None:
    pair = Pair().connect()
    pair.host.close()
    pair.host.close()
    assert (pair.host.state, pair.host.room) == (CLOSED, 0)
    pair.step()
    assert (pair.guest.state, pair.guest.room) == (CONNECTING, 0)
    assert pair.guest.deadline_ns is None and pair.guest.to_write(1 << 60) == b""
    pair.host = SerialLink(SESSION + 1)
    pair.connect()
    assert pair.guest.generation == 2


def test_a_guest_whose_end_was_not_heard_says_it_again() -> None:
    pair = Pair().connect()
    pair.guest.close()
    pair.guest.to_write(pair.now_ns)  # lost
    pair.to_send["host"] = b"are you there?"
    pair.steps(2)
    assert pair.host.state == CLOSED


def test_a_guest_that_was_started_again_ends_the_hosts_session() -> None:
    pair = Pair().connect()
    pair.guest = SerialLink()
    pair.to_send["host"] = b"are you there?"
    pair.steps(2)
    assert pair.host.state == CLOSED


def test_a_line_that_is_cut_ends_the_session_in_bounded_time() -> None:
    pair = Pair().connect()
    pair.spoil = lambda data: b""
    pair.to_send = {"host": b"x", "guest": b"y"}
    pair.steps((RETRIES_MAX + 2) * RETRY_NS_MAX // STEP_NS)
    assert (pair.host.state, pair.guest.state) == (CLOSED, CONNECTING)


def test_session_zero_is_none() -> None:
    guest = SerialLink()
    guest.feed(segment(SYN, 0, 0) + segment(DATA, 0, 0, b"x"), 0)
    assert guest.generation == 0 and guest.receive() == b""


@settings(max_examples=100)
@given(
    st.lists(
        st.builds(
            segment,
            st.sampled_from([SYN, SYN_ACK, DATA, ACK, NAK, RESET, 9]),
            st.sampled_from([0, SESSION, 5]),
            st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
            st.binary(max_size=10),
        )
        | st.binary(max_size=30),
        max_size=20,
    ),
    st.sampled_from([None, SESSION]),
)
def test_hostile_segments_break_nothing(parts: list[bytes], session: int | None) -> None:
    link = SerialLink(session)
    for number, part in enumerate(parts):
        link.feed(part, 0)
        if link.room:
            link.send(b"some")
        link.to_write(number * STEP_NS)
        link.receive()
    assert link.state in (CONNECTING, OPEN, CLOSED)


def test_more_than_fits_is_refused() -> None:
    pair = Pair().connect()
    pair.host.send(bytes(BUFFER_BYTES_MAX))
    assert pair.host.room == 0
    with pytest.raises(ValueError, match="where 0 fit"):
        pair.host.send(b"x")


FLOODS = {
    "copies": segment(DATA, SESSION, 0),
    "from the future": segment(DATA, SESSION, 5, b"data"),
    "of another session": segment(DATA, SESSION + 1, 0),
    "the same session again": segment(SYN, SESSION, 0),
    "new sessions": segment(SYN, 1, 0) + segment(SYN, 2, 0),
    "wants all again": segment(NAK, SESSION, 0),
    "ends": segment(RESET, SESSION, 0) + segment(SYN, 1, 0) + segment(SYN, SESSION, 0),
    "zeros": bytes(100),
    "empty headers": MAGIC + bytes(20),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_while_the_line_takes_nothing_fills_no_memory(flood: bytes) -> None:
    """The other side sends and does not read: to_write() is not called, and answers pile up."""
    pair = Pair().connect()
    for link in (pair.host, pair.guest):
        for _ in range(5):
            link.feed(flood * 500, 0)
            link.receive()
        assert len(link.to_write(pair.now_ns)) < 2 * IN_FLIGHT_MAX * SEGMENT_BYTES_MAX
        assert len(link._line) < 2 * SEGMENT_BYTES_MAX


def test_a_slow_line_is_not_filled_with_copies() -> None:
    """An emulated UART gives two bytes a millisecond: no time-out may come before the answer."""
    host, guest = SerialLink(SESSION), SerialLink()
    to_guest, to_host = bytearray(), bytearray()
    to_send, written = bytearray(20_000), 0
    for now_ms in range(60_000):
        now_ns = now_ms * 1_000_000
        for link, line, back in ((host, to_guest, to_host), (guest, to_host, to_guest)):
            link.feed(bytes(back[:2]), now_ns)
            del back[:2]
            data = link.to_write(now_ns)
            line += data
            written += len(data)
        room = host.room
        host.send(bytes(to_send[:room]))
        del to_send[:room]
        if not to_send and not host.deadline_ns:
            break
    assert len(guest.receive()) == 20_000
    assert written < 1.2 * 20_000
