"""System calls that Python's os module does not have."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from voidbox.named_tuple import NamedTuple

UTIME_NOW = (1 << 30) - 1  # linux/stat.h
UTIME_OMIT = (1 << 30) - 2
BUFFER_BYTES = 64 << 10

# struct linux_dirent64 { u64 d_ino; s64 d_off; u16 d_reclen; u8 d_type; char d_name[]; };
_DIRENT = struct.Struct("<QqHB")
_TIMES = struct.Struct("<qqqq")  # struct timespec times[2]
assert _DIRENT.size == 19
DIRENT_BYTES_MIN = 24  # with the shortest of names: a multiple of 8

_libc: ctypes.CDLL | None = None


def _load() -> ctypes.CDLL:
    global _libc
    if _libc is None:
        found = ctypes.CDLL(None, use_errno=True)
        found.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        found.getdents64.restype = ctypes.c_ssize_t
        found.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
        found.renameat2.argtypes = (
            *(ctypes.c_int, ctypes.c_char_p),
            *(ctypes.c_int, ctypes.c_char_p),
            ctypes.c_uint,
        )
        found.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        _libc = found
    return _libc


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Dirent(NamedTuple):
    """An entry of a folder; `next_offset` is where the one after it is found."""

    inode: int
    next_offset: int
    type: int
    name: bytes


class DirentReader:
    """Reads entries of folders, some at a time, with a buffer of its own. Thread: one."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(BUFFER_BYTES)

    def read(self, fd: int, size: int) -> Iterator[Dirent]:
        """Yield some entries from the descriptor's position on; none at the end.

        Raises:
            OSError: ENOENT for a folder that was removed, say.
        """
        size = max(512, min(size, BUFFER_BYTES))  # room for one name of any length
        length = _check(_load().getdents64(fd, self._buffer, size))
        data = ctypes.string_at(self._buffer, length)
        at = 0
        while at < length:
            inode, offset, record_bytes, kind = _DIRENT.unpack_from(data, at)
            name = data[at + _DIRENT.size : at + record_bytes].split(b"\0", 1)[0]
            yield Dirent(inode, offset, kind, name)
            at += record_bytes


def set_times(folder_fd: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times, each (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT stand for nanoseconds.

    Raises:
        OSError: utimensat(2)'s.
    """
    try:
        times = _TIMES.pack(*atime, *mtime)
    except struct.error as error:
        raise OSError(22, "a time that is no time") from error
    _check(_load().utimensat(folder_fd, name, times, 0))


def renameat2(folder_fd: int, name: bytes, new_fd: int, new_name: bytes, flags: int) -> None:
    """Rename with flags: RENAME_NOREPLACE, RENAME_EXCHANGE.

    Raises:
        OSError: renameat2(2)'s.
    """
    _check(_load().renameat2(folder_fd, name, new_fd, new_name, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or free a part of a file.

    Args:
        mode: FALLOC_FL_*.
    Raises:
        OSError: fallocate(2)'s.
    """
    _check(_load().fallocate(fd, mode, offset, length))
