"""The way to the guest: small frames that are ready, flows with something to send, in turn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from voidbox.net import wire
from voidbox.net.addresses import NetworkConfig
from voidbox.net.sharing import Sharing
from voidbox.net.wire import Ip, Link

FRAMES_MAX = 256  # small frames that wait for the guest's buffers
_MULTICAST = 0xE000_0000  # and all above it, broadcast included

Tap = Callable[[Sequence[memoryview | bytes], int], None]


class RxFrames(Protocol):
    """The guest's receive buffers: see virtio.net.RxFrames."""

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        """Return buffers for a frame of `size` bytes, at least `least`; None if there are none."""
        ...

    def commit(
        self,
        length: int,
        *,
        gso_size: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
        header_bytes: int = 0,
    ) -> None:
        """A frame of `length` bytes is in them."""
        ...

    def cancel(self) -> None:
        """They stay empty."""
        ...


class Flow(Protocol):
    """What waits for its turn.

    Attributes:
        is_queued: it does; the line's own.
    """

    is_queued: bool


class Line:
    """Thread: loop.

    Args:
        tap: takes every frame, for a pcap file: (buffers, length).

    Attributes:
        config: the addresses.
        link: the two MAC addresses.
        guest_ip: the guest's address.
        has_csum: the guest's driver takes partial checksums.
        has_tso: it takes frames beyond the MTU.
        frames: ready to go, before any flow.
        pending: flows with something to send.
        is_stalled: the guest had no buffer for the last frame.
        sharing: how streams in both directions share it.
        has_new_deadline: the stack's next_deadline_ns() may have become earlier; for its owner to
            clear.
        dropped: what was not served or not said, by reason.
        on_note: takes a line for the log, about what a user may have to know.
        takes_datagram: whether one of the guest of so many bytes may pass, by the rate.
        frames_to_guest, bytes_to_guest: so far.
    """

    def __init__(self, config: NetworkConfig, tap: Tap | None) -> None:
        self.config = config
        self.link = Link(config.guest_mac, config.gateway_mac)
        self.guest_ip = config.guest_ip
        self.has_csum = self.has_tso = False
        self.frames: deque[bytes] = deque()
        self.pending: deque[Flow] = deque()
        self.is_stalled = False
        self.sharing = Sharing()
        self.has_new_deadline = False
        self.dropped: Counter[str] = Counter()
        self.on_note: Callable[[str], None] = lambda text: None
        self.takes_datagram: Callable[[int, int], bool] = lambda size, now_ns: True
        self.frames_to_guest = self.bytes_to_guest = 0
        self._tap = tap
        self._ports = count()
        self._ip_ids = count()

    def drop(self, reason: str) -> None:
        """Count what is not served."""
        self.dropped[reason] += 1

    def enqueue(self, flow: Flow) -> None:
        """Have a flow wait for its turn; once."""
        if not flow.is_queued:
            flow.is_queued = True
            self.pending.append(flow)

    def end_turn(self, flow: Flow) -> None:
        """The first flow has had its turn; it may have been withdrawn by what it met."""
        if flow.is_queued:
            self.pending.popleft()
            flow.is_queued = False

    def withdraw(self, flow: Flow) -> None:
        """The flow is gone."""
        if flow.is_queued:
            self.pending.remove(flow)
            flow.is_queued = False

    def queue_frame(self, frame: bytes) -> None:
        """Have a small frame go to the guest."""
        if len(self.frames) < FRAMES_MAX:
            self.frames.append(frame)
        else:
            self.drop("answer, for the guest takes none")

    def queue_datagram(
        self, source: tuple[int, int], destination: tuple[int, int], payload: bytes
    ) -> None:
        """Have a UDP datagram go to the guest; source and destination are (address, port)."""
        udp = wire.udp_header(source, destination, [payload], len(payload)) + payload
        self.queue_frame(
            wire.ipv4_frame(self.link, source[0], destination[0], wire.IPPROTO_UDP, udp)
        )

    def queue_echo_reply(self, address: int, rest: int, data: bytes) -> None:
        """Have `address` answer an echo request; rest is the request's second word."""
        message = wire.icmp_message(wire.ICMP_ECHOREPLY, 0, rest, data)
        for frame in self.packet_frames(address, wire.IPPROTO_ICMP, message):
            self.queue_frame(frame)

    def packet_frames(self, source: int, protocol: int, payload: bytes) -> list[bytes]:
        """Return the frames of a packet to the guest: one, or those of its fragments."""
        ip_id = next(self._ip_ids) & 0xFFFF
        return wire.ipv4_frames(self.link, source, self.guest_ip, protocol, payload, ip_id)

    def refuse(self, code: int, head: bytes, ip: Ip) -> None:
        """Answer a packet with ICMP "destination unreachable", if it may be answered at all."""
        if self.may_answer(ip):
            self.queue_unreachable(code, ip.destination, quote(head, ip))

    def may_answer(self, ip: Ip) -> bool:
        """Whether an ICMP error may be about this packet: none about what goes to many."""
        # RFC 1812 §4.3.2.7
        return ip.destination < _MULTICAST and ip.destination != self.config.broadcast_ip

    def queue_unreachable(self, code: int, address: int, quoted: bytes) -> None:
        """Tell the guest that `address` cannot be reached."""
        # A port's error is the far end's; all others are the router's.
        source = address if code == wire.ICMP_PORT_UNREACH else self.config.gateway_ip
        self.queue_error(wire.ICMP_DEST_UNREACH, code, quoted, source)

    def queue_error(self, type: int, code: int, quoted: bytes, source: int | None = None) -> None:
        """Send the guest an ICMP error about a packet, from the gateway unless said otherwise."""
        message = wire.icmp_message(type, code, 0, quoted)
        source = self.config.gateway_ip if source is None else source
        self.queue_frame(
            wire.ipv4_frame(self.link, source, self.guest_ip, wire.IPPROTO_ICMP, message)
        )

    def gateway_port(self, is_taken: Callable[[int], bool]) -> int:
        """Choose a port of the gateway's; they take turns, so that one comes again late."""
        while True:
            port = 49152 + next(self._ports) % 16384
            if not is_taken(port):
                return port

    def sent(self, buffers: Sequence[memoryview], length: int) -> None:
        """A frame went to the guest: the first `length` bytes of the buffers."""
        self.frames_to_guest += 1
        self.bytes_to_guest += length
        if self._tap is not None:
            self._tap(buffers, length)


def quote(head: bytes, ip: Ip) -> bytes:
    """Return the start of a packet, for an ICMP error about it: only what is really there."""
    return head[wire.ETH_BYTES : wire.ETH_BYTES + min(ip.length, ip.header_bytes + 8)]
