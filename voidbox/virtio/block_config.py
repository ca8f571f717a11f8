"""What the block device offers its driver: features, configuration space, limits; and counters."""

from __future__ import annotations

import struct

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.block_request import SECTOR_BYTES, VIRTIO_BLK_ID_BYTES

# linux/virtio_blk.h, as masks
VIRTIO_BLK_F_SIZE_MAX = 1 << 1
VIRTIO_BLK_F_SEG_MAX = 1 << 2
VIRTIO_BLK_F_RO = 1 << 5
VIRTIO_BLK_F_BLK_SIZE = 1 << 6
VIRTIO_BLK_F_FLUSH = 1 << 9
VIRTIO_BLK_F_TOPOLOGY = 1 << 10
VIRTIO_BLK_F_DISCARD = 1 << 13
VIRTIO_BLK_F_WRITE_ZEROES = 1 << 14

_FEATURES = (
    VIRTIO_BLK_F_SIZE_MAX
    | VIRTIO_BLK_F_SEG_MAX
    | VIRTIO_BLK_F_BLK_SIZE
    | VIRTIO_BLK_F_TOPOLOGY
    | VIRTIO_BLK_F_FLUSH
)
_WRITABLE_FEATURES = VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES

QUEUE_SIZE = 256
SEGMENTS_MAX = QUEUE_SIZE - 2  # a chain's, without header and status
SEGMENT_BYTES_MAX = 128 << 10
REQUEST_BYTES_MAX = SEGMENTS_MAX * SEGMENT_BYTES_MAX
# The most that one request may discard, or zero: what has to be written takes a while.
DISCARD_SECTORS_MAX = (4 << 30) // SECTOR_BYTES
DISCARD_RANGES_MAX = 32
ZERO_SECTORS_MAX = (16 << 20) // SECTOR_BYTES
ZERO_RANGES_MAX = 1
PHYSICAL_BLOCK_EXP = 3  # 4 KiB: the host's pages, and the clusters of an overlay

# struct virtio_blk_config, packed, up to unused1:
CONFIG = struct.Struct("<QII HBB IBBHI BBH III IIB3x")
assert CONFIG.size == 60


class VirtioBlkConfig(NamedTuple):
    """struct virtio_blk_config. Sizes are in sectors of 512 bytes, where nothing else is said.

    Attributes:
        size_max: bytes of one segment.
        seg_max: segments of one request.
        blk_size: bytes.
        physical_block_exp: blocks in a physical block, as a power of two.
        min_io_size, opt_io_size: blocks.
        wce: a write-back cache, if its feature is offered.
    """

    capacity: int
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = SECTOR_BYTES
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    wce: int = 0
    unused: int = 0
    num_queues: int = 0
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0

    def pack(self) -> bytes:
        """Return it as the driver reads it."""
        return CONFIG.pack(*self)


def features_of(is_read_only: bool) -> int:
    """Return the features that are offered for a disk."""
    return _FEATURES | (VIRTIO_BLK_F_RO if is_read_only else _WRITABLE_FEATURES)


def config_of(size_bytes: int) -> bytes:
    """Return the configuration space of a disk."""
    return VirtioBlkConfig(
        capacity=size_bytes // SECTOR_BYTES,
        size_max=SEGMENT_BYTES_MAX,
        seg_max=SEGMENTS_MAX,
        physical_block_exp=PHYSICAL_BLOCK_EXP,
        num_queues=1,
        max_discard_sectors=DISCARD_SECTORS_MAX,
        max_discard_seg=DISCARD_RANGES_MAX,
        discard_sector_alignment=1 << PHYSICAL_BLOCK_EXP,
        max_write_zeroes_sectors=ZERO_SECTORS_MAX,
        max_write_zeroes_seg=ZERO_RANGES_MAX,
        write_zeroes_may_unmap=1,
    ).pack()


def encode_serial(serial: str) -> bytes:
    """Return a disk's serial as GET_ID gives it.

    Raises:
        ConfigError: it is not up to 20 printable characters of ASCII.
    """
    if len(serial) > VIRTIO_BLK_ID_BYTES or not serial.isascii() or not serial.isprintable():
        raise ConfigError(
            f"disk serial {serial!r}: give up to {VIRTIO_BLK_ID_BYTES} characters of ASCII"
        )
    return serial.encode().ljust(VIRTIO_BLK_ID_BYTES, b"\0")


class BlockStatistics(NamedTuple):
    """Counters since the start, of what was done.

    Attributes:
        errors: requests that failed on the host.
        refused: requests that the guest should not have made: past the end, or unknown.
    """

    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    flushes: int
    discards: int
    zeroes: int
    errors: int
    refused: int
