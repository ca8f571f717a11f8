"""The split virtqueue, device side (VirtIO 1.2 §2.7).

Three arrays in guest memory, each written by one side only:

    descriptor table   driver   where the buffers are: {u64 addr; u32 len; u16 flags; u16 next}
    available ring     driver   {u16 flags; u16 idx; u16 ring[size]; u16 used_event}
    used ring          device   {u16 flags; u16 idx; {u32 id; u32 len} ring[size]; u16 avail_event}

Both `idx` run freely from 0 to 65,535 and wrap; a ring is indexed by idx modulo its size. The
driver is hostile: everything read from guest memory is copied to a local once and then checked,
every walk is bounded, and every broken rule is a GuestError.

Memory ordering. x86-64 keeps loads in order and stores in order, so a ring entry is read after the
idx that announced it and written before the idx that announces it. A load may still overtake an
earlier store to another address, and two places cannot live with that: they take and release an
uncontended lock, a locked instruction and hence a full fence (`_fence`). See `publish` and
`enable_notification`.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Sequence
from itertools import chain as join
from typing import NamedTuple, TypeAlias

from voidbox.errors import GuestError
from voidbox.memory import GuestMemory

VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4
VRING_USED_F_NO_NOTIFY = 1
VRING_AVAIL_F_NO_INTERRUPT = 1

QUEUE_SIZE_MAX = 32768
DESC_BYTES = 16
# The longest indirect table. A chain may not exceed the queue size (§2.7.5.3.1), but Linux drivers
# do exceed it with indirect tables; this is QEMU's bound, and IOV_MAX: one readv takes a chain.
INDIRECT_DESCS_MAX = 1024
# A used element's length is a u32.
CHAIN_BYTES_MAX = 0xFFFF_FFFF

# A descriptor as two u64 words: addr, and len | flags << 32 | next << 48.
_LEN_MASK = 0xFFFF_FFFF
_NEXT = VRING_DESC_F_NEXT << 32
_WRITE = VRING_DESC_F_WRITE << 32
_INDIRECT = VRING_DESC_F_INDIRECT << 32
_NEXT_SHIFT = 48
_KIND = _NEXT | _WRITE | _INDIRECT
_TWO_DESCS_BYTES = 2 * DESC_BYTES
_TWO_DESCS = struct.Struct("<QIHHQIHH")
assert _TWO_DESCS.size == _TWO_DESCS_BYTES
_unpack_two_descs = _TWO_DESCS.unpack_from
assert array("I").itemsize == 4


def vring_need_event(event_idx: int, new_idx: int, old_idx: int) -> bool:
    """Whether going from old_idx to new_idx passed the event the other side asked for.

    The kernel's `vring_need_event()`: true if event_idx lies in [old_idx, new_idx), modulo 2^16.
    """
    return ((new_idx - event_idx - 1) & 0xFFFF) < ((new_idx - old_idx) & 0xFFFF)


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


# A chain that the device may only write to: head_idx, its bytes, its buffers.
WritableChain: TypeAlias = tuple[int, int, list[memoryview]]


class QueueState(NamedTuple):
    """A virtqueue at rest, for a snapshot. What is in the rings is in guest memory already."""

    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int
    event_idx: bool
    indirect: bool
    next_avail_idx: int
    next_used_idx: int
    published_idx: int


class Virtqueue:
    """The device's end of one split virtqueue. Thread: loop.

    Args:
        memory: the guest's RAM.
        size: number of descriptors, a power of two up to 32,768.
        desc_gpa: the descriptor table ("Descriptor Area").
        driver_gpa: the available ring ("Driver Area").
        device_gpa: the used ring ("Device Area").
        event_idx: VIRTIO_RING_F_EVENT_IDX was negotiated.
        indirect: VIRTIO_RING_F_INDIRECT_DESC was negotiated.

    Raises:
        GuestError: the size is no power of two, an address is misaligned or outside RAM.
    """

    def __init__(
        self,
        memory: GuestMemory,
        *,
        size: int,
        desc_gpa: int,
        driver_gpa: int,
        device_gpa: int,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        if not 0 < size <= QUEUE_SIZE_MAX or size & (size - 1):
            raise GuestError(f"a queue size of {size} is no power of two up to {QUEUE_SIZE_MAX}")
        if desc_gpa % DESC_BYTES:
            raise GuestError(f"descriptor table at {desc_gpa:#x} is not aligned to 16 bytes")
        self.size = size
        self.desc_gpa = desc_gpa
        self.driver_gpa = driver_gpa
        self.device_gpa = device_gpa
        self.event_idx = event_idx
        self.indirect = indirect
        self._memory = memory
        # Most buffers are in low RAM: sliced without a call. What is not, view() judges.
        self._low = memory.regions[0].view
        self._low_bytes = memory.regions[0].size_bytes
        # Where a table of two descriptors may begin that _two() reads in place.
        self._two_descs_max_gpa = self._low_bytes - _TWO_DESCS_BYTES if indirect else -1
        # The whole of each ring, checked here once: indexing the views needs no check later.
        self._desc = memory.words(desc_gpa, "Q", 2 * size)
        self._avail = memory.words(driver_gpa, "H", 3 + size)
        # The used ring is u32 pairs between u16 words, so it has two views. Its ring starts 4
        # bytes in: element i is the words 1 + 2i and 2 + 2i of the u32 view.
        if device_gpa % 4:
            raise GuestError(f"used ring at {device_gpa:#x} is not aligned to 4 bytes")
        self._used = memory.words(device_gpa, "H", 3 + 4 * size)
        self._used_ring = memory.words(device_gpa, "I", 1 + 2 * size)
        self._mask = size - 1
        self._used_event_slot = 2 + size
        self._avail_event_slot = 2 + 4 * size
        self._fence = threading.Lock()
        self._next_avail = 0  # the avail idx of the next chain to take
        self._next_used = 0  # the used idx of the next add_used
        self._published = 0  # the used idx that the driver can see

    def next_chain(self) -> Chain | None:
        """Take the next available chain; None if there is none.

        Raises:
            GuestError: the ring or the chain breaks a rule.
        """
        avail = self._avail
        next_avail = self._next_avail
        avail_idx = avail[1]
        if avail_idx == next_avail:
            return None
        # A chain holds at least one descriptor until the driver sees it used, so no more than
        # `size` can be outstanding. This implies avail.idx - next <= size, and it bounds what one
        # pass can take before publish(), however fast another vCPU adds chains.
        if ((avail_idx - self._published) & 0xFFFF) > self.size:
            raise self._too_far_ahead(avail_idx)
        head_idx = avail[2 + (next_avail & self._mask)]
        if head_idx > self._mask:
            raise GuestError(f"head {head_idx} in a queue of {self.size}")
        desc = self._desc
        word = desc[2 * head_idx + 1]
        length = word & _LEN_MASK
        if word & (_NEXT | _INDIRECT) or not length:
            two = self._two(head_idx, word)
            if two is None:
                chain = self._walk(head_idx)
            elif two[0]:
                chain = Chain(head_idx, [], two[2], 0, two[1])
            else:
                chain = Chain(head_idx, two[2], [], two[1], 0)
        else:
            addr = desc[2 * head_idx]
            end = addr + length
            low = end <= self._low_bytes
            buffers = [self._low[addr:end] if low else self._memory.view(addr, length)]
            if word & _WRITE:
                chain = Chain(head_idx, [], buffers, 0, length)
            else:
                chain = Chain(head_idx, buffers, [], length, 0)
        self._next_avail = (next_avail + 1) & 0xFFFF
        return chain

    def next_ranges(self) -> tuple[int, list[tuple[int, int]]] | None:
        """Take the next available chain as the guest's addresses of what the device may write.

        For a device that does something else with that memory than to write it.

        Returns:
            The head, and (gpa, length) of each buffer that is not empty; None if there is no chain.
        Raises:
            GuestError: as next_chain(); or the chain has a readable buffer.
        """
        avail_idx = self._avail[1]
        if avail_idx == self._next_avail:
            return None
        if ((avail_idx - self._published) & 0xFFFF) > self.size:
            raise self._too_far_ahead(avail_idx)
        head_idx = self._avail[2 + (self._next_avail & self._mask)]
        if head_idx > self._mask:
            raise GuestError(f"head {head_idx} in a queue of {self.size}")
        ranges: list[tuple[int, int]] = []
        if self._walk(head_idx, ranges).readable:
            raise GuestError("a readable buffer in a chain to be written")
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return head_idx, ranges

    def _too_far_ahead(self, avail_idx: int) -> GuestError:
        return GuestError(f"avail idx {avail_idx} is too far ahead of used idx {self._published}")

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
            length = word & _LEN_MASK
            if word & _INDIRECT:
                if table is not self._desc or word & _NEXT:
                    raise GuestError("an indirect descriptor inside a table, or one with a next")
                table = self._indirect_table(addr, length)
                table_size = ttl = len(table) // 2
                idx = 0
                continue
            if word & _WRITE:
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
            if not word & _NEXT:
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

    def next_writable(
        self, wanted_bytes: int, chains_max: int, chain_bytes_min: int
    ) -> tuple[list[WritableChain], int]:
        """Take chains that the driver only wants written, until they hold `wanted_bytes`.

        What `next_chain` gives, many at a time, for a device to which calls are too dear.

        Returns:
            As many as it took, as were there, or chains_max; and the bytes they hold.
        Raises:
            GuestError: as next_chain(); the device may read one, or it is below chain_bytes_min.
        """
        avail, desc, mask = self._avail, self._desc, self._mask
        low, low_bytes, view = self._low, self._low_bytes, self._memory.view
        next_avail = self._next_avail
        avail_idx = avail[1]
        if ((avail_idx - self._published) & 0xFFFF) > self.size:
            raise self._too_far_ahead(avail_idx)
        chains: list[WritableChain] = []
        total_bytes = 0
        while total_bytes < wanted_bytes and next_avail != avail_idx and len(chains) < chains_max:
            head_idx = avail[2 + (next_avail & mask)]
            if head_idx > mask:
                raise GuestError(f"head {head_idx} in a queue of {self.size}")
            word = desc[2 * head_idx + 1]
            length = word & _LEN_MASK
            if word & _KIND == _WRITE:
                addr = desc[2 * head_idx]
                end = addr + length
                buffers = [low[addr:end] if end <= low_bytes else view(addr, length)]
            elif (two := self._two(head_idx, word)) is not None and two[0]:
                _, length, buffers = two
            else:
                chain = self._walk(head_idx)
                if chain.readable_bytes:
                    raise GuestError("a readable buffer in a chain to be written")
                length = chain.writable_bytes
                buffers = chain.writable
            if length < chain_bytes_min:
                raise GuestError(f"a buffer with room for {length} bytes of {chain_bytes_min}")
            chains.append((head_idx, length, buffers))
            total_bytes += length
            next_avail = (next_avail + 1) & 0xFFFF
        self._next_avail = next_avail
        return chains, total_bytes

    def next_readable(self) -> tuple[int, list[memoryview]] | None:
        """Take the next chain that the driver sends, and return it.

        What next_chain() and add_used() do, in one, for a device to which calls are too dear. The
        buffers are the device's until publish(): only then the driver sees them returned.

        Returns:
            The chain's bytes and its buffers; None if there is no chain.
        Raises:
            GuestError: as next_chain(); or the device may write to it.
        """
        avail = self._avail
        next_avail = self._next_avail
        avail_idx = avail[1]
        if avail_idx == next_avail:
            return None
        if ((avail_idx - self._published) & 0xFFFF) > self.size:
            raise self._too_far_ahead(avail_idx)
        mask = self._mask
        head_idx = avail[2 + (next_avail & mask)]
        if head_idx > mask:
            raise GuestError(f"head {head_idx} in a queue of {self.size}")
        desc = self._desc
        addr, word = desc[2 * head_idx], desc[2 * head_idx + 1]
        length = word & _LEN_MASK
        end = addr + length
        if word & _KIND or not length or end > self._low_bytes:
            length, buffers = self._readable(head_idx, word)
        else:
            buffers = [self._low[addr:end]]
        self._next_avail = (next_avail + 1) & 0xFFFF
        next_used = self._next_used
        slot = (next_used & mask) * 2 + 1
        ring = self._used_ring
        ring[slot] = head_idx
        ring[slot + 1] = 0
        self._next_used = (next_used + 1) & 0xFFFF
        return length, buffers

    def _readable(self, head_idx: int, word: int) -> tuple[int, list[memoryview]]:
        two = self._two(head_idx, word)
        if two is not None and not two[0]:
            return two[1], two[2]
        chain = self._walk(head_idx)
        if chain.writable_bytes:
            raise GuestError("a writable buffer in a chain to be read")
        return chain.readable_bytes, chain.readable

    def _two(self, head_idx: int, word: int) -> tuple[int, int, list[memoryview]] | None:
        """Return a chain of two buffers of one direction, a header and its data say.

        What _walk() does, for the chain that Linux's vsock has thousands of a second; None for any
        other, and for what breaks a rule.

        Returns:
            VRING_DESC_F_WRITE or 0, the bytes of both, and the buffers.
        """
        low, low_bytes = self._low, self._low_bytes
        addr = self._desc[2 * head_idx]
        if word & _INDIRECT:
            if word & (_NEXT | _LEN_MASK) != _TWO_DESCS_BYTES or addr > self._two_descs_max_gpa:
                return None
            (
                addr, length, flags, next_idx, next_addr, next_length, next_flags, _
            ) = _unpack_two_descs(low, addr)  # fmt: skip
            if next_idx != 1:
                return None
        else:
            length, flags, next_idx = word & _LEN_MASK, word >> 32 & 0xFFFF, word >> _NEXT_SHIFT
            if next_idx > self._mask:
                return None
            next_addr, next_word = self._desc[2 * next_idx], self._desc[2 * next_idx + 1]
            next_length, next_flags = next_word & _LEN_MASK, next_word >> 32 & 0xFFFF
        end, next_end, total = addr + length, next_addr + next_length, length + next_length
        if (
            flags != next_flags | VRING_DESC_F_NEXT
            or next_flags & ~VRING_DESC_F_WRITE
            or end > low_bytes
            or next_end > low_bytes
            or total > CHAIN_BYTES_MAX
            or not (length and next_length)
        ):
            return None
        return next_flags, total, [low[addr:end], low[next_addr:next_end]]

    def undo_next(self, count: int = 1) -> None:
        """Hand the chain taken last back to the available ring, and those before it.

        For a device that finds it cannot serve the request yet. The next `next_chain` reads the
        descriptors anew.
        """
        self._next_avail = (self._next_avail - count) & 0xFFFF

    def redo_next(self, count: int) -> None:
        """Take anew what undo_next() handed back, without reading it again."""
        self._next_avail = (self._next_avail + count) & 0xFFFF

    def add_used(self, head_idx: int, written_bytes: int) -> None:
        """Return one chain to the driver; it sees it after publish(), §2.7.8.

        Args:
            head_idx: the chain's.
            written_bytes: bytes written to its writable buffers, from their start on.
        """
        slot = (self._next_used & self._mask) * 2 + 1
        self._used_ring[slot] = head_idx
        self._used_ring[slot + 1] = written_bytes
        self._next_used = (self._next_used + 1) & 0xFFFF

    def add_used_many(self, head_idxs: Sequence[int], written_bytes: Sequence[int]) -> None:
        """Return chains to the driver, as add_used() does one."""
        pairs = zip(head_idxs, written_bytes, strict=True)
        elements = memoryview(array("I", join.from_iterable(pairs)))
        count = len(head_idxs)
        slot = self._next_used & self._mask
        first = min(count, self.size - slot)  # up to the ring's end
        self._used_ring[1 + 2 * slot : 1 + 2 * (slot + first)] = elements[: 2 * first]
        if count > first:
            self._used_ring[1 : 1 + 2 * (count - first)] = elements[2 * first :]
        self._next_used = (self._next_used + count) & 0xFFFF

    def add_used_writable(
        self, chains: Sequence[WritableChain], written_bytes: int
    ) -> tuple[int, int]:
        """Return the first of these chains, over which `written_bytes` are spread, as add_used().

        Returns:
            How many it took, and the room that is left in the last of them.
        """
        ring, slots, next_used = self._used_ring, 2 * self._mask, 2 * self._next_used
        left_bytes = written_bytes
        count = 0
        for head_idx, room_bytes, _ in chains:
            slot = (next_used & slots) + 1
            next_used += 2
            count += 1
            ring[slot] = head_idx
            if left_bytes <= room_bytes:
                ring[slot + 1] = left_bytes
                left_bytes -= room_bytes
                break
            ring[slot + 1] = room_bytes
            left_bytes -= room_bytes
        self._next_used = (self._next_used + count) & 0xFFFF
        return count, -left_bytes

    def publish(self) -> bool:
        """Show the driver what add_used() returned since last time.

        Returns:
            True if the driver wants an interrupt for it.
        """
        new, old = self._next_used, self._published
        if new == old:
            return False
        self._used[1] = self._published = new
        # The store of used->idx must be visible before used_event or the flags are read: else the
        # driver that enables interrupts, and then looks at used->idx once more, sees the old idx
        # while we see its old wish, and sleeps on. Lock and unlock are the fence.
        with self._fence:
            pass
        if self.event_idx:  # vring_need_event(), spelled out
            event_idx = self._avail[self._used_event_slot]
            return ((new - event_idx - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not self._avail[0] & VRING_AVAIL_F_NO_INTERRUPT

    def enable_notification(self) -> bool:
        """Ask the driver to kick at the next chain, §2.7.10.

        Returns:
            True if chains arrived meanwhile, for which no kick may come: look again.
        """
        if self.event_idx:
            self._used[self._avail_event_slot] = self._next_avail
        else:
            self._used[0] = 0
        # The store above must be visible before avail->idx is read again: else a driver that adds
        # a chain right now sees no wish for a kick while we see no chain. As in publish().
        with self._fence:
            pass
        return self._avail[1] != self._next_avail

    def disable_notification(self) -> None:
        """Tell the driver that kicks are not needed now; a hint, kicks may still come.

        With EVENT_IDX nothing needs saying: avail_event stays behind, and is passed only once.
        """
        if not self.event_idx:
            self._used[0] = VRING_USED_F_NO_NOTIFY

    @property
    def is_idle(self) -> bool:
        """Whether every chain that was taken is returned, and the driver can see it."""
        return self._next_avail == self._next_used == self._published

    def seek(self, idx: int) -> None:
        """Go on at `idx` in both rings: where somebody else, who served the queue, has left it."""
        self._next_avail = self._next_used = self._published = idx & 0xFFFF

    def state(self) -> QueueState:
        """Snapshot the queue. Chains taken but not returned are the device's to remember."""
        return QueueState(
            size=self.size,
            desc_gpa=self.desc_gpa,
            driver_gpa=self.driver_gpa,
            device_gpa=self.device_gpa,
            event_idx=self.event_idx,
            indirect=self.indirect,
            next_avail_idx=self._next_avail,
            next_used_idx=self._next_used,
            published_idx=self._published,
        )

    @classmethod
    def from_state(cls, state: QueueState, *, memory: GuestMemory) -> Virtqueue:
        """Continue a queue over restored memory."""
        queue = cls(
            memory,
            size=state.size,
            desc_gpa=state.desc_gpa,
            driver_gpa=state.driver_gpa,
            device_gpa=state.device_gpa,
            event_idx=state.event_idx,
            indirect=state.indirect,
        )
        queue._next_avail = state.next_avail_idx & 0xFFFF
        queue._next_used = state.next_used_idx & 0xFFFF
        queue._published = state.published_idx & 0xFFFF
        return queue

    def close(self) -> None:
        """Let go of guest memory; any later use of the queue is a ValueError. Idempotent."""
        for view in (self._desc, self._avail, self._used, self._used_ring):
            view.release()
