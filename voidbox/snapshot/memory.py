"""The memory file: a guest's RAM, its regions back to back; what is zero is a hole.

It is written once, under a name that nobody has, and never again: machines map it. Memory that is
a view of an older such file is flattened: what is still that file's is copied by the kernel (or
shared, where the file system can), and only the pages that were written are read.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence

from voidbox.named_tuple import NamedTuple
from voidbox.snapshot import pagemap

NAME = "memory"
# Zeroes are looked for in pieces of this size: smaller ones find little more.
CHUNK_BYTES = 64 << 10
_WRITE_BYTES = 1 << 20
_COPY_BYTES = 8 << 20
_FICLONE = 0x40049409  # <linux/fs.h>
_SAMPLE_BYTES = 16

_ZEROES = bytes(CHUNK_BYTES)


class Part(NamedTuple):
    """A region of guest memory.

    Attributes:
        view: it.
        address: where it is mapped in this process.
        offset: where it belongs in the file.
        base_fd: the memory file that it began as, or -1.
        base_offset: where in that file it is.
    """

    view: memoryview
    address: int
    offset: int
    base_fd: int = -1
    base_offset: int = 0


def write(fd: int, parts: Sequence[Part], check: Callable[[], None] = lambda: None) -> int:
    """Write memory that nobody changes meanwhile to a new file.

    It uses nothing but `os`: a process forked off others' threads can call it.

    Args:
        check: called every MiB or so; may raise to end it.
    Returns:
        How many bytes of data it wrote or copied.
    Raises:
        OSError: the file could not be written (ENOSPC), or read.
    """
    os.ftruncate(fd, max(part.offset + len(part.view) for part in parts))
    is_cloned = _clone(fd, parts)
    map_fd = _open_pagemap()
    try:
        return sum(_write_part(fd, part, map_fd, is_cloned, check) for part in parts)
    finally:
        if map_fd >= 0:
            os.close(map_fd)


def _open_pagemap() -> int:
    try:
        return pagemap.open_pagemap()
    except OSError:
        return -1  # then everything is looked at


def _clone(fd: int, parts: Sequence[Part]) -> bool:
    """Share the base's blocks, if all is of one file, in the same places."""
    base_fd = parts[0].base_fd
    if base_fd < 0 or any(part.offset != part.base_offset for part in parts):
        return False
    return share_blocks(base_fd, fd)


def share_blocks(source: int, target: int) -> bool:
    """Make a file hold what another does, at no cost; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _write_part(
    fd: int, part: Part, map_fd: int, is_cloned: bool, check: Callable[[], None]
) -> int:
    length = len(part.view)
    if part.base_fd < 0:
        runs = _runs(map_fd, part, pagemap.PRESENT)
        return sum(_write_run(fd, part, at, size, False, check) for at, size in runs)
    written = list(_runs(map_fd, part, pagemap.WRITTEN))
    done = 0
    if not is_cloned:
        for at, size in _without(extents(part.base_fd, part.base_offset, length), written):
            _copy(part.base_fd, part.base_offset + at, fd, part.offset + at, size, check)
            done += size
    # Zeroes must be written over what was cloned.
    return done + sum(_write_run(fd, part, at, size, is_cloned, check) for at, size in written)


def _runs(map_fd: int, part: Part, table: bytes) -> Iterator[tuple[int, int]]:
    if map_fd < 0:
        return iter([(0, len(part.view))])
    return pagemap.runs(map_fd, part.address, len(part.view), table)


def _write_run(
    fd: int, part: Part, at: int, size: int, with_zeroes: bool, check: Callable[[], None]
) -> int:
    """Write [at, at + size) of a part, but for chunks that are zero."""
    view, end = part.view, at + size
    start = at  # of what is to be written
    written = 0
    while at < end:
        chunk_end = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
        if not with_zeroes and is_zero(view[at:chunk_end]):
            written += _pwrite(fd, view[start:at], part.offset + start)
            start = chunk_end
        elif chunk_end - start >= _WRITE_BYTES:
            written += _pwrite(fd, view[start:chunk_end], part.offset + start)
            start = chunk_end
            check()
        at = chunk_end
    return written + _pwrite(fd, view[start:end], part.offset + start)


def is_zero(view: memoryview) -> bool:
    """Whether a piece of memory, of CHUNK_BYTES at most, is all zeroes."""
    # Bytes are compared by memcmp, and a memoryview item by item, in ten times the time.
    if any(view[:_SAMPLE_BYTES].tobytes()):
        return False
    return view.tobytes() == (_ZEROES if len(view) == CHUNK_BYTES else bytes(len(view)))


def _pwrite(fd: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done


def _without(
    extents_: Iterator[tuple[int, int]], holes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Return the extents but for what lies in `holes`; both are in order."""
    index = 0
    for start, size in extents_:
        end = start + size
        while index < len(holes) and sum(holes[index]) <= start:
            index += 1
        for hole, hole_size in holes[index:]:
            if hole >= end:
                break
            if hole > start:
                yield start, hole - start
            start = max(start, hole + hole_size)
        if start < end:
            yield start, end - start


def extents(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Return what holds data in [offset, offset + length) of a file, relative to `offset`."""
    at, end = offset, offset + length
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end of the file
                return
            raise
        if data >= end:
            return
        hole = min(end, os.lseek(fd, data, os.SEEK_HOLE))
        yield data - offset, hole - data
        at = hole


def _copy(
    source: int, source_at: int, target: int, target_at: int, size: int, check: Callable[[], None]
) -> None:
    while size:
        count = copy_some(source, source_at, target, target_at, min(size, _COPY_BYTES))
        source_at, target_at, size = source_at + count, target_at + count, size - count
        check()


def copy_some(source: int, source_at: int, target: int, target_at: int, size: int) -> int:
    """Copy up to `size` bytes between files, in the kernel if it can; returns how many.

    Raises:
        OSError: EIO if the source ends early, or as the kernel says.
    """
    try:
        count = os.copy_file_range(source, target, size, source_at, target_at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        count = _pwrite(target, memoryview(os.pread(source, size, source_at)), target_at)
    if not count:
        raise OSError(errno.EIO, "the file has become shorter")
    return count


def read(fd: int, parts: Sequence[Part]) -> int:
    """Fill fresh memory from a memory file, but for its holes; returns the bytes of data.

    Raises:
        OSError: it cannot be read, or is shorter than the memory.
    """
    total = 0
    for part in parts:
        for at, size in extents(fd, part.offset, len(part.view)):
            done = 0
            while done < size:
                with part.view[at + done : at + size] as target:
                    count = os.preadv(fd, [target], part.offset + at + done)
                if not count:
                    raise OSError(errno.EIO, "the file has become shorter")
                done += count
            total += size
    return total
