"""virtio-net, the network device (VirtIO 1.2 §5.1): queues rx and tx, and a backend behind them.

guest ─► tx ─► header checked ─► FrameBackend.receive(frame, header)
guest ◄─ rx ◄─ header written ◄─ FrameBackend.transmit(rx): reserve, fill, commit

Frames are never copied here: the backend gets and fills slices of guest memory. A kick, or the
backend's word that it has something, starts a pass over both queues; see queue_pair.py.

There is no control queue. What it carries (receive filters, a change of the MAC, offloads switched
while the link is up, more queues) is offered by features of its own, and Linux does without each:
the device takes every frame whatever its addresses, and leaves those to the backend.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from voidbox.errors import ConfigError, GuestError
from voidbox.named_tuple import NamedTuple
from voidbox.virtio.device import VIRTIO_ID_NET, Transport, config_value
from voidbox.virtio.frame_backend import FrameBackend, Offloads, RxFrames
from voidbox.virtio.net_header import (
    FRAME_BYTES_MAX,
    FRAME_BYTES_MIN,
    HDR_BYTES,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
    Drop,
    FrameHeader,
    ParsedHeader,
    TxDrops,
    parse_header,
)
from voidbox.virtio.net_rx import RxRing
from voidbox.virtio.queue import Virtqueue
from voidbox.virtio.queue_pair import QueuePair

__all__ = [
    "Drop",
    "FrameBackend",
    "FrameHeader",
    "NetStatistics",
    "Offloads",
    "RxFrames",
    "TxDrops",
    "VirtioNet",
]

RX_QUEUE = 0
TX_QUEUE = 1
TX_QUEUE_SIZE = 256
# Linux fills the ring with buffers at once. Merged ones are of 1.5 KiB at first, and a pass wants
# a MiB of them; others are of 76 KiB with GUEST_TSO4, so that few must do.
RX_QUEUE_SIZE_MERGEABLE = 1024
RX_QUEUE_SIZE = 256

# What one pass on the loop may cost, each way: whichever comes first.
PASS_FRAMES = 128
PASS_BYTES = 1 << 20

NET_FEATURES = (
    VIRTIO_NET_F_MAC
    | VIRTIO_NET_F_MTU
    | VIRTIO_NET_F_STATUS
    | VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_MRG_RXBUF
)

# Headers that differ; a stream repeats a few.
_HEADERS_REMEMBERED = 256

# What the driver may hear of a little later; see QueuePair.
TX_FEW_FRAMES, TX_FEW_BYTES = 4, 4096
# Linux holds back a connection's third small segment while two are neither freed nor acknowledged
# (TCP small queues): no longer, then, than an acknowledgement may be delayed.
TX_PATIENCE_S = 0.01

_MTU_MIN, _MTU_MAX = 68, 65535
# struct virtio_net_config { __u8 mac[6]; __virtio16 status, max_virtqueue_pairs, mtu; … };
_CONFIG = struct.Struct("<6sHHH")
assert _CONFIG.size == 12


# §5.1.3.1: each requires the other.
_REQUIRED = {
    VIRTIO_NET_F_HOST_TSO4: VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_TSO4: VIRTIO_NET_F_GUEST_CSUM,
}


class NetStatistics(NamedTuple):
    """Counters since the start; tx is from the guest, as it sees it."""

    tx_frames: int
    tx_bytes: int
    tx_drops: TxDrops
    rx_frames: int
    rx_bytes: int
    rx_stalls: int  # passes that ended for want of buffers


class VirtioNet:
    """The network device. Thread: loop.

    Args:
        backend: the network.
        mac: the guest's address.
        mtu: the largest IP packet, 68 to 65,535.
        features: what is offered, of NET_FEATURES.
    Raises:
        ConfigError: one of these makes no sense.
    """

    device_id = VIRTIO_ID_NET

    def __init__(
        self,
        backend: FrameBackend,
        mac: bytes,
        *,
        mtu: int = 1500,
        features: int = NET_FEATURES,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise ConfigError(f"{mac.hex(':')} is not the address of one interface")
        if not _MTU_MIN <= mtu <= _MTU_MAX:
            raise ConfigError(f"an MTU of {mtu}: choose one from {_MTU_MIN} to {_MTU_MAX}")
        if features & ~NET_FEATURES or _lacks_required(features):
            raise ConfigError(f"features {features:#x} cannot be offered, or not without others")
        self.device_features = features
        mergeable = bool(features & VIRTIO_NET_F_MRG_RXBUF)
        self.queue_max_sizes = (
            RX_QUEUE_SIZE_MERGEABLE if mergeable else RX_QUEUE_SIZE,
            TX_QUEUE_SIZE,
        )
        self._mac = mac
        self._mtu = mtu
        self._config = b""
        self._configure(link_up=True)
        self._config_is_news = False  # it changed while there was nobody to tell

        self.tx_can_wait = False
        self._call_later = call_later
        self._backend = backend
        backend.on_pending = _ignore
        self._transport: Transport | None = None
        self._pair: QueuePair | None = None
        # Both are another's own methods while there is a driver, for each pass calls them.
        self.has_rx: Callable[[], bool] = backend.has_pending
        self.queue_notify: Callable[[int], None] = _ignore_kick
        self._rx_ring: RxRing | None = None
        self._parse: Callable[[bytes], ParsedHeader] = partial(parse_header, driver_features=0)

        self._tx_frames = self._tx_bytes = 0
        self._tx_drops = [0] * len(Drop)
        self._rx_frames = self._rx_bytes = self._rx_stalls = 0

    def read_config(self, offset: int, width: int) -> int:
        """Read struct virtio_net_config."""
        return config_value(self._config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Nothing in it may be written."""

    def set_link(self, up: bool) -> None:
        """Tell the driver that the cable is in or out. Frames pass for as long as it sends any."""
        change = partial(self._configure, link_up=up)
        if self._transport is not None:
            self._transport.interrupt_config(change)
        else:
            change()
            self._config_is_news = True

    def _configure(self, link_up: bool) -> None:
        status = VIRTIO_NET_S_LINK_UP if link_up else 0
        self._config = _CONFIG.pack(self._mac, status, 1, self._mtu)

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """Start to move frames.

        Raises:
            GuestError: the driver accepted a feature without one that it requires (§2.2.1).
        """
        if _lacks_required(driver_features):
            raise GuestError(f"features {driver_features:#x}: one lacks another that it requires")
        rx, tx = queues
        self._transport = transport
        self.has_rx = self._backend.has_pending
        self._rx_ring = RxRing(rx, driver_features)
        self._parse = lru_cache(_HEADERS_REMEMBERED)(
            partial(parse_header, driver_features=driver_features)
        )
        self._backend.start(
            Offloads(
                guest_csum=bool(driver_features & VIRTIO_NET_F_GUEST_CSUM),
                guest_tso4=bool(driver_features & VIRTIO_NET_F_GUEST_TSO4),
                mergeable=bool(driver_features & VIRTIO_NET_F_MRG_RXBUF),
            )
        )
        pair = QueuePair(transport, rx, tx, self, self._call_later, TX_PATIENCE_S)
        self._pair = pair
        self.queue_notify, self._backend.on_pending = pair.kick, pair.pending
        if self._config_is_news:
            self._config_is_news = False
            transport.interrupt_config()

    def pause(self) -> None:
        """Tell the driver of what was sent, and take nothing from sockets."""
        if self._pair is not None:
            self._pair.tell()
        self._backend.pause()

    def resume(self) -> None:
        """Have the backend go on; the notification that follows starts the traffic."""
        self._backend.resume()

    def reset(self) -> None:
        """Forget the queues, and every buffer of theirs."""
        self._transport = self._pair = self._rx_ring = None
        self.queue_notify, self._backend.on_pending = _ignore_kick, _ignore
        self._backend.reset()

    # What QueuePair calls. A frame costs these loops and what they call: they are spelled out.

    def serve_tx(self, tx: Virtqueue) -> bool:
        """Give the guest's frames to the backend; True if there may be more."""
        next_readable, parse, receive = tx.next_readable, self._parse, self._backend.receive
        frames = total_bytes = 0
        more = True
        for _ in range(PASS_FRAMES):
            chain = next_readable()  # the driver sees it returned after the pass
            if chain is None:
                more = False
                break
            length, frame = chain
            length -= HDR_BYTES
            if not FRAME_BYTES_MIN <= length <= FRAME_BYTES_MAX:
                too_short = length < FRAME_BYTES_MIN
                self._tx_drops[Drop.TOO_SHORT if too_short else Drop.TOO_LONG] += 1
                continue
            first = frame[0]
            if len(first) > HDR_BYTES:
                raw = bytes(first[:HDR_BYTES])
                frame[0] = first[HDR_BYTES:]
            else:
                raw = _take_header(frame)
            header, least_bytes, drop = parse(raw)
            if length < least_bytes:
                self._tx_drops[drop or Drop.PAST_END] += 1
                continue
            frames += 1
            total_bytes += length
            receive(frame, header)
            if total_bytes >= PASS_BYTES:
                break
        self._tx_frames += frames
        self._tx_bytes += total_bytes
        self.tx_can_wait = frames <= TX_FEW_FRAMES and total_bytes <= TX_FEW_BYTES and not more
        return more

    def serve_rx(self, rx: Virtqueue) -> bool:
        """Give the backend's frames to the guest; True if there are more, and buffers."""
        ring = self._rx_ring
        has_pending, transmit = self._backend.has_pending, self._backend.transmit
        if ring is None:
            return False
        ring.begin()
        more = True
        for _ in range(PASS_FRAMES):
            if not transmit(ring):
                more = ring.starved and ring.enable_notification()
                break
            if not has_pending():
                more = False
                break
            if ring.frame_bytes >= PASS_BYTES:
                break
        self._rx_frames += ring.frames
        self._rx_bytes += ring.frame_bytes
        self._rx_stalls += ring.starved
        return more

    def statistics(self) -> NetStatistics:
        """Return the counters. Thread: any."""
        return NetStatistics(
            tx_frames=self._tx_frames,
            tx_bytes=self._tx_bytes,
            tx_drops=TxDrops(*self._tx_drops),
            rx_frames=self._rx_frames,
            rx_bytes=self._rx_bytes,
            rx_stalls=self._rx_stalls,
        )


def _ignore() -> None: ...


def _ignore_kick(queue_idx: int) -> None: ...


def _lacks_required(features: int) -> bool:
    return any(features & one and not features & other for one, other in _REQUIRED.items())


def _take_header(frame: list[memoryview]) -> bytes:
    """Cut the header off, however the driver laid it out (§2.7.4.1): alone, or in pieces."""
    raw = b""
    while len(raw) < HDR_BYTES:
        first = frame.pop(0)
        missing = HDR_BYTES - len(raw)
        raw += first[:missing]
        if len(first) > missing:
            frame.insert(0, first[missing:])
    return raw
