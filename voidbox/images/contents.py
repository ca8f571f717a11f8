"""Copy files' contents to a place in an image, by the kernel where it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from voidbox.images.errors import ImageError
from voidbox.images.tree import Extent

_CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 64 << 10  # below, two plain calls are as cheap as one that may be refused
# copy_file_range: not on these file systems, not between them, not by this kernel.
_NOT_BY_KERNEL = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM}


class Copier:
    """Copies into one file. Parts that nothing is copied to stay as they are: holes of a new file.

    Args:
        target: the file's descriptor.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._by_kernel = True
        self._buffer = bytearray(_CHUNK_BYTES)

    def copy(self, source: int, extent: Extent, position: int) -> None:
        """Copy an extent from an open source to a position in the target, in bytes.

        Raises:
            ImageError: the source has fewer bytes than the extent.
            OSError: reading or writing failed: the disk is full, say.
        """
        offset, left = extent.offset, extent.length
        while left:
            done = 0
            if self._by_kernel and left > _SMALL_BYTES:
                done = self._copy_by_kernel(source, offset, position, left)
            if not done:
                done = self._copy_by_hand(source, offset, position, left)
            offset, position, left = offset + done, position + done, left - done

    def _copy_by_kernel(self, source: int, offset: int, position: int, length: int) -> int:
        try:
            return os.copy_file_range(source, self._target, length, offset, position)
        except OSError as error:
            if error.errno not in _NOT_BY_KERNEL:
                raise
            self._by_kernel = False
            return 0

    def _copy_by_hand(self, source: int, offset: int, position: int, length: int) -> int:
        view = memoryview(self._buffer)[: min(length, _CHUNK_BYTES)]
        count = os.preadv(source, [view], offset)
        if not count:
            raise ImageError("a file became shorter while it was read")
        write_all(self._target, view[:count], position)
        return count


def write_all(descriptor: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of `data` at a position.

    Raises:
        OSError: as write(2).
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def read_all(descriptor: int, view: memoryview, position: int) -> None:
    """Fill `view` from a position.

    Raises:
        ImageError: there are fewer bytes.
        OSError: as pread(2).
    """
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise ImageError("a file became shorter while it was read")
        view, position = view[count:], position + count


def part(extents: tuple[Extent, ...], start: int, end: int) -> Iterator[Extent]:
    """Yield what of the extents lies in [start, end), cut to it."""
    for extent in extents:
        first, last = max(start, extent.position), min(end, extent.position + extent.length)
        if first < last:
            offset = extent.offset + first - extent.position
            yield Extent(first, last - first, extent.source, offset)
