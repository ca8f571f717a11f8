"""Descriptors, the driver's word on where buffers are; a chain is one request (VirtIO 1.2 §2.7.5).

The table is in guest memory, and so are the indirect tables that it may lead into. The driver is
hostile: what is read is copied to a local once and then checked, every walk is bounded, and every
broken rule is a GuestError.
"""

from __future__ import annotations

import struct

from voidbox.errors import GuestError
from voidbox.memory import GuestMemory

VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4

DESC_BYTES = 16
# The longest indirect table. A chain may not exceed the queue size (§2.7.5.3.1), but Linux drivers
# do exceed it with indirect tables; this is QEMU's bound, and IOV_MAX: one readv takes a chain.
INDIRECT_DESCS_MAX = 1024
# A used element's length is a u32.
CHAIN_BYTES_MAX = 0xFFFF_FFFF

# A descriptor as two u64 words: addr, and len | flags << 32 | next << 48.
LEN_MASK = 0xFFFF_FFFF
NEXT = VRING_DESC_F_NEXT << 32
WRITE = VRING_DESC_F_WRITE << 32
INDIRECT = VRING_DESC_F_INDIRECT << 32
_NEXT_SHIFT = 48
KIND = NEXT | WRITE | INDIRECT
# An indirect table of two descriptors, the first one's flags and next as one word.
_TWO_DESCS = struct.Struct("<QIIQIHxx")
_TWO_DESCS_BYTES = 2 * DESC_BYTES
_TWO_DESCS_MASK, _TWO_DESCS_WORD = NEXT | INDIRECT | LEN_MASK, INDIRECT | _TWO_DESCS_BYTES
_SECOND_FOLLOWS = 1 << 16 | VRING_DESC_F_NEXT
assert _TWO_DESCS.size == _TWO_DESCS_BYTES
_unpack_two_descs = _TWO_DESCS.unpack_from


