"""EROFS on disk: the structures of an image (Linux fs/erofs/erofs_fs.h); erofs_lz4 has some more.

block 0                 the superblock, at 1024
block 1 …               inodes, each followed by its xattrs and maybe by the end of its content;
                        an inode's number (nid) is its place in the file divided by 32
after them              the content that is in whole blocks
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator

BLOCK_BITS = 12
BLOCK_BYTES = 1 << BLOCK_BITS
SLOT_BYTES = 32  # a nid counts these
EROFS_SUPER_OFFSET = 1024
EROFS_SUPER_MAGIC_V1 = 0xE0F5E1E2
EROFS_FEATURE_COMPAT_SB_CHKSUM = 0x1
EROFS_FEATURE_COMPAT_MTIME = 0x2  # i_mtime is what it says

EROFS_INODE_FLAT_PLAIN = 0  # all content in blocks of its own
EROFS_INODE_FLAT_INLINE = 2  # the last part of a block stands behind the inode
_EROFS_INODE_LAYOUT_EXTENDED = 1

# struct erofs_super_block { __le32 magic, checksum, feature_compat; __u8 blkszbits, sb_extslots;
#   __le16 root_nid; __le64 inos, build_time; __le32 build_time_nsec, blocks, meta_blkaddr,
#   xattr_blkaddr; __u8 uuid[16], volume_name[16]; __le32 feature_incompat;
#   __le16 available_compr_algs; … zeros up to 128 }
SUPER_BLOCK = struct.Struct("<IIIBBHQQIIII16s16sIH42x")
assert SUPER_BLOCK.size == 128

# struct erofs_inode_extended { __le16 i_format, i_xattr_icount, i_mode, i_reserved; __le64 i_size;
#   __le32 i_u (block address or device), i_ino, i_uid, i_gid; __le64 i_mtime;
#   __le32 i_mtime_nsec, i_nlink; __u8 i_reserved2[16]; }
INODE = struct.Struct("<HHHxxQIIIIqII16x")
assert INODE.size == 64

# struct erofs_dirent { __le64 nid; __le16 nameoff; __u8 file_type, reserved; }
DIRENT = struct.Struct("<QHBx")
assert DIRENT.size == 12

# struct erofs_xattr_ibody_header { __le32 h_reserved; __u8 h_shared_count, h_reserved2[7]; }
_XATTR_HEADER_BYTES = 12
# struct erofs_xattr_entry { __u8 e_name_len, e_name_index; __le16 e_value_size; name, value }
_XATTR_ENTRY = struct.Struct("<BBH")
_XATTR_ALIGNMENT = 4
_XATTR_NAME_MAX = 0xFF
_XATTR_VALUE_MAX = 0xFFFF
_XATTRS_MAX = (0xFFFF - 1) * _XATTR_ALIGNMENT  # i_xattr_icount has 16 bits
_XATTR_INDEXES = (  # EROFS_XATTR_INDEX_*
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)

_FILE_TYPES = {  # FT_* (fs_types.h)
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_CRC32C_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


def inode_format(layout: int) -> int:
    """Return the i_format of an extended inode with this data layout."""
    return _EROFS_INODE_LAYOUT_EXTENDED | layout << 1


def encode_device(device: tuple[int, int]) -> int:
    """new_encode_dev() (kdev_t.h): 12 bits of major number amid 20 bits of minor number."""
    major, minor = device
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def split_xattr(name: bytes) -> tuple[int, bytes] | None:
    """Return a name's (index, rest), or None if erofs has no place for such names."""
    for prefix, index in _XATTR_INDEXES:
        if name == prefix or (prefix.endswith(b".") and name.startswith(prefix)):
            rest = name[len(prefix) :]
            return (index, rest) if rest or not prefix.endswith(b".") else None
    return None


def encode_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return what stands behind an inode for its extended attributes; nothing if it has none.

    Those whose names erofs has no place for are left out. Sorted by name.

    Raises:
        ValueError: they are too large.
    """
    entries = bytearray()
    for name, value in sorted(xattrs):
        place = split_xattr(name)
        if place is None:
            continue
        index, rest = place
        if len(rest) > _XATTR_NAME_MAX or len(value) > _XATTR_VALUE_MAX:
            raise ValueError("an extended attribute is too large")
        entries += _XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        entries += bytes(-len(entries) % _XATTR_ALIGNMENT)
    if len(entries) > _XATTRS_MAX:
        raise ValueError("extended attributes are too large together")
    return bytes(_XATTR_HEADER_BYTES) + bytes(entries) if entries else b""


def xattr_icount(xattr_bytes: int) -> int:
    """Return the i_xattr_icount of encoded attributes of this size."""
    if not xattr_bytes:
        return 0
    return (xattr_bytes - _XATTR_HEADER_BYTES) // _XATTR_ALIGNMENT + 1


def split_directory(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the sorted names, so many at a time as fit into a block with their entries."""
    batch: list[bytes] = []
    used = 0
    for name in names:
        needed = DIRENT.size + len(name)
        if used + needed > BLOCK_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(name)
        used += needed
    if batch:
        yield batch


def encode_directory_block(entries: list[tuple[bytes, int, int]]) -> bytes:
    """Return a directory block of (name, nid, S_IFMT type), not padded."""
    name_offset = DIRENT.size * len(entries)
    dirents = bytearray()
    for name, nid, kind in entries:
        dirents += DIRENT.pack(nid, name_offset, _FILE_TYPES[kind])
        name_offset += len(name)
    return bytes(dirents) + b"".join(name for name, _, _ in entries)


def crc32c(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    """Return the CRC-32C as Linux' crc32c() does: without a final inversion."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc


class Slots:
    """Where inodes go: the smallest gap that takes one whole, so that few bytes are left over.

    What is shorter than a block never crosses a block's end, as inline content must not.
    """

    def __init__(self, first_block: int) -> None:
        self.end_block = first_block
        self._gaps: dict[int, list[int]] = {}  # free slots at a block's end → offsets of the gaps
        self._sizes = 0  # bit n: there is a gap of n slots

    def place(self, size: int) -> int:
        """Return the offset, in bytes, of a new record of `size` bytes."""
        slots = -(-size // SLOT_BYTES)
        fitting = self._sizes >> slots
        if size <= BLOCK_BYTES and fitting:
            gap = slots + (fitting & -fitting).bit_length() - 1
            offset = self._gaps[gap].pop()
            if not self._gaps[gap]:
                self._sizes &= ~(1 << gap)
        else:
            offset = self.end_block << BLOCK_BITS
            gap = -(-size // BLOCK_BYTES) * BLOCK_BYTES // SLOT_BYTES
            self.end_block += -(-size // BLOCK_BYTES)
        left = gap - slots
        if left:
            self._gaps.setdefault(left, []).append(offset + slots * SLOT_BYTES)
            self._sizes |= 1 << left
        return offset
