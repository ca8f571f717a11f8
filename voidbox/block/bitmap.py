"""A bit for each cluster of a disk, and which pages of the bits the file does not have yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PAGE_BYTES = 4096


class Bitmap:
    """Bits that are set and never cleared. Thread: any may look; one at a time may change.

    Args:
        bits: one for each cluster, the first in the lowest bit of the first byte; a multiple of
            PAGE_BYTES. It becomes the object's.
    """

    def __init__(self, bits: bytearray) -> None:
        self._bits = bits
        self._dirty: set[int] = set()

    def _value(self, first: int, end: int) -> int:
        value = int.from_bytes(self._bits[first >> 3 : (end + 7) >> 3], "little")
        return value >> (first & 7) & ((1 << (end - first)) - 1)

    def is_set(self, idx: int) -> bool:
        """Whether one bit is set."""
        return bool(self._bits[idx >> 3] >> (idx & 7) & 1)

    def are_set(self, first: int, end: int) -> bool:
        """Whether all bits from `first` to before `end` are set."""
        return self._value(first, end) == (1 << (end - first)) - 1

    def runs(self, first: int, end: int) -> Iterator[tuple[bool, int]]:
        """Return pieces of [first, end) whose bits are alike: set or not, and where it ends."""
        value = self._value(first, end)
        while first < end:
            is_set = bool(value & 1)
            other = ~value if is_set else value
            # How many low bits are alike; past the last one, all are.
            length = min((other & -other).bit_length() - 1, end - first) if other else end - first
            value >>= length
            first += length
            yield is_set, first

    def set(self, first: int, end: int) -> None:
        """Set the bits from `first` to before `end`."""
        first_byte, end_byte = first >> 3, (end + 7) >> 3
        value = self._value(first_byte << 3, end_byte << 3)
        value |= ((1 << (end - first)) - 1) << (first & 7)
        self._bits[first_byte:end_byte] = value.to_bytes(end_byte - first_byte, "little")
        self._dirty.update(range(first_byte // PAGE_BYTES, (end_byte - 1) // PAGE_BYTES + 1))

    @property
    def is_dirty(self) -> bool:
        """Whether a bit was set since take_dirty()."""
        return bool(self._dirty)

    def take_dirty(self) -> list[tuple[int, bytes]]:
        """Return the pages with new bits, as (offset in bytes, copy), and call them clean."""
        pages = [page * PAGE_BYTES for page in sorted(self._dirty)]
        self._dirty.clear()
        return [(offset, bytes(self._bits[offset : offset + PAGE_BYTES])) for offset in pages]

    def mark_dirty(self, offsets: Iterable[int]) -> None:
        """Take back that pages of take_dirty() are clean."""
        self._dirty.update(offset // PAGE_BYTES for offset in offsets)
