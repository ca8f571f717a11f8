"""One pass over an rx and a tx queue: how the devices that carry packets share the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from voidbox.virtio.device import Transport
from voidbox.virtio.queue import Virtqueue

# What comes while a pass is under way, and finds it at its end, is served at once so often; then
# others on the loop have their turn.
PASSES_IN_A_ROW = 4


class PairServer(Protocol):
    """Who moves the packets. Each call has a budget of its own. Thread: loop.

    Attributes:
        tx_can_wait: the last serve_tx() took so little that the driver need not hear of it soon.
    """

    tx_can_wait: bool

    def serve_tx(self, tx: Virtqueue) -> bool:
        """Take what the guest sent; True if that was all that one pass may take."""
        ...

    def has_rx(self) -> bool:
        """Whether serve_rx() may have something to give."""
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
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._call_later = call_later
        self._tx_patience_ns = int(tx_patience_s * 1e9)
        self._now_ns = now_ns
        self._is_interrupt_owed = False
        self._owed_ns = 0  # since when
        self._is_timer_set = False
        self._transport = transport
        self._rx = rx
        self._tx = tx
        self._server = server
        self._has_flags = not rx.event_idx  # else disable_notification() has nothing to say
        self._busy = False  # a pass is under way or deferred, and will see what is new

    def kick(self, queue_idx: int) -> None:
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
        server, rx, tx = self._server, self._rx, self._tx
        for _ in range(PASSES_IN_A_ROW):
            if self._has_flags:
                tx.disable_notification()
                rx.disable_notification()
            more = server.serve_tx(tx)
            for_rx = False
            if server.has_rx():
                more = server.serve_rx(rx) or more
                for_rx = rx.publish()
            for_tx = tx.publish()
            if for_rx:
                self._interrupt()
            elif for_tx or self._is_interrupt_owed:
                self._interrupt_later()
            # A kick for tx is always wanted.
            if more or not tx.enable_notification():
                break
        else:
            more = True
        self._busy = more
        if more:
            self._transport.defer(self._serve)

    def _serve_rx(self) -> None:
        if not self._server.has_rx():
            return
        self._busy = True
        rx = self._rx
        if self._has_flags:
            rx.disable_notification()
        more = self._server.serve_rx(rx)
        if rx.publish():
            self._interrupt()
        self._busy = more
        if more:
            self._transport.defer(self._serve)

    def _interrupt(self) -> None:
        """Tell the driver of what it wants to hear, all in one."""
        self._is_interrupt_owed = False
        self._transport.interrupt_queues()

    def _interrupt_later(self) -> None:
        """Tell the driver of what was sent; but if that was little, not now."""
        if self._call_later is None or not self._server.tx_can_wait:
            self._interrupt()
        elif not self._is_interrupt_owed:
            self._is_interrupt_owed = True
            self._owed_ns = self._now_ns()
            if not self._is_timer_set:
                self._set_timer(self._tx_patience_ns)

    def _set_timer(self, delay_ns: int) -> None:
        if self._call_later is not None:
            self._is_timer_set = True
            self._call_later(delay_ns / 1e9, self._on_time)

    def _on_time(self) -> None:
        self._is_timer_set = False
        if self._is_interrupt_owed:
            left_ns = self._owed_ns + self._tx_patience_ns - self._now_ns()
            if left_ns > 0:  # the timer was set for another
                self._set_timer(left_ns)
            else:
                self.tell()

    def tell(self) -> None:
        """Tell the driver now of what it was to hear a little later."""
        if self._is_interrupt_owed:
            self._interrupt()
