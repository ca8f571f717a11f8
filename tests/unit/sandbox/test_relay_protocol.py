"""The relay's frames and requests: whole, bytewise, with trailing bytes, and random."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.agent.packing import pack, unpack
from voidbox.sandbox.relay import protocol, requests
from voidbox.sandbox.relay.mailbox import Message
from voidbox.sandbox.relay.protocol import Decoder, ProtocolError
from voidbox.sandbox.relay.requests import Request, RequestError

LIMIT = 1000


def drain(decoder: Decoder) -> list[bytes]:
    payloads = []
    while (payload := decoder.next()) is not None:
        payloads.append(payload)
    return payloads


@given(st.lists(st.binary(max_size=200), max_size=5), st.lists(st.integers(1, 50)))
def test_frames_come_out_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(protocol.encode(payload) for payload in payloads)
    decoder, found = Decoder(LIMIT), []
    for size in [*cuts, len(stream)]:
        decoder.feed(stream[:size])
        stream = stream[size:]
        found += drain(decoder)
    assert found == payloads


def test_what_follows_a_frame_waits_for_its_rest() -> None:
    decoder = Decoder(LIMIT)
    frame = protocol.encode(b"second")
    decoder.feed(protocol.encode(b"first") + frame[:-1])
    assert drain(decoder) == [b"first"]
    decoder.feed(frame[-1:])
    assert drain(decoder) == [b"second"]


@given(st.binary(max_size=100))
def test_random_bytes_are_refused_or_waited_for(data: bytes) -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(data)
    if protocol.MAGIC.startswith(data[:4]):
        return
    with pytest.raises(ProtocolError, match="no frame"):
        drain(decoder)


def test_the_first_wrong_byte_is_enough() -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(b"vbx")
    with pytest.raises(ProtocolError, match="no frame"):
        decoder.next()


@pytest.mark.parametrize("length", [LIMIT + 1, 0xFFFFFFFF])
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(length: int) -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(protocol.HEADER.pack(protocol.MAGIC, length))
    with pytest.raises(ProtocolError, match="1000 at most"):
        decoder.next()
    decoder = Decoder(LIMIT)
    decoder.feed(protocol.encode(bytes(LIMIT)))
    assert drain(decoder) == [bytes(LIMIT)]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text("ab/.\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["op", "to", "text", "wait", "count", "else"]), values)
    | st.fixed_dictionaries({"op": st.sampled_from(sorted(requests.OPS)), "wait": values})
    | st.fixed_dictionaries({"op": st.sampled_from(sorted(requests.OPS)), "count": values})
)
def test_any_map_is_a_request_or_refused(sent: dict[str, object]) -> None:
    try:
        request = requests.parse(pack(sent))
    except RequestError as error:
        assert "\n" not in str(error)
        return
    assert request.op in requests.OPS
    assert 0 <= request.wait_s <= protocol.WAIT_S_MAX
    assert 1 <= request.count_max <= protocol.COUNT_MAX


@given(st.binary(max_size=100))
def test_random_payloads_raise_nothing_else(payload: bytes) -> None:
    with suppress(ProtocolError, RequestError):
        requests.parse(payload)


def test_a_request_is_read() -> None:
    sent = {"op": "send", "to": "bob", "text": "caf\udce9"}  # Latin-1 from a command line
    assert requests.parse(pack(sent)) == Request("send", "bob", "caf\udce9", 0, protocol.COUNT_MAX)
    assert requests.parse(pack({"op": "receive", "wait": 1.5, "count": 2})).wait_s == 1.5


def test_a_text_is_measured_in_bytes() -> None:
    most = "é" * (protocol.TEXT_BYTES_MAX // 2)
    assert requests.parse(pack({"op": "send", "text": most})).text == most
    with pytest.raises(RequestError, match="8193 bytes: 8192 at most"):
        requests.parse(pack({"op": "send", "text": most + "x"}))


def test_the_longest_request_and_the_fullest_reply_fit() -> None:
    longest = {"op": "send", "to": "x" * 255, "text": "x" * protocol.TEXT_BYTES_MAX}
    assert len(pack(longest)) <= protocol.REQUEST_BYTES_MAX
    messages, room = [], protocol.REPLY_BYTES_MAX - 100
    while room >= 194:  # many small ones have the most beside their text
        messages.append(Message("n" * 128, "", 1e9, 192))
        room -= 192
    frame = requests.encode_messages(messages, 1 << 20)
    assert len(frame) <= protocol.REPLY_BYTES_MAX
    decoded = unpack(frame[protocol.HEADER.size :])
    assert len(decoded["messages"]) == len(messages)
