"""One pass over an rx and a tx queue: how the devices that carry packets share the loop."""

from __future__ import annotations

from typing import Protocol

from voidbox.virtio.device import Transport
from voidbox.virtio.queue import Virtqueue


class PairServer(Protocol):
    """Who moves the packets. Each call has a budget of its own. Thread: loop."""

    def serve_tx(self, tx: Virtqueue) -> bool:
        """Take what the guest sent; True if there may be more."""
        ...

    def serve_rx(self, rx: Virtqueue) -> bool:
        """Give the guest what there is; True if there is more, and buffers for it.

        A kick for rx is wanted only while something waits for buffers: this method asks for it,
        and a driver that added some meanwhile is a reason to return True.
        """
        ...


class QueuePair:
    """Serves both queues in one pass, with one interrupt for both. Thread: loop.

    From activation to reset: then its owner forgets it, and a pass that was deferred never comes,
    for the transport is not live.
    """

    def __init__(
        self, transport: Transport, rx: Virtqueue, tx: Virtqueue, server: PairServer
    ) -> None:
        self._transport = transport
        self._rx = rx
        self._tx = tx
        self._server = server
        self._busy = False  # a pass is under way or deferred, and will see what is new

    def kick(self) -> None:
        """The driver kicked one of the queues, or may have."""
        if not self._busy:
            self._serve()

    def pending(self) -> None:
        """There is something for the guest."""
        if not self._busy:
            self._transport.run(self._serve)

    def _serve(self) -> None:
        # A GuestError leaves this set: no pass comes before the reset that it asks for.
        self._busy = True
        rx, tx = self._rx, self._tx
        tx.disable_notification()
        rx.disable_notification()
        more = self._server.serve_tx(tx)
        more = self._server.serve_rx(rx) or more
        wanted = tx.publish()
        if rx.publish() or wanted:
            self._transport.interrupt_queues()
        # A kick for tx is always wanted.
        more = more or tx.enable_notification()
        self._busy = more
        if more:
            self._transport.defer(self._serve)
