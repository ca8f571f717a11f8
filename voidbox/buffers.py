"""Lists of buffers: one packet or frame, in pieces of guest memory wherever the driver put them."""

from __future__ import annotations

from collections.abc import Sequence


def skip(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return a list of buffers without its first `count` bytes."""
    result = []
    for buffer in buffers:
        if count >= len(buffer):
            count -= len(buffer)
        else:
            result.append(buffer[count:] if count else buffer)
            count = 0
    return result


def clip(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return the first `count` bytes of a list of buffers, or all if it has fewer."""
    result = []
    for buffer in buffers:
        if count <= 0:
            break
        result.append(buffer if len(buffer) <= count else buffer[:count])
        count -= len(buffer)
    return result


def first_bytes(buffers: Sequence[memoryview], count: int) -> bytes:
    """Return a copy of the first `count` bytes of a list of buffers, or of all if it has fewer."""
    if len(buffers) == 1 or (buffers and len(buffers[0]) >= count):
        return bytes(buffers[0][:count])
    return b"".join(clip(buffers, count))


def write_bytes(buffers: Sequence[memoryview], data: bytes) -> None:
    """Copy `data` to the start of a list of buffers, which has room for it."""
    if len(buffers[0]) >= len(data):
        buffers[0][: len(data)] = data
        return
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
        if done == len(data):
            return


class Cursor:
    """Takes a list of buffers apart, from its start on."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = buffers
        self._idx = 0
        self._used = 0  # bytes of the buffer at _idx

    def take(self, count: int) -> list[memoryview]:
        """Return the next `count` bytes, or all that are left."""
        result = []
        while count > 0 and self._idx < len(self._buffers):
            piece = self._buffers[self._idx][self._used : self._used + count]
            self._used += len(piece)
            count -= len(piece)
            if piece:
                result.append(piece)
            if self._used == len(self._buffers[self._idx]):
                self._idx += 1
                self._used = 0
        return result
