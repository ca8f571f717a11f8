"""What the block device's driver and device say to each other (VirtIO 1.2 §5.2), as bytes.

A request is a chain: header │ what is to be written ║ room for what is read │ one status byte. How
it is cut into buffers is the driver's choice (§2.7.4.1).
"""

from __future__ import annotations

import struct

from voidbox.buffers import clip, first_bytes, skip
from voidbox.errors import GuestError
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.descriptors import Chain

# linux/virtio_blk.h
VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

VIRTIO_BLK_ID_BYTES = 20
SECTOR_BYTES = 512

# struct virtio_blk_outhdr { __virtio32 type, ioprio; __virtio64 sector; };
OUTHDR = struct.Struct("<IIQ")
OUTHDR_BYTES = 16
assert OUTHDR.size == OUTHDR_BYTES
# struct virtio_blk_discard_write_zeroes { __le64 sector; __le32 num_sectors; __le32 flags; };
RANGE = struct.Struct("<QII")
assert RANGE.size == 16


class Request(NamedTuple):
    """A request, apart from the header that says what it is.

    Attributes:
        head_idx: the chain's.
        status: the byte for the outcome, in guest memory.
        source: what the driver sent behind the header, of `source_bytes`.
        target: what it wants filled, of `target_bytes`.
    """

    head_idx: int
    status: memoryview
    source: list[memoryview]
    source_bytes: int
    target: list[memoryview]
    target_bytes: int


def parse(chain: Chain) -> tuple[int, int, Request]:
    """Take a chain apart; returns its header's type (-1: it has no whole header), its sector, and
    the rest. The header is copied once: the guest may change it meanwhile.

    Raises:
        GuestError: there is no byte for the status.
    """
    target = chain.writable
    if not target:
        raise GuestError("a block request without room for its status")
    status = target.pop()
    if len(status) > 1:
        target.append(status[:-1])
        status = status[-1:]
    source = chain.readable
    source_bytes = chain.readable_bytes - OUTHDR_BYTES
    if source_bytes < 0:
        kind, sector = -1, 0
    elif len(source[0]) == OUTHDR_BYTES:  # as Linux does it
        kind, _, sector = OUTHDR.unpack(source.pop(0))
    else:
        kind, _, sector = OUTHDR.unpack(first_bytes(source, OUTHDR_BYTES))
        source = skip(source, OUTHDR_BYTES)
    request = Request(
        chain.head_idx, status, source, source_bytes, target, chain.writable_bytes - 1
    )
    return kind, sector, request


class Refused(Exception):
    """The device will not do it. The VIRTIO_BLK_S_* to say so is its one argument."""


class Range(NamedTuple):
    """A part of the disk to be discarded or zeroed, in bytes."""

    offset: int
    length: int
    may_unmap: bool


def parse_ranges(
    request: Request, ranges_max: int, sectors_max: int, size_bytes: int, is_discard: bool
) -> list[Range]:
    """Return the ranges of a discard or of zeroes to be written.

    Raises:
        Refused: they break a rule of §5.2.6.2.
    """
    length = request.source_bytes
    if not length or length % RANGE.size:
        raise Refused(VIRTIO_BLK_S_IOERR)
    if length > ranges_max * RANGE.size:
        raise Refused(VIRTIO_BLK_S_UNSUPP)
    known_flags = 0 if is_discard else VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    raw = b"".join(clip(request.source, length))
    ranges = []
    for sector, num_sectors, flags in RANGE.iter_unpack(raw):
        if flags & ~known_flags:
            raise Refused(VIRTIO_BLK_S_UNSUPP)
        offset, length = sector * SECTOR_BYTES, num_sectors * SECTOR_BYTES
        if num_sectors > sectors_max or offset + length > size_bytes:
            raise Refused(VIRTIO_BLK_S_IOERR)
        ranges.append(Range(offset, length, bool(flags)))
    return ranges
