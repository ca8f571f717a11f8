"""A floor of free space on the host's file systems, which no guest writes below."""

from __future__ import annotations

import errno
import os

FLOOR_BYTES = 256 << 20
_FLOOR_SHARE = 20  # of a small file system, a part as large as this
_CREDIT_BYTES = 16 << 20  # what may be written until it is looked at again


class FreeSpace:
    """The room that a file system has, of one disk or one shared folder. Thread: any.

    Looking costs a system call each 16 MiB. What is written over data that is there takes no room,
    and passes below the floor as well.
    """

    def __init__(self) -> None:
        self._credit_bytes = 0

    def take(self, fd: int, offset: int, length: int) -> None:
        """Take room for a range of a file that is about to be written.

        Raises:
            OSError: ENOSPC: it would leave less than the floor.
        """
        self._credit_bytes -= length
        if self._credit_bytes >= 0:
            return
        self._credit_bytes = min(_CREDIT_BYTES, _above_floor(fd) - length)
        if self._credit_bytes < 0 and not _is_data(fd, offset, length):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _above_floor(fd: int) -> int:
    found = os.fstatvfs(fd)
    floor = min(FLOOR_BYTES, found.f_blocks * found.f_frsize // _FLOOR_SHARE)
    return found.f_bavail * found.f_frsize - floor


def _is_data(fd: int, offset: int, length: int) -> bool:
    """Whether a range of a file has room already. Of a file that is read and written by offset."""
    try:
        return (
            os.lseek(fd, offset, os.SEEK_DATA) == offset
            and os.lseek(fd, offset, os.SEEK_HOLE) >= offset + length
        )
    except OSError:  # ENXIO: nothing but a hole up to the end
        return False
