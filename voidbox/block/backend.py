"""What a disk's device asks of what lies behind it, and the plainest such thing."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

from voidbox.block import host_io
from voidbox.block.host_io import Buffers
from voidbox.block.image import Image


class Backend(Protocol):
    """The bytes of one disk. Thread: any; calls may overlap in time.

    Every call but `close` raises OSError for what the host cannot do. Ranges lie inside the disk
    and begin and end at sectors: the caller sees to it. Of calls that overlap in time and in range,
    either may win, sector by sector.

    Attributes:
        size_bytes: a multiple of 512.
        is_read_only: write, discard and zero are never called.
    """

    size_bytes: int
    is_read_only: bool

    def read(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Fill the buffers, which have `length` bytes in all."""
        ...

    def read_nowait(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """As read(), unless the disk would have to be waited for.

        Raises:
            BlockingIOError: it would; some of the buffers may be filled.
            OSError: EOPNOTSUPP: nobody can tell. It never will be known.
        """
        ...

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """Write the buffers, which have `length` bytes in all."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """The guest no longer needs what is there: it may read as anything."""
        ...

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """Have it read as zeroes; `may_unmap`: and give the room for it back."""
        ...

    def flush(self) -> None:
        """Return when all that was written before is on the disk, come a power cut what may."""
        ...

    def close(self) -> None:
        """Let go of the files. Idempotent. No other call is under way, or comes after."""
        ...


class RawBackend:
    """An image file, or a block device, byte for byte. Thread: any."""

    def __init__(self, image: Image, is_read_only: bool) -> None:
        self.size_bytes = image.size_bytes
        self.is_read_only = is_read_only
        self._fd = image.fd
        self._is_device = image.is_device
        self._can_punch = self._can_zero = True
        self._flush_error: OSError | None = None

    def read(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """See Backend."""
        host_io.read_all(self._fd, buffers, offset, length)

    def read_nowait(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """See Backend."""
        host_io.read_nowait(self._fd, buffers, offset, length)

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """See Backend."""
        host_io.write_all(self._fd, buffers, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """See Backend. What cannot be discarded stays: the guest was promised nothing."""
        if not self._can_punch:
            return
        try:
            if self._is_device:
                host_io.device_discard(self._fd, offset, length)
            else:
                host_io.punch_hole(self._fd, offset, length)
        except OSError as error:
            if not host_io.is_unsupported(error):
                raise
            self._can_punch = False

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """See Backend. By the fastest way that the file knows."""
        if self._is_device:
            host_io.device_zero(self._fd, offset, length)
            return
        if may_unmap and self._can_punch:
            try:
                host_io.punch_hole(self._fd, offset, length)
                return
            except OSError as error:
                if not host_io.is_unsupported(error):
                    raise
                self._can_punch = False
        if self._can_zero:
            try:
                host_io.zero_range(self._fd, offset, length)
                return
            except OSError as error:
                if not host_io.is_unsupported(error):
                    raise
                self._can_zero = False
        host_io.write_zeroes(self._fd, offset, length)

    def flush(self) -> None:
        """See Backend.

        Linux tells of a page that it could not write once, and forgets the page: a flush after
        that would succeed over data that is lost. So all flushes fail from then on.
        """
        if self._flush_error is not None:
            raise OSError(self._flush_error.errno or errno.EIO, "an earlier flush failed")
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._flush_error = error
            raise

    def close(self) -> None:
        """See Backend."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
