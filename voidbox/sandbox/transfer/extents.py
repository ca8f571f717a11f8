"""Files with holes: what is in a hole is neither read nor sent nor written.

A piece of such a file is its data, and where that belongs: pairs of so many bytes of a hole and so
many of the data after it. A hole of a terabyte is a number.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from voidbox.agent import protocol
from voidbox.errors import AgentError
from voidbox.named_tuple import NamedTuple

Extent: TypeAlias = tuple[int, int]
_OFFSET_MAX = (1 << 63) - 1  # loff_t


class Piece(NamedTuple):
    """A part of a file.

    Attributes:
        extents: where its data belongs; None: all of it in one.
    """

    data: bytes
    extents: Sequence[Extent] | None = None

    @property
    def length(self) -> int:
        """How much of the file it is, with the holes."""
        return len(self.data) + self.hole_bytes

    @property
    def hole_bytes(self) -> int:
        """How much of it is holes."""
        return sum(hole for hole, _ in self.extents or ())

    def parts(self) -> Iterator[tuple[int, memoryview]]:
        """Yield holes, each with the data after it."""
        view, at = memoryview(self.data), 0
        for hole, size in [(0, len(view))] if self.extents is None else self.extents:
            yield hole, view[at : at + size]
            at += size

    def cut(self, length: int) -> Piece:
        """Return its first so many bytes, holes counted."""
        if self.extents is None or length >= self.length:
            return self._replace(data=self.data[:length])
        extents, data_bytes = [], 0
        for hole, size in self.extents:
            hole = min(hole, length)
            size = min(size, length - hole)
            extents.append((hole, size))
            data_bytes += size
            length -= hole + size
        return Piece(self.data[:data_bytes], extents)


def checked(value: object, data: bytes, path: str) -> list[Extent] | None:
    """Return the extents that a guest says that its data has.

    Raises:
        AgentError: they make no sense.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > protocol.EXTENTS_MAX:
        raise AgentError(f"{path}: the guest's agent gave no list of extents")
    found = [tuple(pair) for pair in value if isinstance(pair, list) and len(pair) == 2]
    if len(found) < len(value) or not all(type(n) is int and n >= 0 for p in found for n in p):
        raise AgentError(f"{path}: the guest's agent gave extents without sense")
    if sum(size for _, size in found) != len(data) or sum(map(sum, found)) > _OFFSET_MAX:
        raise AgentError(f"{path}: the guest's agent gave extents that do not fit its data")
    return found


class Holes:
    """Where the holes of an open file of the host are. Its position stays as it is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of(cls, source: Any) -> Holes | None:
        """Return those of a file; None if it has none, or is none that we know all about."""
        raw = source.raw if type(source) is io.BufferedReader else source
        if type(raw) is not io.FileIO:
            return None
        status = os.fstat(raw.fileno())
        return cls(raw.fileno()) if status.st_blocks * 512 < status.st_size else None

    def next(self, at: int) -> Extent:
        """Return how long the hole at this position is, perhaps 0, and the data after it."""
        position = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            begin = os.lseek(self._fd, at, os.SEEK_DATA)
            return begin - at, os.lseek(self._fd, begin, os.SEEK_HOLE) - begin
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole, or it is the end
                return max(os.fstat(self._fd).st_size - at, 0), 0
            return 0, _OFFSET_MAX - at  # a file system that knows of no holes
        finally:
            os.lseek(self._fd, position, os.SEEK_SET)
