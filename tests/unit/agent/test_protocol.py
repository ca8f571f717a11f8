"""Frames: a stream cut anywhere gives the same ones, and windows that neither side can overdraw."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.agent import protocol
from voidbox.agent.protocol import (
    FROM_GUEST,
    FROM_HOST,
    HEADER,
    PAYLOAD_BYTES_MAX,
    WINDOW_BYTES,
    Decoder,
    Frame,
    ProtocolError,
    ReceiveWindow,
    SendWindow,
    decode_credit,
    encode,
    encode_credit,
)

Fields = tuple[int, int, bytes, int]
U32 = st.integers(0, 0xFFFFFFFF)
FRAMES = st.lists(
    st.tuples(
        st.sampled_from(sorted(FROM_HOST)), U32, st.binary(max_size=60), st.integers(0, 0xFFFF)
    ),
    max_size=8,
)


def fields(frame: Frame) -> Fields:
    return frame.type, frame.request, frame.payload, frame.flags


def feed(decoder: Decoder, data: bytes, step: int) -> list[Fields]:
    return [
        fields(frame)
        for at in range(0, len(data), step)
        for frame in decoder.feed(data[at : at + step])
    ]


def test_the_bytes_of_a_frame() -> None:
    assert encode(protocol.DATA, 0x01020304, b"payload", protocol.STDERR) == (
        b"vbxA" + bytes([1, 6]) + b"\x02\0" + b"\x04\x03\x02\x01" + b"\x07\0\0\0" + b"payload"
    )


@settings(max_examples=50)
@given(FRAMES, st.integers(1, 100))
def test_frames_come_out_however_the_stream_is_cut(frames: list[Fields], step: int) -> None:
    stream = b"".join(encode(*frame) for frame in frames)
    for size in (step, 1, len(stream) + 1):
        assert feed(Decoder(FROM_HOST), stream, size) == frames


@settings(max_examples=50)
@given(FRAMES, st.binary(min_size=1, max_size=40))
def test_what_follows_a_frame_does_not_change_it(frames: list[Fields], rest: bytes) -> None:
    decoder = Decoder(FROM_HOST)
    seen = []
    try:
        for frame in decoder.feed(b"".join(encode(*frame) for frame in frames) + rest):
            seen.append(fields(frame))
    except ProtocolError:
        pass
    assert seen[: len(frames)] == frames and len(seen) <= len(frames) + 1


@given(st.binary(max_size=200), st.sampled_from([FROM_HOST, FROM_GUEST]))
def test_random_bytes_are_frames_or_an_error(data: bytes, allowed: frozenset[int]) -> None:
    try:
        frames = list(Decoder(allowed).feed(data))
    except ProtocolError:
        return
    assert all(frame.type in allowed for frame in frames)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.pack(b"HTTP", 1, protocol.DATA, 0, 1, 0), "no frame: it starts with b'HTTP'"),
        (HEADER.pack(b"vbxA", 2, protocol.DATA, 0, 1, 0), "protocol version 2: this side speaks 1"),
        (HEADER.pack(b"vbxA", 1, 99, 0, 1, 0), "unknown type of frame: 99"),
        (HEADER.pack(b"vbxA", 1, protocol.EXEC, 0, 1, 0), "unknown type of frame: 16"),
        (HEADER.pack(b"vbxA", 1, protocol.DATA, 0, 1, PAYLOAD_BYTES_MAX + 1), "a payload of"),
        (HEADER.pack(b"vbxA", 1, protocol.DATA, 0, 1, 0xFFFFFFFF), "a payload of 4294967295"),
    ],
)
def test_a_bad_header_is_refused_before_its_payload(header: bytes, message: str) -> None:
    for step in (1, len(header)):
        with pytest.raises(ProtocolError, match=message):
            feed(Decoder(FROM_GUEST), header, step)


def test_the_longest_payload_passes_and_a_longer_one_is_not_sent() -> None:
    frame = encode(protocol.DATA, 1, bytes(PAYLOAD_BYTES_MAX))
    assert len(next(Decoder(FROM_GUEST).feed(frame)).payload) == PAYLOAD_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        encode(protocol.DATA, 1, bytes(PAYLOAD_BYTES_MAX + 1))


def test_credit() -> None:
    frame = next(Decoder(FROM_HOST).feed(encode_credit(7, 1234)))
    assert (frame.request, decode_credit(frame.payload)) == (7, 1234)
    for payload in (b"", b"123", b"12345"):
        with pytest.raises(ProtocolError, match="four bytes"):
            decode_credit(payload)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=30))
def test_windows_of_both_sides_agree(sizes: list[int]) -> None:
    """Whatever is sent within the window is accepted, and using all of it up opens it again."""
    sender, receiver = SendWindow(), ReceiveWindow()
    unused = []
    for size in sizes:
        while sender.room < size:
            sender.grant(receiver.use(unused.pop(0)))
        sender.spend(size)
        receiver.receive(size)
        unused.append(size)
    for size in unused:
        sender.grant(receiver.use(size))
    assert sender.room > WINDOW_BYTES * 3 // 4 - 2 * HEADER.size


def test_empty_frames_use_the_window_too() -> None:
    receiver = ReceiveWindow()
    with pytest.raises(ProtocolError, match="more DATA"):
        for _ in range(WINDOW_BYTES // HEADER.size + 1):
            receiver.receive(0)


def test_a_window_cannot_be_overdrawn_or_overfilled() -> None:
    receiver, sender = ReceiveWindow(), SendWindow()
    receiver.receive(sender.room)
    with pytest.raises(ProtocolError, match="more DATA than the window allows"):
        receiver.receive(0)
    with pytest.raises(ProtocolError, match="more CREDIT than was used"):
        sender.grant(1)
    sender.spend(sender.room)
    assert sender.room == 0
    sender.grant(WINDOW_BYTES)
    with pytest.raises(ProtocolError, match="more CREDIT than was used"):
        sender.grant(1)
