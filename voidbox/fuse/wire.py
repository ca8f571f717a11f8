"""What FUSE messages are made of: structures of linux/fuse.h, and names that end in a zero byte.

A request is a fuse_in_header, the structure of its opcode, and then names or data; an answer is a
fuse_out_header and, unless its error is set, what the opcode's is made of.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from voidbox.named_tuple import NamedTuple

# struct fuse_in_header { u32 len, opcode; u64 unique, nodeid; u32 uid, gid, pid;
#                         u16 total_extlen, padding; };
IN_HEADER = struct.Struct("<IIQQIIIHH")
# struct fuse_out_header { u32 len; s32 error; u64 unique; };
OUT_HEADER = struct.Struct("<IiQ")

# struct fuse_attr { u64 ino, size, blocks, atime, mtime, ctime; u32 atimensec, mtimensec,
#                    ctimensec, mode, nlink, uid, gid, rdev, blksize, flags; };
ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
# struct fuse_entry_out { u64 nodeid, generation, entry_valid, attr_valid;
#                         u32 entry_valid_nsec, attr_valid_nsec; struct fuse_attr attr; };
ENTRY_OUT = struct.Struct("<QQQQII")  # the attr is behind it
ENTRY_OUT_BYTES = ENTRY_OUT.size + ATTR.size
# struct fuse_attr_out { u64 attr_valid; u32 attr_valid_nsec, dummy; struct fuse_attr attr; };
ATTR_OUT = struct.Struct("<QII")  # likewise
# struct fuse_open_out { u64 fh; u32 open_flags, padding; };
OPEN_OUT = struct.Struct("<QII")

# struct fuse_init_in { u32 major, minor, max_readahead, flags, …; };
INIT_IN = struct.Struct("<IIII")
# struct fuse_init_out { u32 major, minor, max_readahead, flags; u16 max_background,
#     congestion_threshold; u32 max_write, time_gran; u16 max_pages, map_alignment;
#     u32 flags2, unused[7]; };
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
FORGET_IN = struct.Struct("<Q")  # { u64 nlookup; }
BATCH_FORGET_IN = struct.Struct("<II")  # { u32 count, dummy; }, then so many fuse_forget_one
FORGET_ONE = struct.Struct("<QQ")  # { u64 nodeid, nlookup; }
GETATTR_IN = struct.Struct("<IIQ")  # { u32 getattr_flags, dummy; u64 fh; }
# struct fuse_setattr_in { u32 valid, padding; u64 fh, size, lock_owner, atime, mtime, ctime;
#     u32 atimensec, mtimensec, ctimensec, mode, unused4, uid, gid, unused5; };
SETATTR_IN = struct.Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN = struct.Struct("<IIII")  # { u32 mode, rdev, umask, padding; }, then the name
MKDIR_IN = struct.Struct("<II")  # { u32 mode, umask; }, then the name
RENAME_IN = struct.Struct("<Q")  # { u64 newdir; }, then both names
RENAME2_IN = struct.Struct("<QII")  # { u64 newdir; u32 flags, padding; }, then both names
LINK_IN = struct.Struct("<Q")  # { u64 oldnodeid; }, then the name
OPEN_IN = struct.Struct("<II")  # { u32 flags, open_flags; }
CREATE_IN = struct.Struct("<IIII")  # { u32 flags, mode, umask, open_flags; }, then the name
RELEASE_IN = struct.Struct("<QIIQ")  # { u64 fh; u32 flags, release_flags; u64 lock_owner; }
# struct fuse_read_in { u64 fh, offset; u32 size, read_flags; u64 lock_owner; u32 flags, padding; };
READ_IN = struct.Struct("<QQIIQII")
# struct fuse_write_in: the same with write_flags, then the data
WRITE_IN = struct.Struct("<QQIIQII")
WRITE_OUT = struct.Struct("<II")  # { u32 size, padding; }
# struct fuse_kstatfs { u64 blocks, bfree, bavail, files, ffree; u32 bsize, namelen, frsize,
#                       padding, spare[6]; };
KSTATFS = struct.Struct("<QQQQQIII28x")
FSYNC_IN = struct.Struct("<QII")  # { u64 fh; u32 fsync_flags, padding; }
SETXATTR_IN = struct.Struct("<II")  # { u32 size, flags; }, then name and value
GETXATTR_IN = struct.Struct("<II")  # { u32 size, padding; }, then the name
GETXATTR_OUT = struct.Struct("<II")  # { u32 size, padding; }, where the size was 0
DIRENT = struct.Struct("<QQII")  # { u64 ino, off; u32 namelen, type; }, then the name, to 8 bytes
FALLOCATE_IN = struct.Struct("<QQQII")  # { u64 fh, offset, length; u32 mode, padding; }
LSEEK_IN = struct.Struct("<QQII")  # { u64 fh, offset; u32 whence, padding; }
LSEEK_OUT = struct.Struct("<Q")
# struct fuse_copy_file_range_in { u64 fh_in, off_in, nodeid_out, fh_out, off_out, len, flags; };
COPY_FILE_RANGE_IN = struct.Struct("<QQQQQQQ")

assert (IN_HEADER.size, OUT_HEADER.size, ATTR.size) == (40, 16, 88)
assert (ENTRY_OUT_BYTES, ATTR_OUT.size + ATTR.size, OPEN_OUT.size) == (128, 104, 16)
assert (INIT_OUT.size, SETATTR_IN.size, KSTATFS.size) == (64, 88, 80)
assert (READ_IN.size, WRITE_IN.size, DIRENT.size) == (40, 40, 24)
assert (FALLOCATE_IN.size, LSEEK_IN.size, COPY_FILE_RANGE_IN.size) == (32, 24, 56)

OFFSET_MAX = (1 << 63) - 1


class Request(NamedTuple):
    """A request, but for the data of a FUSE_WRITE.

    Attributes:
        opcode: FUSE_*.
        unique: what its answer repeats.
        node_id: which node it is about.
        body: what follows the header.
    """

    opcode: int
    unique: int
    node_id: int
    body: bytes

    @classmethod
    def parse(cls, message: bytes) -> Request:
        """Take the header off a message, which holds at least that."""
        _, opcode, unique, node_id, *_ = IN_HEADER.unpack_from(message)
        return cls(opcode, unique, node_id, message[IN_HEADER.size :])

    def take(self, fields: struct.Struct) -> tuple[Any, ...]:
        """Return the numbers that the body begins with.

        Raises:
            OSError: EPROTO: it is shorter.
        """
        if len(self.body) < fields.size:
            raise refused(errno.EPROTO)
        return fields.unpack_from(self.body)

    def names(self, behind: int, count: int) -> list[bytes]:
        """Return the names that the body ends with.

        Args:
            behind: bytes of what comes before them.
        Raises:
            OSError: EPROTO: they do not end with it.
        """
        names = self.body[behind:].split(b"\0")
        if len(names) != count + 1 or names.pop():
            raise refused(errno.EPROTO)
        return names

    def name(self, behind: int = 0) -> bytes:
        """Return the one name that the body ends with; see names()."""
        return self.names(behind, 1)[0]


def refused(number: int) -> OSError:
    """Return what a handler raises for an answer with this errno."""
    return OSError(number, os.strerror(number))


def check_offset(offset: int) -> int:
    """Return an offset that the host's calls take.

    Raises:
        OSError: EINVAL: it is none.
    """
    if offset > OFFSET_MAX:
        raise refused(errno.EINVAL)
    return offset
