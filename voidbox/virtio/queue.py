"""The split virtqueue, device side (VirtIO 1.2 §2.7).

Three arrays in guest memory, each written by one side only:

    descriptor table   driver   where the buffers are: {u64 addr; u32 len; u16 flags; u16 next}
    available ring     driver   {u16 flags; u16 idx; u16 ring[size]; u16 used_event}
    used ring          device   {u16 flags; u16 idx; {u32 id; u32 len} ring[size]; u16 avail_event}

Both `idx` run freely from 0 to 65,535 and wrap; a ring is indexed by idx modulo its size. The
driver is hostile: everything read from guest memory is copied to a local once and then checked,
every walk is bounded, and every broken rule is a GuestError. The table, and what it says, is the
business of `descriptors`; here are the rings.

Memory ordering. x86-64 keeps loads in order and stores in order, so a ring entry is read after the
idx that announced it and written before the idx that announces it. A load may still overtake an
earlier store to another address, and two places cannot live with that: they take and release an
uncontended lock, a locked instruction and hence a full fence (`_fence`). See `publish` and
`enable_notification`.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from itertools import chain as join
from typing import TypeAlias

from voidbox.errors import GuestError
from voidbox.memory import GuestMemory
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.descriptors import (
    INDIRECT,
    KIND,
    LEN_MASK,
    NEXT,
    VRING_DESC_F_WRITE,
    WRITE,
    Chain,
    DescriptorTable,
)

VRING_USED_F_NO_NOTIFY = 1
VRING_AVAIL_F_NO_INTERRUPT = 1

QUEUE_SIZE_MAX = 32768
assert array("I").itemsize == 4


def vring_need_event(event_idx: int, new_idx: int, old_idx: int) -> bool:
    """Whether going from old_idx to new_idx passed the event the other side asked for.

    The kernel's `vring_need_event()`: true if event_idx lies in [old_idx, new_idx), modulo 2^16.
    """
    return ((new_idx - event_idx - 1) & 0xFFFF) < ((new_idx - old_idx) & 0xFFFF)


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


class Virtqueue(DescriptorTable):
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
        super().__init__(memory, size, desc_gpa, indirect)
        self.driver_gpa = driver_gpa
        self.device_gpa = device_gpa
        self.event_idx = event_idx
        # The whole of each ring, checked here once, as the table is.
        self._avail = memory.words(driver_gpa, "H", 3 + size)
        # The used ring is u32 pairs between u16 words, so it has two views. Its ring starts 4
        # bytes in: element i is the words 1 + 2i and 2 + 2i of the u32 view.
        if device_gpa % 4:
            raise GuestError(f"used ring at {device_gpa:#x} is not aligned to 4 bytes")
        self._used = memory.words(device_gpa, "H", 3 + 4 * size)
        self._used_ring = memory.words(device_gpa, "I", 1 + 2 * size)
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
        # `size` can be outstanding. This bounds what can be taken before publish(), however fast
        # another vCPU adds chains; or turns idx back, behind what was taken.
        published = self._published
        ahead = (avail_idx - published) & 0xFFFF
        if not ((next_avail - published) & 0xFFFF) < ahead <= self.size:
            raise self._too_far_ahead(avail_idx)
        head_idx = avail[2 + (next_avail & self._mask)]
        if head_idx > self._mask:
            raise GuestError(f"head {head_idx} in a queue of {self.size}")
        desc = self._desc
        word = desc[2 * head_idx + 1]
        length = word & LEN_MASK
        if word & (NEXT | INDIRECT) or not length:
            chain = self._walk(head_idx)
        else:
            addr = desc[2 * head_idx]
            end = addr + length
            low = end <= self._low_bytes
            buffers = [self._low[addr:end] if low else self._memory.view(addr, length)]
            if word & WRITE:
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
        avail_idx, published = self._avail[1], self._published
        if avail_idx == self._next_avail:
            return None
        ahead = (avail_idx - published) & 0xFFFF
        if not ((self._next_avail - published) & 0xFFFF) < ahead <= self.size:
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
        return GuestError(
            f"avail idx {avail_idx} is too far ahead of used idx {self._published}, or behind "
            f"{self._next_avail}"
        )

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
        # Their heads at once, up to the ring's end, and what is past it.
        start = 2 + (next_avail & mask)
        end = start + min((avail_idx - next_avail) & 0xFFFF, chains_max, self.size)
        heads = avail[start : min(end, self._used_event_slot)].tolist()
        if end > self._used_event_slot:
            heads += avail[2 : end - self.size].tolist()
        for head_idx in heads:
            if total_bytes >= wanted_bytes:
                break
            if head_idx > mask:
                raise GuestError(f"head {head_idx} in a queue of {self.size}")
            addr, word = desc[2 * head_idx], desc[2 * head_idx + 1]
            if word & KIND == WRITE:
                length = word & LEN_MASK
                end = addr + length
                buffers = [low[addr:end] if end <= low_bytes else view(addr, length)]
            elif (two := self._two(addr, word, VRING_DESC_F_WRITE)) is not None:
                length, buffers = two
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
        self._next_avail = (next_avail + len(chains)) & 0xFFFF
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
        length = word & LEN_MASK
        end = addr + length
        if not word & KIND and length and end <= self._low_bytes:
            buffers = [self._low[addr:end]]
        elif (two := self._two(addr, word, 0)) is not None:
            length, buffers = two
        else:
            length, buffers = self._readable(head_idx)
        self._next_avail = (next_avail + 1) & 0xFFFF
        next_used = self._next_used
        slot = (next_used & mask) * 2 + 1
        ring = self._used_ring
        ring[slot] = head_idx
        ring[slot + 1] = 0
        self._next_used = (next_used + 1) & 0xFFFF
        return length, buffers

    def _readable(self, head_idx: int) -> tuple[int, list[memoryview]]:
        chain = self._walk(head_idx)
        if chain.writable_bytes:
            raise GuestError("a writable buffer in a chain to be read")
        return chain.readable_bytes, chain.readable

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

    def use_next(self, head_idx: int, written_bytes: int) -> None:
        """Take anew the first chain that undo_next() handed back, and return it to the driver.

        What redo_next() and add_used() do, in one.
        """
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        next_used = self._next_used
        slot = (next_used & self._mask) * 2 + 1
        ring = self._used_ring
        ring[slot] = head_idx
        ring[slot + 1] = written_bytes
        self._next_used = (next_used + 1) & 0xFFFF

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
