"""virtio-vsock, the socket device (VirtIO 1.2 §5.10): queues rx, tx and event; config guest_cid.

The device owns the configuration and the event queue. Packets are the business of a `DataPlane`:
`PacketQueues` moves them here, between the queues and a backend of Python; the vhost one hands the
two queues to the host's kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

from voidbox.errors import GuestError
from voidbox.virtio.descriptors import CHAIN_BYTES_MAX
from voidbox.virtio.device import VIRTIO_ID_VSOCK, Transport, config_value
from voidbox.virtio.queue import Virtqueue, WritableChain
from voidbox.virtio.queue_pair import QueuePair
from voidbox.vsock.packet import HDR_BYTES

RX_QUEUE = 0
TX_QUEUE = 1
EVENT_QUEUE = 2
QUEUE_SIZE = 256
EVENT_QUEUE_SIZE = 16

# What one pass on the loop may cost. A pass of TX is at most 2 MiB of data.
TX_PASS_CHAINS = 32
RX_PASS_CHAINS = 128
# How many are taken apart together at least: to begin costs as much as one.
RX_CHAINS_AHEAD = 8
# What the driver may hear of a little later; see QueuePair.
TX_FEW_CHAINS = 2
# Nobody waits for it: what it frees is memory alone.
TX_PATIENCE_S = 0.02

VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0

# struct virtio_vsock_config { __le64 guest_cid; };
_CONFIG = struct.Struct("<Q")
assert _CONFIG.size == 8
# struct virtio_vsock_event { __le32 id; };
_EVENT = struct.Struct("<I")
assert _EVENT.size == 4


class DataPlane(Protocol):
    """Who moves packets. Thread: loop."""

    @property
    def device_features(self) -> int:
        """VIRTIO_VSOCK_F_* as a mask."""
        ...

    def start(
        self, transport: Transport, driver_features: int, rx: Virtqueue, tx: Virtqueue
    ) -> None:
        """The driver is ready: use the queues."""
        ...

    def kick(self, queue_idx: int) -> None:
        """The driver kicked RX_QUEUE or TX_QUEUE, or may have."""
        ...

    def hold_rx(self, held: bool) -> None:
        """Send the guest nothing while held."""
        ...

    def reset_connections(self) -> None:
        """End every connection without a word to the guest."""
        ...

    def pause(self) -> None:
        """Leave rings and guest memory alone, with nothing under way, until resume()."""
        ...

    def resume(self) -> None:
        """Go on after pause()."""
        ...

    def stop(self) -> None:
        """End every connection and let go of the queues; start() may come again."""
        ...


class RxSource(Protocol):
    """What a backend fills: see voidbox.vsock.link.RxBuffers."""

    def take(self, count: int) -> list[list[memoryview]]: ...
    def commit(self, written_bytes: Sequence[int]) -> None: ...
    def take_one(self) -> list[memoryview] | None: ...
    def commit_one(self, written_bytes: int) -> None: ...


class PacketBackend(Protocol):
    """A backend of Python, such as voidbox.vsock.unix.UnixBackend. Thread: loop."""

    on_pending: Callable[[], None]

    def send_pkt(self, buffers: Sequence[memoryview]) -> None:
        """Take one packet of the guest out of guest memory; never fails."""
        ...

    def recv_pkt(self, rx: RxSource) -> int:
        """Fill RX buffers with what is next; the number of packets, 0 if there was no buffer."""
        ...

    def send_data(self, buffers: Sequence[memoryview]) -> bool:
        """Do so for a packet that nothing but its data follows from; False: it was not done."""
        ...

    def recv_data(self, rx: RxSource) -> bool:
        """Fill one RX buffer, if that is all there is to do; False: it was not done."""
        ...

    def has_pending_rx(self) -> bool:
        """Whether recv_pkt may have something."""
        ...

    def reset(self) -> None:
        """End every connection."""
        ...


class _Reset(Enum):
    """How far a TRANSPORT_RESET has got."""

    NONE = auto()
    WANTED = auto()  # the driver has posted no buffer for it yet
    SENT = auto()  # the driver has not posted the buffer again, so may not have seen it


class VirtioVsock:
    """The socket device. Thread: loop.

    Args:
        guest_cid: the guest's address, 3 to 2^32 - 2.
        data_plane: moves the packets.
    """

    device_id = VIRTIO_ID_VSOCK
    queue_max_sizes = (QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE)

    def __init__(self, guest_cid: int, data_plane: DataPlane) -> None:
        self.device_features = data_plane.device_features
        self._config = _CONFIG.pack(guest_cid)
        self._data_plane = data_plane
        self._transport: Transport | None = None
        self._event_queue: Virtqueue | None = None
        self._reset = _Reset.NONE
        self._events_posted = 0  # buffers on the event queue when the event was sent

    def read_config(self, offset: int, width: int) -> int:
        """Read guest_cid."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Nothing in it may be written."""

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to move packets."""
        rx, tx, event = queues
        self._transport, self._event_queue = transport, event
        self._data_plane.start(transport, driver_features, rx, tx)

    def queue_notify(self, queue_idx: int) -> None:
        """Pass packets on, or see to a reset that is under way."""
        if queue_idx == EVENT_QUEUE:
            self._advance_reset()
        else:
            self._data_plane.kick(queue_idx)

    def pause(self) -> None:
        """Have the data plane stand still."""
        self._data_plane.pause()

    def resume(self) -> None:
        """Have it go on."""
        self._data_plane.resume()

    def reset(self) -> None:
        """The driver let go of the device."""
        self._data_plane.stop()
        self._data_plane.hold_rx(False)
        self._transport = self._event_queue = None
        self._reset = _Reset.NONE

    # TRANSPORT_RESET, §5.10.6.7.

    def transport_reset(self) -> None:
        """Have the driver drop all its connections and read guest_cid anew: after a restore.

        Nothing is sent to the guest until it has taken the event, or it would drop connections
        that are opened after the restore as well. Before a restored device is activated this is
        remembered: the event queue is notified then.
        """
        self._data_plane.reset_connections()
        self._reset = _Reset.WANTED
        self._data_plane.hold_rx(True)
        if self._transport is not None:
            self._transport.run(self._advance_reset)

    def _advance_reset(self) -> None:
        if self._reset is _Reset.SENT and self._count_posted() > self._events_posted:
            # The driver posts the buffer again once it has handled the event.
            self._reset = _Reset.NONE
            self._data_plane.hold_rx(False)
        elif self._reset is _Reset.WANTED and self._count_posted():
            self._send_event(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)
            self._reset = _Reset.SENT
            self._events_posted = self._count_posted()

    def _count_posted(self) -> int:
        """Count the event buffers on the ring, and ask for a kick at the next one."""
        queue = self._event_queue
        if queue is None:
            return 0
        count = 0
        more = True
        while more:
            while queue.next_chain() is not None:
                count += 1
            more = queue.enable_notification()
        for _ in range(count):
            queue.undo_next()
        return count

    def _send_event(self, event_id: int) -> None:
        queue, transport = self._event_queue, self._transport
        if queue is None or transport is None or (chain := queue.next_chain()) is None:
            return
        if chain.readable_bytes or not chain.writable or len(chain.writable[0]) < _EVENT.size:
            raise GuestError("an event buffer that is readable or too small")
        _EVENT.pack_into(chain.writable[0], 0, event_id)
        queue.add_used(chain.head_idx, _EVENT.size)
        if queue.publish():
            transport.interrupt_queues()


class _RxRing:
    """The rx queue as a backend sees it: a batch of buffers at a time.

    Chains are taken apart ahead. They are the ring's, as far as the queue's indices are concerned,
    until they are returned to the driver, which may not touch them before.
    """

    def __init__(self, queue: Virtqueue) -> None:
        self._queue = queue
        self._chains: list[WritableChain] = []  # the next ones
        self.budget = 0

    def take(self, count: int) -> list[list[memoryview]]:
        """Take up to `count` buffers off the ring.

        Raises:
            GuestError: a buffer that the device may not write, or with no room for data.
        """
        wanted = min(count, self.budget)
        chains = self._chains
        if wanted > len(chains):
            self._look_ahead(max(wanted, RX_CHAINS_AHEAD))
        return [chain[2] for chain in chains[:wanted]]

    def take_one(self) -> list[memoryview] | None:
        """Take one; None if there is none.

        Raises:
            GuestError: as take().
        """
        if not self._chains:
            self._look_ahead(RX_CHAINS_AHEAD)
        return self._chains[0][2] if self._chains and self.budget else None

    def _look_ahead(self, count: int) -> None:
        queue, chains = self._queue, self._chains
        queue.redo_next(len(chains))
        chains += queue.next_writable(CHAIN_BYTES_MAX, count - len(chains), HDR_BYTES + 1)[0]
        queue.undo_next(len(chains))

    def commit(self, written_bytes: Sequence[int]) -> None:
        """Return the first buffers, which were filled, to the driver."""
        count = len(written_bytes)
        chains = self._chains
        if count:
            self._queue.redo_next(count)
            self._queue.add_used_many([chain[0] for chain in chains[:count]], written_bytes)
            del chains[:count]
            self.budget -= count

    def commit_one(self, written_bytes: int) -> None:
        """Do so for one."""
        self._queue.use_next(self._chains.pop(0)[0], written_bytes)
        self.budget -= 1


class PacketQueues:
    """Moves packets between the queues and a backend of Python. Thread: loop.

    Args:
        call_later: the loop's; see QueuePair.
    """

    device_features = 0

    def __init__(
        self,
        backend: PacketBackend,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.tx_can_wait = False
        self._call_later = call_later
        self._backend = backend
        # These are another's own methods while there is a driver, for each pass calls them.
        backend.on_pending = _ignore
        self.kick: Callable[[int], None] = _ignore_kick
        self.has_rx: Callable[[], bool] = backend.has_pending_rx
        self._pair: QueuePair | None = None
        self._rx_ring: _RxRing | None = None

    def start(
        self, transport: Transport, driver_features: int, rx: Virtqueue, tx: Virtqueue
    ) -> None:
        """Use the queues; the kick that follows every activation starts the traffic."""
        self._rx_ring = _RxRing(rx)
        pair = QueuePair(transport, rx, tx, self, self._call_later, TX_PATIENCE_S)
        self._pair = pair
        self.kick, self._backend.on_pending = pair.kick, pair.pending

    def hold_rx(self, held: bool) -> None:
        """Send the guest nothing while held."""
        self.has_rx = _has_nothing if held else self._backend.has_pending_rx
        if not held:
            self._backend.on_pending()

    def reset_connections(self) -> None:
        """End every connection."""
        self._backend.reset()

    def pause(self) -> None:
        """Tell the driver of what was sent; the transport stops the rest."""
        if self._pair is not None:
            self._pair.tell()

    def resume(self) -> None:
        """The notification that follows starts the traffic."""

    def stop(self) -> None:
        """Forget queues and connections."""
        self._pair = self._rx_ring = None
        self.kick, self._backend.on_pending = _ignore_kick, _ignore
        self._backend.reset()

    def serve_tx(self, tx: Virtqueue) -> bool:
        """Take packets from the guest; True if there may be more."""
        next_readable = tx.next_readable
        send_data, send_pkt = self._backend.send_data, self._backend.send_pkt
        for count in range(TX_PASS_CHAINS):
            chain = next_readable()
            if chain is None:
                self.tx_can_wait = count <= TX_FEW_CHAINS
                return False
            if not send_data(chain[1]):
                send_pkt(chain[1])
        self.tx_can_wait = False
        return True

    def serve_rx(self, rx: Virtqueue) -> bool:
        """Give packets to the guest; True if there are more, and buffers for them."""
        ring = self._rx_ring
        if ring is None:
            return False
        ring.budget = RX_PASS_CHAINS
        backend = self._backend
        recv_data, has_pending_rx = backend.recv_data, backend.has_pending_rx
        while ring.budget:
            if not recv_data(ring) and not backend.recv_pkt(ring):
                return has_pending_rx() and rx.enable_notification()
            if not has_pending_rx():
                return False
        return True


def _ignore() -> None: ...


def _ignore_kick(queue_idx: int) -> None: ...


def _has_nothing() -> bool:
    return False
