"""One pass over an rx and a tx queue: how the devices that carry packets share the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from voidbox.virtio.device import Transport
from voidbox.virtio.queue import Virtqueue


class PairServer(Protocol):
    """Who moves the packets. Each call has a budget of its own. Thread: loop.

    Attributes:
        tx_can_wait: the last serve_tx() took so little that the driver need not hear of it soon.
    """

    tx_can_wait: bool

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

    Args:
        call_later: the loop's; None for interrupts at once.
        tx_patience_s: how long the driver waits to hear that a few small packets were sent. It
            frees them with the next interrupt or when it sends more. A reply is often there
            before, and then one interrupt tells of both.
    """

    def __init__(
        self,
        transport: Transport,
        rx: Virtqueue,
        tx: Virtqueue,
        server: PairServer,
        call_later: Callable[[float, Callable[[], None]], object] | None,
        tx_patience_s: float,
    ) -> None:
        self._call_later = call_later
        self._tx_patience_s = tx_patience_s
        self._is_interrupt_owed = False
        self._is_timer_set = False
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
        """There is something for the guest. What it sent itself has a kick of its own."""
        if not self._busy:
            self._transport.run(self._serve_rx)

    def _serve(self) -> None:
        # A GuestError leaves this set: no pass comes before the reset that it asks for.
        self._busy = True
        rx, tx = self._rx, self._tx
        tx.disable_notification()
        rx.disable_notification()
        more = self._server.serve_tx(tx)
        more = self._server.serve_rx(rx) or more
        self._interrupt(tx.publish(), rx.publish())
        # A kick for tx is always wanted.
        more = more or tx.enable_notification()
        self._busy = more
        if more:
            self._transport.defer(self._serve)

    def _serve_rx(self) -> None:
        self._busy = True
        rx = self._rx
        rx.disable_notification()
        more = self._server.serve_rx(rx)
        self._interrupt(False, rx.publish())
        self._busy = more
        if more:
            self._transport.defer(self._serve)

    def _interrupt(self, for_tx: bool, for_rx: bool) -> None:
        """Tell the driver of what it wants to hear, all in one; of tx alone perhaps later."""
        for_tx = for_tx or self._is_interrupt_owed
        can_wait = self._call_later is not None and self._server.tx_can_wait
        if for_rx or (for_tx and not can_wait):
            self._is_interrupt_owed = False
            self._transport.interrupt_queues()
        elif for_tx:
            self._is_interrupt_owed = True
            if not self._is_timer_set and self._call_later is not None:
                self._is_timer_set = True
                self._call_later(self._tx_patience_s, self._on_time)

    def _on_time(self) -> None:
        self._is_timer_set = False
        self.tell()

    def tell(self) -> None:
        """Tell the driver now of what it was to hear a little later."""
        if self._is_interrupt_owed:
            self._is_interrupt_owed = False
            self._transport.interrupt_queues()
