"""The copy of what went to the guest, for as long as it may have to be sent again."""

from __future__ import annotations

from collections import deque

_SMALL_BYTES, _CHUNK_BYTES = 1024, 4096  # what is smaller is put together, up to so much


class Kept:
    """What was sent and not yet acknowledged, from the first such byte on."""

    __slots__ = ("_first", "_parts", "size")

    def __init__(self) -> None:
        self._parts: deque[bytes | bytearray] = deque()
        self._first = 0  # bytes of _parts[0] that are acknowledged
        self.size = 0

    def add(self, data: bytes) -> None:
        """Keep what was just sent."""
        self.size += len(data)
        parts = self._parts
        if not parts or len(data) >= _SMALL_BYTES:  # a reply is alone
            parts.append(data)
            return
        # An object for each byte would take fifty times the memory.
        last = parts[-1]
        if isinstance(last, bytearray) and len(last) < _CHUNK_BYTES:
            last += data
        else:
            parts.append(bytearray(data))

    def clear(self) -> None:
        """All of it is acknowledged."""
        self._parts.clear()
        self._first = self.size = 0

    def drop(self, count: int) -> None:
        """`count` bytes more are acknowledged."""
        count = min(count, self.size)
        self.size -= count
        count += self._first
        parts = self._parts
        while parts and count >= len(parts[0]):
            count -= len(parts.popleft())
        self._first = count

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""
        result = bytearray()
        offset += self._first
        for part in self._parts:
            if offset >= len(part):
                offset -= len(part)
                continue
            result += part[offset : offset + size - len(result)]
            offset = 0
            if len(result) == size:
                break
        return bytes(result)
