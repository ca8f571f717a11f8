"""Drivers that send the block device anything, and lawful ones that cut requests up anyhow."""

from __future__ import annotations

import errno
import struct
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.virtio.block_guest import SECTOR, FakeDisk, Guest
from voidbox.memory import GuestMemory
from voidbox.virtio.block_request import (
    RANGE,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)

RAM_BYTES = 1 << 18
SECTORS = 16
DATA_GPA = 0x30000  # behind the rings

kinds = st.sampled_from([0, 1, 4, 8, 11, 13, 2, 0xFFFFFFFF])
sectors = st.integers(0, SECTORS + 1) | st.sampled_from([1 << 32, 1 << 55, (1 << 64) - 1])
headers = st.builds(lambda kind, sector: struct.pack("<IIQ", kind, 0, sector), kinds, sectors)
ranges = st.lists(
    st.builds(
        RANGE.pack, sectors.map(lambda s: s % (1 << 64)), st.integers(0, 20), st.integers(0, 3)
    ),
    max_size=40,
).map(b"".join)
payloads = st.one_of(
    ranges, st.binary(max_size=40), st.integers(0, 4).map(lambda count: b"p" * (count * SECTOR))
)
lengths = st.sampled_from([0, 1, 15, 16, 17, 20, 511, 512, 513, 1024, 1 << 16, 0xFFFF_FFFF])
descs = st.tuples(
    st.integers(DATA_GPA, DATA_GPA + 0x1000) | st.sampled_from([0, RAM_BYTES - 1, 1 << 63]),
    lengths,
    st.integers(0, 7),
    st.integers(0, 9),
)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    """Cut it into up to len(points) + 1 pieces."""
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    return [piece for piece in pieces if piece]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            headers,
            payloads,
            st.integers(0, 3 * SECTOR),
            st.lists(st.integers(0, 2000), max_size=4),
        ),
        max_size=6,
    ),
    st.sampled_from([None, errno.EAGAIN, errno.EOPNOTSUPP]),
    st.booleans(),
)
def test_any_request_gets_an_answer(
    requests: list[tuple[bytes, bytes, int, list[int]]], nowait: int | None, is_read_only: bool
) -> None:
    """With room for a status there is one, and nothing else of the guest's is touched."""
    with GuestMemory(RAM_BYTES) as memory:
        guest = Guest(memory, FakeDisk(SECTORS, is_read_only))
        guest.disk.nowait = nowait
        before = bytes(guest.disk.data)
        statuses = []
        for header, payload, room, points in requests:
            writable = [*map(len, cut(bytes(room), points)), 1]
            head_idx = guest.queue.add(cut(header + payload, points), writable)
            status_gpa = guest.queue.requests[head_idx].writable[-1][0]
            memory.write(status_gpa, b"\xee")
            statuses.append(status_gpa)
        guest.run()
        assert not guest.is_broken
        found = [memory.read(gpa, 1)[0] for gpa in statuses]
        assert len(guest.queue.completed()) == len(requests)
        assert set(found) <= {VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP}
        assert len(guest.disk.data) == SECTORS * SECTOR
        if is_read_only:
            assert guest.disk.data == before
        guest.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(descs, min_size=1, max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    headers,
    st.sampled_from([None, errno.EAGAIN]),
)
def test_random_descriptors(
    table: list[tuple[int, int, int, int]], heads: list[int], header: bytes, nowait: int | None
) -> None:
    """Whatever the ring says, the device answers or asks for a reset, and works after one."""
    with GuestMemory(RAM_BYTES) as memory:
        guest = Guest(memory, FakeDisk(SECTORS))
        guest.disk.nowait = nowait
        memory.write(DATA_GPA, header * 16)
        for idx, (addr, length, flags, next_idx) in enumerate(table):
            guest.queue.set_desc(idx, addr, length, flags, next_idx)
        for head in heads:
            guest.queue.offer(head)
        guest.run()
        answered = guest.queue.used_idx
        assert answered <= len(heads)
        assert guest.is_broken or answered == len(heads)
        guest.boot()
        guest.disk.nowait = None
        assert guest.read(0) == bytes(guest.disk.data[:SECTOR])
        guest.close()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_FLUSH]
            ),
            st.integers(0, SECTORS - 1),
            st.integers(1, 6),
            st.integers(1, 255),
            st.lists(st.integers(0, 4000), max_size=5),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.sampled_from([None, errno.EAGAIN, errno.EOPNOTSUPP]),
)
def test_a_disk_is_an_array_of_bytes(
    ops: list[tuple[int, int, int, int, list[int], bool]], nowait: int | None
) -> None:
    with GuestMemory(RAM_BYTES) as memory:
        guest = Guest(memory, FakeDisk(SECTORS))
        guest.disk.nowait = nowait
        model = bytearray(guest.disk.data)
        for kind, sector, count, fill, points, indirect in ops:
            count = min(count, SECTORS - sector)
            start, end = sector * SECTOR, (sector + count) * SECTOR
            raw, room = struct.pack("<IIQ", kind, 0, sector), 0
            if kind == VIRTIO_BLK_T_IN:
                room = end - start
            elif kind == VIRTIO_BLK_T_OUT:
                raw += bytes([fill]) * (end - start)
                model[start:end] = bytes([fill]) * (end - start)
            elif kind == VIRTIO_BLK_T_WRITE_ZEROES:
                raw += RANGE.pack(sector, count, fill & 1)
                model[start:end] = bytes(end - start)
            writable = list(map(len, cut(bytes(room + 1), points)))
            guest.queue.add(cut(raw, points), writable, indirect=indirect)
            guest.run()
            (done,) = guest.queue.completed()
            if kind == VIRTIO_BLK_T_IN:
                assert done.data == bytes(model[start:end]) + b"\0"
        assert guest.disk.data == model
        counts = guest.device.statistics()
        assert (counts.errors, counts.refused) == (0, 0)
        guest.close()
