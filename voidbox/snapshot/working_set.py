"""What a restored guest touched first: recorded once, and fetched before it asks the next time.

A page of a mapped file costs the guest a fault, and one that it writes another and a copy. After a
restore the same few hundred pages are touched each time, so a thread fetches them in order, while
the guest starts. Only what holds data in the file: on a tmpfs, reading a hole would make it a page.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from voidbox.errors import ConfigError, HostError
from voidbox.named_tuple import NamedTuple
from voidbox.snapshot import files, pagemap
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot.memory import Part, extents
from voidbox.snapshot.plain import from_plain, to_plain
from voidbox.storage import durable

NAME = "working-set"
MADV_POPULATE_READ = 22  # <linux/mman.h>, since Linux 5.14
MADV_POPULATE_WRITE = 23
BYTES_MAX = 48 << 20  # of one that is of use
_PIECE_BYTES = 1 << 20
# Runs that are closer than this are fetched as one.
_GAP_BYTES = 16 << 10


class WorkingSet(NamedTuple):
    """Runs of a memory file, as (offset, bytes), in order.

    Attributes:
        read: what was looked at.
        written: what the guest made its own.
    """

    read: tuple[tuple[int, int], ...] = ()
    written: tuple[tuple[int, int], ...] = ()

    @property
    def size_bytes(self) -> int:
        """How much it is."""
        return sum(size for _, size in (*self.read, *self.written))


def observe(parts: Sequence[Part]) -> WorkingSet:
    """Return what has been touched of memory that is mapped from a file.

    Raises:
        OSError: the host does not say.
    """
    fd = pagemap.open_pagemap()
    try:
        found: list[list[tuple[int, int]]] = []
        for table in (pagemap.CLEAN, pagemap.WRITTEN):
            runs = [
                (part.base_offset + at, size)
                for part in parts
                for at, size in _with_data(part, fd, table)
            ]
            found.append(_joined(runs))
        return WorkingSet(tuple(found[0]), tuple(found[1]))
    finally:
        os.close(fd)


def _with_data(part: Part, fd: int, table: bytes) -> list[tuple[int, int]]:
    runs = pagemap.runs(fd, part.address, len(part.view), table)
    return _common(runs, extents(part.base_fd, part.base_offset, len(part.view)))


def _common(
    runs: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return what is in both; each is in order."""
    result = []
    ends = iter(others)
    other = next(ends, None)
    for at, size in runs:
        while other is not None and sum(other) <= at:
            other = next(ends, None)
        while other is not None and other[0] < at + size:
            start, end = max(at, other[0]), min(at + size, sum(other))
            result.append((start, end - start))
            if sum(other) > at + size:
                break
            other = next(ends, None)
    return result


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for at, size in runs:
        if joined and at - sum(joined[-1]) < _GAP_BYTES and at >= sum(joined[-1]):
            joined[-1] = (joined[-1][0], at + size - joined[-1][0])
        else:
            joined.append((at, size))
    return joined


def save(path: str, working_set: WorkingSet) -> None:
    """Write it beside the memory; whoever is first stays.

    Raises:
        HostError: it cannot be written.
    """
    beside = f"{path}.{os.getpid()}"
    try:
        try:
            files.write(beside, machine_bin.encode(to_plain(working_set)))
            with suppress(FileExistsError):
                os.link(beside, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(beside)
    except OSError as error:
        raise durable.failure("write", path, error) from error


def load(folder: str) -> WorkingSet | None:
    """Return a snapshot's; None if there is none, or none that is of use.

    Another guest's process has written it: it may have been taken over, and ask for all there is.
    """
    path = os.path.join(folder, NAME)
    if not os.path.lexists(path):
        return None
    try:
        found = from_plain(WorkingSet, machine_bin.read_file(path))
    except (ConfigError, HostError):
        return None
    return found if found.size_bytes <= BYTES_MAX else None


class Prefetch:
    """Fetches a working set into mappings, a piece a call. Thread: one of its own, or any one.

    Args:
        maps: (first offset in the file, fd, the mapping) of each region.
    """

    def __init__(self, working_set: WorkingSet, maps: Sequence[tuple[int, int, mmap.mmap]]) -> None:
        self._work = [
            (mapping, at - start, size, advice)
            for start, fd, mapping in maps
            for runs, advice in (
                (working_set.written, MADV_POPULATE_WRITE),
                (working_set.read, MADV_POPULATE_READ),
            )
            for at, size in _common(
                runs, ((start + at, size) for at, size in extents(fd, start, len(mapping)))
            )
        ]
        self._is_stopped = False

    def run(self) -> None:
        """Fetch everything; ends early after stop()."""
        for mapping, at, size, advice in self._work:
            for piece in range(at, at + size, _PIECE_BYTES):
                if self._is_stopped:
                    return
                try:
                    mapping.madvise(advice, piece, min(_PIECE_BYTES, at + size - piece))
                except OSError:  # an older kernel, or no memory left: the guest fetches it
                    return

    def stop(self) -> None:
        """Have run() return soon. Thread: any."""
        self._is_stopped = True
