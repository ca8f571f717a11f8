from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vsock.guest import GUEST_CID, RW, raw
from voidbox.buffers import write_bytes
from voidbox.vsock import packet
from voidbox.vsock.packet import Header, PacketError


def pieces(data: bytes, cuts: list[int]) -> list[memoryview]:
    """`data` in buffers that end at each cut; some may be empty."""
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [memoryview(bytearray(data[start:end])) for start, end in pairwise(ends)]


@given(st.binary(max_size=100), st.lists(st.integers(0, 150), max_size=8))
def test_any_layout_parses_alike(payload: bytes, cuts: list[int]) -> None:
    header, found = packet.parse(pieces(raw(RW, 5, 6, payload), cuts), GUEST_CID)
    assert (header.src_port, header.dst_port, header.op) == (5, 6, RW)
    assert b"".join(found) == payload


def test_bytewise_and_trailing() -> None:
    data = raw(RW, 5, 6, b"hello")
    whole = [memoryview(data + b"trailing")]
    bytewise = pieces(data, list(range(len(data))))
    for buffers in (whole, bytewise):
        _, found = packet.parse(buffers, GUEST_CID)
        assert b"".join(found) == b"hello"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "less than a header"),
        (raw(RW, 1, 2)[:43], "less than a header"),
        (raw(RW, 1, 2, b"abc")[:-1], "smaller buffer"),
        (raw(RW, 1, 2, length=0xFFFFFFFF), "4294967295 bytes"),
        (raw(RW, 1, 2, bytes(65537)), "65537 bytes"),
        (raw(RW, 1, 2, src_cid=GUEST_CID + 1), "from CID"),
        (raw(RW, 1, 2, dst_cid=3), "to CID 3"),
        (raw(RW, 1, 2, src_cid=GUEST_CID | 1 << 32), "from CID"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        packet.parse([memoryview(data)], GUEST_CID)


def test_no_buffers_at_all() -> None:
    with pytest.raises(PacketError):
        packet.parse([], GUEST_CID)


def test_the_longest_packet() -> None:
    _, payload = packet.parse([memoryview(raw(RW, 1, 2, bytes(65536)))], GUEST_CID)
    assert sum(map(len, payload)) == 65536


@given(st.lists(st.integers(0, 50), max_size=8))
def test_a_header_is_written_across_any_layout(cuts: list[int]) -> None:
    header = Header(2, GUEST_CID, 1, 2, 3, op=RW, flags=4, buf_alloc=5, fwd_cnt=6)
    buffers = pieces(bytes(60), cuts)
    write_bytes(buffers, header.pack())
    written = b"".join(buffers)
    assert written[:44] == header.pack()
    assert written[44:] == bytes(16)
    assert sum(map(len, packet.payload_buffers(buffers))) == 16
