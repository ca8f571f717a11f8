"""Files of an EROFS image that are compressed by LZ4 (Linux fs/erofs/erofs_fs.h, zmap.c).

A file is a row of logical clusters of 4 KiB, each with an index of 8 bytes behind the inode. Up to
32 of them are compressed together into as few physical blocks as will do:

    HEAD      the first of them: where the blocks are
    NONHEAD   the others: how far it is back to the first and on to the next; the first of these
              says how many blocks there are
    PLAIN     stands alone, in a block as it is: what does not get smaller

In its blocks what is compressed ends where they end, after zeros: the kernel unpacks it in place.
Linux 5.13 and newer read this.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from voidbox.images.contents import write_all
from voidbox.images.erofs_format import BLOCK_BYTES
from voidbox.lz4 import Compressor
from voidbox.named_tuple import NamedTuple
from voidbox.threads import Threads

EROFS_INODE_COMPRESSED_FULL = 1
EROFS_FEATURE_INCOMPAT = 0x1 | 0x2  # ZERO_PADDING; COMPR_CFGS, which is BIG_PCLUSTER too
CHUNK_BLOCKS = 32
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK_BYTES

_Z_EROFS_COMPRESSION_LZ4 = 0
_Z_EROFS_ADVISE_BIG_PCLUSTER_1 = 0x2
_PLAIN, _HEAD, _NONHEAD = 0, 1, 2  # Z_EROFS_LCLUSTER_TYPE_*
_CBLKCNT = 1 << 11  # Z_EROFS_LI_D0_CBLKCNT
_ALIGNMENT = 8

# struct z_erofs_map_header { __le32 h_reserved1; __le16 h_advise; __u8 h_algorithmtype,
#   h_clusterbits; }, and 8 bytes of padding where indexes are of the full kind
_MAP_HEADER = struct.Struct("<4xHBB8x")
assert _MAP_HEADER.size == 16

# struct z_erofs_lcluster_index { __le16 di_advise, di_clusterofs; __le32 blkaddr or
#   __le16 delta[2]; }
_INDEX = struct.Struct("<HHI")
_INDEX_NONHEAD = struct.Struct("<HHHH")
assert _INDEX.size == _INDEX_NONHEAD.size == 8

# Behind the superblock: __le16 size; struct z_erofs_lz4_cfgs { __le16 max_distance,
#   max_pclusterblks; __u8 reserved[10]; }
_CONFIGURATION = struct.Struct("<HHH10x")
_LZ4_DISTANCE_MAX = 65535

AVAILABLE_ALGORITHMS = 1 << _Z_EROFS_COMPRESSION_LZ4  # of the superblock
CONFIGURATION = _CONFIGURATION.pack(_CONFIGURATION.size - 2, _LZ4_DISTANCE_MAX, CHUNK_BLOCKS + 1)


class Packed(NamedTuple):
    """A file that has been written.

    Attributes:
        indexes: of its logical clusters.
        block_count: how many blocks it takes.
    """

    indexes: bytes
    block_count: int


def is_worth_it(size: int) -> bool:
    """Whether a file can get smaller: one of a block or less stands behind its inode."""
    return size > BLOCK_BYTES


def map_bytes(fixed_bytes: int, size: int) -> int:
    """Return how much stands behind an inode of a size, itself `fixed_bytes` long."""
    clusters = -(-size // BLOCK_BYTES)
    return -fixed_bytes % _ALIGNMENT + _MAP_HEADER.size + clusters * _INDEX.size


def encode_map(fixed_bytes: int, packed: Packed) -> bytes:
    """Return what stands behind the inode of a file that has been written."""
    header = _MAP_HEADER.pack(_Z_EROFS_ADVISE_BIG_PCLUSTER_1, _Z_EROFS_COMPRESSION_LZ4, 0)
    return bytes(-fixed_bytes % _ALIGNMENT) + header + packed.indexes


def cut(size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is compressed together.

    The last part is never a single block, which could not get smaller.
    """
    start = 0
    while start < size:
        end = size if size - start <= CHUNK_BYTES + BLOCK_BYTES else start + CHUNK_BYTES
        yield start, end
        start = end


def pack(
    target: int, block: int, files: Iterable[Iterator[tuple[bytes, bool]]], compressor: Compressor
) -> Iterator[Packed]:
    """Write files one after another; yield, in their order, what became of each.

    Args:
        target: the descriptor of the image.
        block: where they begin.
        files: of each file the parts, as cut() has them, and whether it is the last.
    """
    workers = os.cpu_count() or 1
    pending: deque[tuple[bytes, bool, Future[bytes | None]]] = deque()
    file = _File(target, block)
    with Threads(workers, "voidbox-lz4") as threads:
        for parts in files:
            for data, is_last in parts:
                bytes_max = max(0, -(-len(data) // BLOCK_BYTES) - 1) * BLOCK_BYTES
                future = threads.submit(compressor.compress, data, bytes_max)
                pending.append((data, is_last, future))
                while len(pending) > 4 * workers:  # memory is bounded by that
                    data, is_last, future = pending.popleft()
                    yield from file.take(data, is_last, threads.result(future))
        for data, is_last, future in pending:
            yield from file.take(data, is_last, threads.result(future))


class _File:
    """The file that is being written, and after it the next."""

    def __init__(self, target: int, block: int) -> None:
        self._target = target
        self._block = block
        self._first_block = block
        self._indexes = bytearray()

    def take(self, data: bytes, is_last: bool, compressed: bytes | None) -> Iterator[Packed]:
        """Write a part, compressed if that is not None; yield the file if it was its last."""
        content = data if compressed is None else bytes(-len(compressed) % BLOCK_BYTES) + compressed
        count = -(-len(content) // BLOCK_BYTES)
        write_all(self._target, content, self._block * BLOCK_BYTES)
        if compressed is None:
            for block in range(self._block, self._block + count):
                self._indexes += _INDEX.pack(_PLAIN, 0, block)
        else:
            self._index_compressed(-(-len(data) // BLOCK_BYTES), count)
        self._block += count
        if is_last:
            yield Packed(bytes(self._indexes), self._block - self._first_block)
            self._first_block, self._indexes = self._block, bytearray()

    def _index_compressed(self, clusters: int, count: int) -> None:
        self._indexes += _INDEX.pack(_HEAD, 0, self._block)
        for number in range(1, clusters):
            back = _CBLKCNT | count if number == 1 else number
            self._indexes += _INDEX_NONHEAD.pack(_NONHEAD, 0, back, clusters - number)
