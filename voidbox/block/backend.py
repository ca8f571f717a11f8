"""What a disk's device asks of what lies behind it, and the plainest such thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from voidbox.block.host_file import File
from voidbox.block.host_io import Buffers


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

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        """Fill the buffers, which have `length` bytes in all.

        Args:
            nowait: unless the disk would have to be waited for.
        Raises:
            BlockingIOError: it would; some of the buffers may be filled.
            OSError: EOPNOTSUPP: that cannot be told, now or ever.
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

    def __init__(self, file: File, size_bytes: int, is_read_only: bool) -> None:
        self.size_bytes = size_bytes
        self.is_read_only = is_read_only
        self._file = file

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        """See Backend."""
        self._file.read(buffers, offset, length, nowait)

    def write(self, buffers: Buffers, offset: int, length: int) -> None:
        """See Backend."""
        self._file.write(buffers, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """See Backend. What cannot be discarded stays: the guest was promised nothing."""
        self._file.discard(offset, length)

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """See Backend."""
        self._file.zero(offset, length, may_unmap)

    def flush(self) -> None:
        """See Backend."""
        self._file.sync()

    def close(self) -> None:
        """See Backend."""
        self._file.close()
