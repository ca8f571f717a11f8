"""virtio-balloon, by which a guest gives memory back (VirtIO 1.2 §5.5).

    reporting_vq  what the guest's kernel has free and will not touch for a while: without anybody's
                  asking (VIRTIO_BALLOON_F_REPORTING, §5.5.6.7)
    inflateq, deflateq, num_pages    a target that the host sets, which the driver comes up to by
                  taking pages from the guest and giving their numbers here (§5.5.6.1)
    statsq        what the guest says of its memory, when it is asked (§5.5.6.3)

What is given back holds something else when the guest touches it again: zeroes, or what its file
has, where memory is a view of a snapshot's. Drivers expect nothing of it (§5.5.6.1.1, §5.5.6.7.1)
unless they have negotiated VIRTIO_BALLOON_F_PAGE_POISON; see _may_report.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Annotated

from voidbox.errors import GuestError
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.device import VIRTIO_ID_BALLOON, Transport, config_value
from voidbox.virtio.queue import Virtqueue

# linux/virtio_balloon.h, as masks
VIRTIO_BALLOON_F_STATS_VQ = 1 << 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 1 << 2
VIRTIO_BALLOON_F_PAGE_POISON = 1 << 4
VIRTIO_BALLOON_F_REPORTING = 1 << 5

VIRTIO_BALLOON_PFN_SHIFT = 12
PAGE_BYTES = 1 << VIRTIO_BALLOON_PFN_SHIFT

# Without VIRTIO_BALLOON_F_FREE_PAGE_HINT there is no queue for it: the numbers close up. Linux
# takes the features of the others whenever they are offered.
INFLATEQ, DEFLATEQ, STATSQ, REPORTING_VQ = range(4)
QUEUE_SIZE = 128  # Linux reports up to 32 ranges at a time, and insists on room for them

# What one pass on the loop may cost.
PASS_CHAINS = 32
PASS_BYTES = 64 << 20  # given back; zapping them is what takes time
PFNS_MAX = 1024  # of one chain; Linux's have 256
_PFN = struct.Struct("<I")

# struct virtio_balloon_config { le32 num_pages, actual, free_page_hint_cmd_id, poison_val; };
CONFIG = struct.Struct("<IIII")
assert CONFIG.size == 16
_ACTUAL, _POISON_VAL = 4, 12  # the offsets of what the driver writes

# struct virtio_balloon_stat { le16 tag; le64 val; } __attribute__((packed));
_STAT = struct.Struct("<HQ")
assert _STAT.size == 10
_STATS_MAX = 64
# VIRTIO_BALLOON_S_*: tag to name
STATISTICS = (
    *("swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory"),
    *("available_memory", "disk_caches", "hugetlb_pgalloc", "hugetlb_pgfail"),
)


class BalloonState(NamedTuple):
    """The configuration space, for a snapshot."""

    num_pages: Annotated[int, 32]
    actual: Annotated[int, 32]
    poison_val: Annotated[int, 32]


class BalloonStatistics(NamedTuple):
    """What the balloon has come to.

    Attributes:
        target_bytes: what the host wants back by num_pages.
        actual_bytes: what the driver says that it has given.
        returned_bytes: given back since the start, by reports and by inflating; a page counts each
            time.
        guest: what the guest says of its memory, by the names of STATISTICS: in bytes, or as
            counts. Its word, not to be relied on.
    """

    target_bytes: int
    actual_bytes: int
    returned_bytes: int
    guest: dict[str, int]


class VirtioBalloon:
    """Gives memory back to the host. Thread: loop, where nothing else is said.

    Args:
        discard: gives [gpa, gpa + length) back; raises GuestError for what is not wholly RAM.
        reads_as_zero: what was given back reads as zeroes.
        state: what a snapshot has of it.
    """

    device_id = VIRTIO_ID_BALLOON
    device_features = (
        VIRTIO_BALLOON_F_STATS_VQ
        | VIRTIO_BALLOON_F_DEFLATE_ON_OOM
        | VIRTIO_BALLOON_F_PAGE_POISON
        | VIRTIO_BALLOON_F_REPORTING
    )
    queue_max_sizes = (QUEUE_SIZE,) * 4

    def __init__(
        self,
        discard: Callable[[int, int], None],
        reads_as_zero: bool = True,
        state: BalloonState | None = None,
    ) -> None:
        self._discard = discard
        self._reads_as_zero = reads_as_zero
        self._transport: Transport | None = None
        self._queues: Sequence[Virtqueue] = ()
        self._features = 0
        self._deferred = False
        self._num_pages, self._actual, self._poison_val = state or (0, 0, 0)
        self._returned_bytes = 0
        self._guest: dict[str, int] = {}

    # The configuration space. Thread: vcpu. What the driver writes is one word, stored at once.

    def read_config(self, offset: int, width: int) -> int:
        """Read struct virtio_balloon_config."""
        config = CONFIG.pack(self._num_pages, self._actual, 0, self._poison_val)
        return config_value(config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take `actual` and `poison_val`, each written whole; what else is written is ignored."""
        if width == _PFN.size:
            if offset == _ACTUAL:
                self._actual = value
            elif offset == _POISON_VAL:
                self._poison_val = value

    # What the host asks for.

    def set_target(self, bytes_wanted: int) -> None:
        """Have the driver take so much from the guest; it does as far as it can."""
        pages = bytes_wanted >> VIRTIO_BALLOON_PFN_SHIFT

        def change() -> None:
            self._num_pages = pages

        if self._transport is not None:
            self._transport.interrupt_config(change)
        else:  # the driver is told when it starts
            change()

    def state(self) -> BalloonState:
        """Return what a snapshot has of it. Thread: any."""
        return BalloonState(self._num_pages, self._actual, self._poison_val)

    def ask_statistics(self) -> None:
        """Have the guest say anew how it is; statistics() tells once it has."""
        if self._transport is not None:
            self._transport.run(self._return_statistics)

    def statistics(self) -> BalloonStatistics:
        """Return what is known now. Thread: any."""
        return BalloonStatistics(
            self._num_pages << VIRTIO_BALLOON_PFN_SHIFT,
            self._actual << VIRTIO_BALLOON_PFN_SHIFT,
            self._returned_bytes,
            dict(self._guest),
        )

    # The device.

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to serve the queues."""
        self._transport, self._queues, self._features = transport, queues, driver_features
        if self._num_pages != self._actual:
            transport.interrupt_config()

    def pause(self) -> None:
        """A pass is never left half done."""

    def resume(self) -> None:
        """See pause()."""

    def reset(self) -> None:
        """Forget the queues, and what the driver said."""
        self._transport, self._queues, self._deferred = None, (), False
        self._actual = self._poison_val = self._features = 0
        self._guest = {}

    def queue_notify(self, queue_idx: int) -> None:
        """Serve what is there, unless a pass that will do so is under way."""
        if queue_idx == STATSQ:
            self._read_statistics()
        elif not self._deferred:
            self._pass()

    def _pass(self) -> None:
        """Serve what is there, up to PASS_CHAINS and PASS_BYTES a queue."""
        transport, queues = self._transport, self._queues
        if transport is None:
            return
        is_owed = is_left = False
        for idx, serve in (
            (INFLATEQ, self._inflate),
            (DEFLATEQ, self._deflate),
            (REPORTING_VQ, self._report),
        ):
            queue = queues[idx]
            queue.disable_notification()
            is_left |= not self._serve(queue, serve)
            is_owed |= queue.publish()
            is_left |= queue.enable_notification()
        if is_owed:
            transport.interrupt_queues()
        self._deferred = is_left
        if is_left:
            transport.defer(self._pass)

    def _serve(self, queue: Virtqueue, serve: Callable[[Virtqueue], int | None]) -> bool:
        """Take chains up to the budget; whether there were no more."""
        budget = PASS_BYTES
        for _ in range(PASS_CHAINS):
            returned_bytes = serve(queue)
            if returned_bytes is None:
                return True
            self._returned_bytes += returned_bytes
            budget -= returned_bytes
            if budget <= 0:
                break
        return False

    def _inflate(self, queue: Virtqueue) -> int | None:
        """Give back the pages of one chain of page numbers; returns how many bytes."""
        chain = queue.next_chain()
        if chain is None:
            return None
        count = chain.readable_bytes // _PFN.size
        if chain.writable or chain.readable_bytes % _PFN.size or not 0 < count <= PFNS_MAX:
            raise GuestError(f"a balloon's chain of {chain.readable_bytes} bytes")
        copied = b"".join(bytes(buffer) for buffer in chain.readable)
        for gpa, length in _runs(sorted({pfn for (pfn,) in _PFN.iter_unpack(copied)})):
            self._discard(gpa, length)
        queue.add_used(chain.head_idx, 0)
        return count * PAGE_BYTES

    def _deflate(self, queue: Virtqueue) -> int | None:
        """The guest uses pages again: they come by themselves when it touches them."""
        chain = queue.next_chain()
        if chain is None:
            return None
        queue.add_used(chain.head_idx, 0)
        return 0

    def _report(self, queue: Virtqueue) -> int | None:
        """Give back free ranges, which the guest does not touch until the chain is returned."""
        found = queue.next_ranges()
        if found is None:
            return None
        head_idx, ranges = found
        returned_bytes = 0
        if self._may_report():
            for gpa, length in ranges:
                start = -(-gpa // PAGE_BYTES) * PAGE_BYTES  # parts of pages stay
                end = (gpa + length) // PAGE_BYTES * PAGE_BYTES
                if end > start:
                    self._discard(start, end - start)
                    returned_bytes += end - start
        queue.add_used(head_idx, 0)
        return returned_bytes

    def _may_report(self) -> bool:
        """Whether free pages may change: §5.5.6.7.2 has them keep what they were poisoned with."""
        if not self._features & VIRTIO_BALLOON_F_PAGE_POISON:
            return True
        return self._reads_as_zero and self._poison_val == 0

    # The guest's statistics. The driver's one buffer stays in the ring until it is wanted anew: so
    # no chain is ever held, and a snapshot needs nothing of it.

    def _read_statistics(self) -> None:
        if self._transport is None:
            return
        queue = self._queues[STATSQ]
        chain = queue.next_chain()
        if chain is None:
            queue.enable_notification()
            return
        queue.undo_next()
        if chain.writable or chain.readable_bytes > _STATS_MAX * _STAT.size:
            raise GuestError(f"a balloon's statistics of {chain.readable_bytes} bytes")
        copied = b"".join(bytes(buffer) for buffer in chain.readable)
        whole = len(copied) // _STAT.size * _STAT.size
        self._guest = {
            STATISTICS[tag]: value
            for tag, value in _STAT.iter_unpack(copied[:whole])
            if tag < len(STATISTICS)
        }

    def _return_statistics(self) -> None:
        queue, transport = self._queues[STATSQ], self._transport
        chain = queue.next_chain()
        if chain is None or transport is None:
            return
        queue.add_used(chain.head_idx, 0)
        queue.enable_notification()
        if queue.publish():
            transport.interrupt_queues()


def _runs(pfns: list[int]) -> list[tuple[int, int]]:
    """Return sorted page numbers as (gpa, length) of runs."""
    runs: list[tuple[int, int]] = []
    start = previous = -1
    for pfn in pfns:
        if pfn != previous + 1:
            if start >= 0:
                runs.append(
                    (start << VIRTIO_BALLOON_PFN_SHIFT, (previous + 1 - start) * PAGE_BYTES)
                )
            start = pfn
        previous = pfn
    if start >= 0:
        runs.append((start << VIRTIO_BALLOON_PFN_SHIFT, (previous + 1 - start) * PAGE_BYTES))
    return runs
