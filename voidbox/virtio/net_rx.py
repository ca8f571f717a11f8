"""The guest's receive buffers, as a backend fills them."""

from __future__ import annotations

from functools import lru_cache, partial

from voidbox.buffers import write_bytes
from voidbox.errors import GuestError
from voidbox.virtio.net_header import (
    FRAME_BYTES_MAX,
    FRAME_BYTES_ORDINARY,
    HDR,
    HDR_BYTES,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
)
from voidbox.virtio.queue import Virtqueue, WritableChain

# The most chains that one frame is spread over. Linux's are of 1.5 to 4 KiB.
CHAINS_MAX = 64
# How much is taken from the queue at least, where a frame may be spread: to begin costs as much as
# to take a chain.
AHEAD_BYTES = 8 * 1536
# Headers that differ; a stream repeats a few.
_HEADERS_REMEMBERED = 256


class RxRing:
    """Hands out buffers of the rx queue, a frame's worth at a time. Thread: loop.

    Chains are taken apart ahead, and those that a frame turned out not to need stay here for the
    next one. They are the ring's, as far as the queue's indices are concerned, until they are
    returned to the driver, which may not touch them before: so a snapshot holds no chain that
    nobody remembers.

    Attributes:
        starved: a reserve() of this pass found too few buffers.
        frames: given to the guest in this pass.
        frame_bytes: their bytes.
    """

    def __init__(self, queue: Virtqueue, driver_features: int) -> None:
        self._queue = queue
        self._header = lru_cache(_HEADERS_REMEMBERED)(
            partial(
                _header,
                bool(driver_features & VIRTIO_NET_F_GUEST_CSUM),
                bool(driver_features & VIRTIO_NET_F_GUEST_TSO4),
            )
        )
        mergeable = bool(driver_features & VIRTIO_NET_F_MRG_RXBUF)
        self._chains_max = min(CHAINS_MAX, queue.size) if mergeable else 1
        self._chain_bytes_min = HDR_BYTES if mergeable else HDR_BYTES + FRAME_BYTES_ORDINARY
        self._chains: list[WritableChain] = []  # the next ones
        self._bytes = 0  # room in them
        self._reserved_bytes = 0
        self.starved = False
        self.frames = 0
        self.frame_bytes = 0

    def begin(self) -> None:
        """A pass begins."""
        self._reserved_bytes = 0
        self.starved = False
        self.frames = self.frame_bytes = 0

    def enable_notification(self) -> bool:
        """Have the driver kick when it adds buffers: those that were too few are not news.

        Returns:
            True if it did so meanwhile.
        """
        queue, count = self._queue, len(self._chains)
        queue.redo_next(count)
        has_news = queue.enable_notification()
        queue.undo_next(count)
        return has_news

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        """Return writable buffers for one frame: see RxFrames."""
        if least < 0:
            least = size
        if not 0 < least <= size <= FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {least} to {size} bytes")
        chains = self._chains
        wanted = size + HDR_BYTES
        if self._bytes < wanted:
            self._take(wanted)
            if self._bytes < least + HDR_BYTES:
                self._lack(least)
                return None
            wanted = min(wanted, self._bytes)
        self._reserved_bytes = wanted - HDR_BYTES
        _, room, pieces = chains[0]
        if wanted <= room and len(pieces) == 1:
            return [pieces[0][HDR_BYTES:wanted]]
        buffers: list[memoryview] = []
        left = wanted
        for _, room, pieces in chains:
            buffers += pieces
            left -= room
            if left <= 0:
                break
        _trim(buffers, HDR_BYTES, -left)
        return buffers

    def _take(self, wanted: int) -> None:
        """Take chains until there is room for `wanted` bytes, as far as that goes."""
        queue, chains = self._queue, self._chains
        queue.redo_next(len(chains))
        taken, taken_bytes = queue.next_writable(
            max(wanted - self._bytes, AHEAD_BYTES),
            self._chains_max - len(chains),
            self._chain_bytes_min,
        )
        chains += taken
        queue.undo_next(len(chains))
        self._bytes += taken_bytes

    def _lack(self, least: int) -> None:
        self._reserved_bytes = 0
        if len(self._chains) == self._chains_max:
            # No buffer that the driver adds would change that.
            raise GuestError(f"no room for {least} bytes in {len(self._chains)} rx buffers")
        self.starved = True

    def commit(
        self,
        length: int,
        *,
        gso_size: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        header_bytes: int = 0,
    ) -> None:
        """The frame is in the buffers: see RxFrames."""
        if not 0 < length <= self._reserved_bytes:
            raise ValueError(f"{length} bytes in buffers for {self._reserved_bytes}")
        chains = self._chains
        head_idx, room, buffers = chains[0]
        total = length + HDR_BYTES
        header = self._header(header_bytes, gso_size, csum_start, csum_offset, 1)
        if total <= room:
            self._queue.use_next(head_idx, total)
            del chains[0]
            self._bytes -= room
        else:
            count, spare = self._queue.add_used_writable(chains, total)
            self._queue.redo_next(count)
            del chains[:count]
            self._bytes -= total + spare
            header = self._header(header_bytes, gso_size, csum_start, csum_offset, count)
        self._reserved_bytes = 0
        if len(buffers[0]) >= HDR_BYTES:
            buffers[0][:HDR_BYTES] = header
        else:
            write_bytes(buffers, header)
        self.frames += 1
        self.frame_bytes += length

    def cancel(self) -> None:
        """Nothing of it was used: see RxFrames."""
        self._reserved_bytes = 0


def _header(
    takes_csum: bool, takes_gso: bool,
    header_bytes: int, gso_size: int, csum_start: int, csum_offset: int, count: int,
) -> bytes:  # fmt: skip
    """Return the header of a frame; raises ValueError for one that the driver does not take."""
    if (csum_start or gso_size) and not (
        takes_csum and csum_start > 0 and (not gso_size or takes_gso)
    ):
        raise ValueError("an offload that the driver does not take, or no csum_start with GSO")
    if not csum_start:  # and no GSO then: the rest has no meaning
        return HDR.pack(0, VIRTIO_NET_HDR_GSO_NONE, 0, 0, 0, 0, count)
    gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if gso_size else VIRTIO_NET_HDR_GSO_NONE
    return HDR.pack(
        VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type,
        header_bytes,
        gso_size,
        csum_start,
        csum_offset,
        count,
    )


def _trim(buffers: list[memoryview], front: int, back: int) -> None:
    """Take `front` bytes off the start and `back` bytes off the end; some are left."""
    while len(buffers[0]) <= front:
        front -= len(buffers.pop(0))
    while len(buffers[-1]) <= back:
        back -= len(buffers.pop())
    if back:
        buffers[-1] = buffers[-1][:-back]
    if front:
        buffers[0] = buffers[0][front:]
