"""virtio-rng, the entropy device (VirtIO 1.2 §5.4): the driver posts buffers, we fill them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from voidbox.errors import GuestError
from voidbox.virtio.descriptors import Chain
from voidbox.virtio.device import VIRTIO_ID_RNG, Transport
from voidbox.virtio.queue import Virtqueue

QUEUE_SIZE = 64
# What one pass on the loop may cost. A longer request is answered in part, as §5.4.6.2 allows.
PASS_BYTES = 64 << 10


class VirtioRng:
    """Fills the driver's buffers from the host's getrandom(). Thread: loop.

    Args:
        random_bytes: the source, os.urandom unless a test says otherwise.
    """

    device_id = VIRTIO_ID_RNG
    device_features = 0
    queue_max_sizes = (QUEUE_SIZE,)

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._transport: Transport | None = None
        self._queue: Virtqueue | None = None
        self._deferred = False

    def read_config(self, offset: int, width: int) -> int:
        """There is no configuration space."""
        return 0

    def write_config(self, offset: int, width: int, value: int) -> None:
        """There is no configuration space."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to serve requestq."""
        self._transport = transport
        (self._queue,) = queues

    def pause(self) -> None:
        """A pass is never left half done."""

    def resume(self) -> None:
        """See pause()."""

    def reset(self) -> None:
        """Forget the queue."""
        self._transport = self._queue = None
        self._deferred = False

    def queue_notify(self, queue_idx: int) -> None:
        """Serve what is there, unless a pass that will do so is under way."""
        if not self._deferred:
            self._pass()

    def _pass(self) -> None:
        """Answer requests of up to PASS_BYTES; leave the rest to the next turn of the loop."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        queue.disable_notification()
        budget = PASS_BYTES
        while budget and (chain := queue.next_chain()) is not None:
            written_bytes = self._fill(chain, budget)
            queue.add_used(chain.head_idx, written_bytes)
            budget -= written_bytes
        if queue.publish():
            transport.interrupt_queues()
        self._deferred = budget == 0 or queue.enable_notification()
        if self._deferred:
            transport.defer(self._pass)

    def _fill(self, chain: Chain, budget: int) -> int:
        if chain.readable_bytes or not chain.writable_bytes:
            raise GuestError("an entropy request needs writable buffers, and nothing else")
        data = self._random_bytes(min(chain.writable_bytes, budget))
        done = 0
        for buffer in chain.writable:
            part = data[done : done + len(buffer)]
            if not part:
                break
            buffer[: len(part)] = part
            done += len(part)
        return done