class Chain:
    """One request: the buffers of a descriptor chain, as slices of guest memory.

    The buffers alias memory that the guest may change at any time: copy a header once, then check
    the copy. Empty buffers are left out. Neither list is longer than the larger of the queue size
    and INDIRECT_DESCS_MAX.

    Attributes:
        head_idx: what `add_used` takes.
        readable: what the driver sent, in order.
        writable: where the device answers, in order.
        readable_bytes: their sum; with writable_bytes at most CHAIN_BYTES_MAX.
        writable_bytes: likewise.
    """

    __slots__ = ("head_idx", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(
        self,
        head_idx: int,
        readable: list[memoryview],
        writable: list[memoryview],
        readable_bytes: int,
        writable_bytes: int,
    ) -> None:
        self.head_idx = head_idx
        self.readable = readable
        self.writable = writable
        self.readable_bytes = readable_bytes
        self.writable_bytes = writable_bytes


class DescriptorTable:
    """A queue's descriptors, taken apart into slices of guest memory. Thread: loop.

    Args:
        memory: the guest's RAM.
        size: number of descriptors.
        desc_gpa: where they are.
        indirect: VIRTIO_RING_F_INDIRECT_DESC was negotiated.
    Raises:
        GuestError: the table is misaligned or outside RAM.
    """

    def __init__(self, memory: GuestMemory, size: int, desc_gpa: int, indirect: bool) -> None:
        if desc_gpa % DESC_BYTES:
            raise GuestError(f"descriptor table at {desc_gpa:#x} is not aligned to 16 bytes")
        self.size = size
        self.desc_gpa = desc_gpa
        self.indirect = indirect
        self._memory = memory
        self._mask = size - 1
        # Most buffers are in low RAM: sliced without a call. What is not, view() judges.
        self._low = memory.regions[0].view
        self._low_bytes = memory.regions[0].size_bytes
        # Where a table of two descriptors may begin that _two() reads in place.
        self._two_descs_max_gpa = self._low_bytes - _TWO_DESCS_BYTES if indirect else -1
        # The whole of it, checked here once: indexing the view needs no check later.
        self._desc = memory.words(desc_gpa, "Q", 2 * size)

    def _walk(self, head_idx: int, ranges: list[tuple[int, int]] | None = None) -> Chain:
        """Take a chain of more than one descriptor apart; add where its buffers are to `ranges`.

        The table is the queue's own until a descriptor with INDIRECT, which ends that part (NEXT
        may not stand beside it), leads into a private copy of the table it points to.
        """
        low, low_bytes, view = self._low, self._low_bytes, self._memory.view
        table: memoryview | list[int] = self._desc
        table_size = ttl = self.size
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        readable_bytes = writable_bytes = 0
        seen_writable = False
        idx = head_idx
        while ttl:
            ttl -= 1
            addr = table[2 * idx]
            word = table[2 * idx + 1]
            length = word & LEN_MASK
            if word & INDIRECT:
                if table is not self._desc or word & NEXT:
                    raise GuestError("an indirect descriptor inside a table, or one with a next")
                table = self._indirect_table(addr, length)
                table_size = ttl = len(table) // 2
                idx = 0
                continue
            if word & WRITE:
                seen_writable = True
            elif seen_writable:
                raise GuestError("a readable descriptor after a writable one")
            if length:
                end = addr + length
                buffer = low[addr:end] if end <= low_bytes else view(addr, length)
                if ranges is not None:
                    ranges.append((addr, length))
                if seen_writable:
                    writable_bytes += length
                    writable.append(buffer)
                else:
                    readable_bytes += length
                    readable.append(buffer)
            if not word & NEXT:
                break
            idx = word >> _NEXT_SHIFT
            if idx >= table_size:
                raise GuestError(f"next descriptor {idx} in a table of {table_size}")
        else:
            raise GuestError(f"the descriptor chain at {head_idx} has a loop")
        if readable_bytes + writable_bytes > CHAIN_BYTES_MAX:
            raise GuestError("a descriptor chain of 4 GiB or more")
        return Chain(head_idx, readable, writable, readable_bytes, writable_bytes)

    def _indirect_table(self, gpa: int, length: int) -> list[int]:
        """Copy an indirect table out of guest memory, where it needs no alignment."""
        if not self.indirect:
            raise GuestError("an indirect descriptor, a feature that was not negotiated")
        if length == 0 or length % DESC_BYTES:
            raise GuestError(f"an indirect table of {length} bytes")
        if length > DESC_BYTES * max(self.size, INDIRECT_DESCS_MAX):
            raise GuestError(f"an indirect table of {length // DESC_BYTES} descriptors")
        end = gpa + length
        table = self._low[gpa:end] if end <= self._low_bytes else self._memory.view(gpa, length)
        return table.cast("Q").tolist()

    def _two(self, gpa: int, word: int, flags: int) -> tuple[int, list[memoryview]] | None:
        """Return an indirect chain of two buffers of one direction: a header and its data, say.

        What _walk() does, for the chain that Linux's vsock has thousands of a second; None for any
        other, and for what breaks a rule.

        Args:
            gpa, word: the descriptor in the queue's own table.
            flags: VRING_DESC_F_WRITE if the device may write to both, 0 if it may read both.
        Returns:
            The bytes of both, and the buffers.
        """
        if word & _TWO_DESCS_MASK != _TWO_DESCS_WORD or gpa > self._two_descs_max_gpa:
            return None
        low, low_bytes = self._low, self._low_bytes
        addr, length, first, next_addr, next_length, second = _unpack_two_descs(low, gpa)
        end, next_end, total = addr + length, next_addr + next_length, length + next_length
        if (
            first != _SECOND_FOLLOWS | flags
            or second != flags
            or end > low_bytes
            or next_end > low_bytes
            or total > CHAIN_BYTES_MAX
            or not (length and next_length)
        ):
            return None
        return total, [low[addr:end], low[next_addr:next_end]]
