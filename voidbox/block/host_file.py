"""An open image or block device: the operations of a disk on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

from voidbox.block import host_io
from voidbox.block.host_io import Buffers
from voidbox.free_space import FreeSpace


class File(Protocol):
    """What backends keep bytes in. Thread: any. All but close() raise OSError."""

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        """Fill the buffers, which have `length` bytes in all.

        Args:
            nowait: from the page cache alone.
        Raises:
            BlockingIOError: it is not all there; some buffers may be filled.
            OSError: EOPNOTSUPP: the file system cannot tell.
        """
        ...

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """Write the buffers, which have `length` bytes in all."""
        ...

    def discard(self, offset: int, length: int) -> bool:
        """Give the room for a range back; False if that is not possible, and nothing was done.

        A file's range reads as zeroes afterwards.
        """
        ...

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """Have a range read as zeroes; `may_unmap`: and give the room for it back."""
        ...

    def sync(self) -> None:
        """Return when all that was written before is on the disk."""
        ...

    def close(self) -> None:
        """Close it. Idempotent."""
        ...


class HostFile:
    """A File by its descriptor, which becomes the object's."""

    def __init__(self, fd: int, is_device: bool = False) -> None:
        self._fd = fd
        self._is_device = is_device
        self._can_discard = self._can_zero = True
        self._room = None if is_device else FreeSpace()
        self._sync_error: OSError | None = None

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        """See File."""
        if nowait:
            host_io.read_nowait(self._fd, buffers, offset, length)
        else:
            host_io.read_all(self._fd, buffers, offset, length)

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """See File."""
        if self._room is not None:
            self._room.take(self._fd, offset, length)
        host_io.write_all(self._fd, buffers, offset, length)

    def discard(self, offset: int, length: int) -> bool:
        """See File."""
        if not self._can_discard:
            return False
        try:
            if self._is_device:
                host_io.device_discard(self._fd, offset, length)
            else:
                host_io.punch_hole(self._fd, offset, length)
        except OSError as error:
            if not host_io.is_unsupported(error):
                raise
            # EINVAL: this range is not one of whole blocks of the device; another may be.
            self._can_discard = error.errno == errno.EINVAL
            return False
        return True

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """See File. By the fastest way that the file system knows."""
        # A device may have anything where it discarded.
        if may_unmap and not self._is_device and self.discard(offset, length):
            return
        if self._room is not None:
            self._room.take(self._fd, offset, length)
        if self._can_zero:
            zero = host_io.device_zero if self._is_device else host_io.zero_range
            try:
                zero(self._fd, offset, length)
                return
            except OSError as error:
                if not host_io.is_unsupported(error):
                    raise
                self._can_zero = error.errno == errno.EINVAL
        host_io.write_zeroes(self._fd, offset, length)

    def sync(self) -> None:
        """See File.

        Linux tells once of a page that it could not write, and forgets the page: a later sync
        would succeed over data that is lost. So all fail from then on.
        """
        if self._sync_error is not None:
            raise OSError(self._sync_error.errno or errno.EIO, "an earlier flush failed")
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_error = error.with_traceback(None)
            raise

    def close(self) -> None:
        """See File."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
