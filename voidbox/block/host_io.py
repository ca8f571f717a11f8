"""Transfers between an open file and lists of buffers, and the calls that Python's os lacks.

Every function raises OSError as the system call does. A file that has become shorter than it was
is EIO.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

from voidbox.buffers import clip, skip

Buffers: TypeAlias = Sequence[memoryview | bytes]

IOV_MAX = 1024  # <linux/uio.h>: UIO_MAXIOV
# <linux/falloc.h>
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
# <linux/fs.h>
BLKROGET = 0x125E
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
_U64 = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")  # uint64_t range[2]: start and length in bytes

_ZEROES_BYTES = 64 << 10
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.ENOTTY})


def read_all(fd: int, buffers: Sequence[memoryview], offset: int, length: int) -> None:
    """Fill `buffers`, which have `length` bytes, from `offset` on."""
    _transfer(os.preadv, fd, buffers, offset, length)


def write_all(fd: int, buffers: Buffers, offset: int, length: int) -> None:
    """Write `buffers`, which have `length` bytes, to `offset`."""
    _transfer(os.pwritev, fd, buffers, offset, length)


def read_nowait(fd: int, buffers: Sequence[memoryview], offset: int, length: int) -> None:
    """As read_all, from the page cache alone.

    Raises:
        BlockingIOError: not all of it is there.
        OSError: EOPNOTSUPP: the file system cannot tell.
    """
    if len(buffers) > IOV_MAX or os.preadv(fd, buffers, offset, os.RWF_NOWAIT) != length:
        raise BlockingIOError(errno.EAGAIN, "not all of it is in the page cache")


def _transfer(
    call: Callable[[int, Buffers, int], int], fd: int, buffers: Buffers, offset: int, length: int
) -> None:
    """Repeat a call until all is done: it takes so many buffers, and may do less than asked."""
    while True:
        count = call(fd, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX], offset)
        if count == length:
            return
        if count == 0:
            raise OSError(errno.EIO, "the file has become shorter")
        buffers = skip([memoryview(buffer) for buffer in buffers], count)
        offset += count
        length -= count


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a range of a file back to the file system; it reads as zeroes afterwards.

    Raises:
        OSError: EOPNOTSUPP: the file system cannot.
    """
    _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Have a range of a file read as zeroes, and keep the room for it.

    Raises:
        OSError: EOPNOTSUPP: the file system cannot.
    """
    _fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)


def write_zeroes(fd: int, offset: int, length: int) -> None:
    """Write zeroes, as data."""
    zeroes = memoryview(bytes(_ZEROES_BYTES))
    per_call = _ZEROES_BYTES * IOV_MAX
    while length > 0:
        piece = min(length, per_call)
        buffers = clip([zeroes] * -(-piece // _ZEROES_BYTES), piece)
        write_all(fd, buffers, offset, piece)
        offset += piece
        length -= piece


def is_unsupported(error: OSError) -> bool:
    """Whether the file, or what it is on, does not know the operation at all."""
    return error.errno in _UNSUPPORTED


def device_size(fd: int) -> int:
    """Return a block device's size in bytes."""
    (size,) = _U64.unpack(fcntl.ioctl(fd, BLKGETSIZE64, bytes(_U64.size)))
    return int(size)


def device_discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that a range holds nothing any more."""
    fcntl.ioctl(fd, BLKDISCARD, _RANGE.pack(offset, length))


def device_zero(fd: int, offset: int, length: int) -> None:
    """Have a range of a block device read as zeroes."""
    fcntl.ioctl(fd, BLKZEROOUT, _RANGE.pack(offset, length))


@cache
def _libc_fallocate() -> Callable[[int, int, int, int], int]:
    import ctypes  # some milliseconds, which most machines never need

    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    import ctypes

    while _libc_fallocate()(fd, mode, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
