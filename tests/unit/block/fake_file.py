"""A file in memory that remembers what a power cut could undo, and can be stopped at any call."""

from __future__ import annotations

import random
from collections.abc import Sequence

SECTOR = 512


class Stopped(Exception):
    """The process was killed, or the power went."""


class FakeFile:
    """A `File`; what was written since the last sync() may be there after a power cut, or not.

    Args:
        stop_at: the call (of write, discard, zero and sync, counted from 0) in the middle of which
            everything ends.
    """

    def __init__(self, content: bytes, stop_at: int | None = None, is_base: bool = False) -> None:
        self.now = bytearray(content)
        self.durable = bytearray(content)
        self.pending: list[tuple[int, bytes]] = []  # pieces of up to a sector, in their order
        self.calls = 0
        self.stop_at = stop_at
        self.is_base = is_base
        self.fail_next: OSError | None = None

    def _call(self) -> bool:
        """Count a call; True if all ends in its middle."""
        assert not self.is_base, "a base is only read"
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.calls += 1
        return self.stop_at is not None and self.calls > self.stop_at

    def _put(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.now)
        for at in range(0, len(data), SECTOR):
            self.pending.append((offset + at, data[at : at + SECTOR]))
        self.now[offset : offset + len(data)] = data

    def read(
        self, buffers: Sequence[memoryview], offset: int, length: int, nowait: bool = False
    ) -> None:
        assert sum(map(len, buffers)) == length
        assert offset + length <= len(self.now)
        for buffer in buffers:
            buffer[:] = self.now[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, buffers: Sequence[memoryview | bytes], offset: int, length: int) -> None:
        data = b"".join(buffers)
        assert len(data) == length
        if self._call():
            self._put(offset, data[: length // 2 // SECTOR * SECTOR])
            raise Stopped
        self._put(offset, data)

    def discard(self, offset: int, length: int) -> bool:
        self.zero(offset, length, True)
        return True

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        if self._call():
            raise Stopped
        self._put(offset, bytes(length))

    def sync(self) -> None:
        if self._call():
            raise Stopped
        self.durable[:] = self.now
        self.pending.clear()

    def close(self) -> None:
        pass

    def after_power_cut(self, seed: int) -> bytes:
        """What may be on the disk: of what was not synced, any part, in any order."""
        chooser = random.Random(seed)
        share = chooser.choice((0.0, 0.3, 0.7, 1.0))
        content = bytearray(self.durable)
        for offset, data in self.pending:
            if chooser.random() < share:
                content[offset : offset + len(data)] = data
        return bytes(content)
