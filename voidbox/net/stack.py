"""The user-mode network stack: the whole world behind one gateway, for one guest. No I/O, no clock.

    frame of the guest ─► ARP, DHCP, echo to the gateway ──────────► answered here
                       ├► DNS to 10.0.2.3 ─► Forwarder ─► resolvers of the host
                       ├► UDP, echo ─► DatagramFlow ─► a connected socket of the host
                       └► TCP ─► TcpFlow ─► a stream socket of the host
    sockets that are ready ─► flows, in turn ─► the guest's own receive buffers

A flow is made only if the policy allows its address. Everything that a guest can make grow is
bounded: flows by number, their data by windows, small frames by a queue.
"""

from __future__ import annotations

import errno
import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count
from typing import NamedTuple, Protocol

from voidbox.net import wire
from voidbox.net.datagram_flows import (
    DATAGRAM_BYTES_MAX,
    DatagramFlow,
    echo_reply_frame,
    unreachable_code,
)
from voidbox.net.dhcp import Server as DhcpServer
from voidbox.net.host import Datagrams, Host, Stream
from voidbox.net.name_service import DNS_PORT, NameService
from voidbox.net.policy import Policy
from voidbox.net.tcp import CONNECT_NS, Connection
from voidbox.net.tcp_flow import HEADER_BYTES, RxFrames, TcpFlow, TimerEntry
from voidbox.net.wire import Ip, Link, Tcp, Udp

TCP_FLOWS_MAX = 1024
CONNECTING_MAX = 128
DATAGRAM_FLOWS_MAX = 512
FRAMES_MAX = 256  # small frames that wait for the guest's buffers
# The first connections get windows that keep a fast stream going; the rest, ones that keep the
# memory behind all of them bounded.
LARGE_WINDOW_FLOWS = 32
LARGE_WINDOW_BYTES = 2 << 20
WINDOW_BYTES = 256 << 10
SWEEP_NS = 10_000_000_000
LOOK_NS = 30_000_000_000  # the longest that a flow is not looked at
TIMERS_SPARE = 64
_NEVER_NS = 1 << 63
CONNECT_PATIENCE_NS = 3_000_000_000  # then a connect() may have to make room for others
# A connect() that failed for want of a way; every other failure is an RST.
_UNREACHABLE_CODES = {
    errno.ENETUNREACH: wire.ICMP_NET_UNREACH,
    errno.EHOSTUNREACH: wire.ICMP_HOST_UNREACH,
}
_IP_TYPE, _ARP_TYPE = wire.ETH_P_IP.to_bytes(2, "big"), wire.ETH_P_ARP.to_bytes(2, "big")
_DHCP_SERVER_PORT, _DHCP_CLIENT_PORT = 67, 68
_LOOPBACK = 0x7F00_0001
_MULTICAST = 0xE000_0000  # and all above it, broadcast included
_ECHO_BYTES_MAX = wire.MTU - wire.IP_BYTES - wire.ICMP_BYTES
_BROADCAST_IP = 0xFFFF_FFFF
_ISN_NS = 4_000  # RFC 6528: the clock part of a sequence number moves every 4 µs


class NetworkConfig(NamedTuple):
    """The addresses on the line; integers, MAC addresses as bytes."""

    guest_ip: int = wire.address("10.0.2.15")
    gateway_ip: int = wire.address("10.0.2.2")
    dns_ip: int = wire.address("10.0.2.3")
    prefix_bits: int = 24
    guest_mac: bytes = bytes.fromhex("525400123456")
    gateway_mac: bytes = bytes.fromhex("525400123401")

    @property
    def mask(self) -> int:
        """The network's mask."""
        return 0xFFFF_FFFF << (32 - self.prefix_bits) & 0xFFFF_FFFF


class Header(Protocol):
    """What the stack must know of a frame's virtio_net_hdr."""

    @property
    def needs_csum(self) -> bool: ...


class StackStatistics(NamedTuple):
    """Counters since the start; the flows are of now.

    Attributes:
        refused: by the policy, with what it said.
        dropped: frames of the guest that were not served, by reason.
    """

    tcp_flows: int
    datagram_flows: int
    tcp_opened: int
    frames_from_guest: int
    frames_to_guest: int
    bytes_from_guest: int
    bytes_to_guest: int
    refused: dict[str, int]
    dropped: dict[str, int]


class Stack:
    """The network of one guest. Thread: loop.

    Args:
        host: makes the sockets.
        policy: what the guest may reach.
        name_service: the DNS server of the guest.
        secret: unpredictable bytes, for sequence numbers.
        tap: takes a copy of every frame, for a pcap file: (buffers, length).
        log: takes a line for each address that was refused for the first time.

    Attributes:
        has_csum, has_tso: what the guest's driver takes; see tcp_flow.Line.
        bytes_to_guest: in all frames so far.
        has_new_deadline: next_deadline_ns() may have become earlier; for the owner to clear.
    """

    def __init__(
        self,
        config: NetworkConfig,
        host: Host,
        policy: Policy,
        name_service: NameService,
        dhcp: DhcpServer,
        secret: bytes,
        *,
        tap: Callable[[Sequence[memoryview | bytes], int], None] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.link = Link(config.guest_mac, config.gateway_mac)
        self.guest_ip = config.guest_ip
        self.has_csum = self.has_tso = False
        self._config = config
        self._host = host
        self._policy = policy
        self._names = name_service
        self._dhcp = dhcp
        self._secret = secret
        self._tap = tap
        self._log = log
        self._tcp: dict[tuple[int, int, int], TcpFlow] = {}
        self._connecting: dict[TcpFlow, None] = {}
        self._datagrams: dict[tuple[int, int, int, int], DatagramFlow] = {}  # oldest use first
        self._pending: deque[TcpFlow | DatagramFlow] = deque()
        self._frames: deque[bytes] = deque()
        self._is_stalled = False  # the guest had no buffer for the last frame
        self._timers: list[TimerEntry] = []  # a heap; see _watch_time
        self._order = count()
        self._sweep_ns: int | None = None
        self._scratch = memoryview(bytearray(DATAGRAM_BYTES_MAX))
        self._now_ns = 0
        self._ports = count(49152)
        self._dropped: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._tcp_opened = 0
        self._frames_in = self._frames_out = self._bytes_in = self.bytes_to_guest = 0
        self.has_new_deadline = False
        name_service.send_datagram = self._send_name_reply

    # From the guest.

    def receive(self, frame: list[memoryview], header: Header, now_ns: int) -> None:
        """Take one Ethernet frame; its buffers are valid during the call only."""
        self._now_ns = now_ns
        frame_bytes = sum(map(len, frame))
        self._frames_in += 1
        self._bytes_in += frame_bytes
        if self._tap is not None:
            self._tap(frame, frame_bytes)
        head = wire.first_bytes(frame, wire.HEADERS_MAX)
        if head[6:12] != self.link.guest_mac:
            self._drop("spoofed MAC address")
            return
        ether_type = head[12:14]
        if ether_type == _IP_TYPE:
            self._receive_ip(frame, frame_bytes, head, header.needs_csum)
        elif ether_type == _ARP_TYPE:
            self._receive_arp(head)
        else:
            self._drop("not IPv4 or ARP")

    def _drop(self, reason: str) -> None:
        self._dropped[reason] += 1

    def _receive_arp(self, head: bytes) -> None:
        arp = wire.parse_arp(head)
        config = self._config
        if arp is None or arp.op != wire.ARPOP_REQUEST:
            self._drop("ARP that asks nothing")
        elif arp.sender_ip not in (0, self.guest_ip) or arp.sender_mac != self.link.guest_mac:
            self._drop("spoofed ARP")
        elif (arp.target_ip ^ self.guest_ip) & config.mask or arp.target_ip == self.guest_ip:
            self._drop("ARP for an address that is not here")
        else:
            self._queue_frame(wire.arp_reply(self.link, arp))

    def _receive_ip(
        self, frame: list[memoryview], frame_bytes: int, head: bytes, needs_csum: bool
    ) -> None:
        ip = wire.parse_ip(head, frame_bytes)
        if ip is None:
            self._drop("malformed IPv4 header")
            return
        if head[:6] != self.link.gateway_mac and head[:6] != wire.BROADCAST_MAC:
            self._drop("for another MAC address")
        elif ip.is_fragment:
            self._drop("fragment")
        elif ip.source != self.guest_ip and not (ip.source == 0 and ip.protocol == 17):
            self._drop("spoofed source address")
        elif ip.destination == self.guest_ip:
            self._drop("to the guest itself")
        elif not needs_csum and not self._is_sum_right(frame, ip):
            self._drop("wrong checksum")
        elif ip.protocol == wire.IPPROTO_TCP:
            self._receive_tcp(frame, head, ip)
        elif ip.protocol == wire.IPPROTO_UDP:
            self._receive_udp(frame, head, ip)
        elif ip.protocol == wire.IPPROTO_ICMP:
            self._receive_icmp(frame, head, ip)
        else:
            self._drop("neither TCP, UDP nor ICMP")

    @staticmethod
    def _is_sum_right(frame: list[memoryview], ip: Ip) -> bool:
        """Whether the transport's checksum is right, where the guest made one."""
        payload = wire.clip(wire.skip(frame, wire.ETH_BYTES + ip.header_bytes), _payload_bytes(ip))
        total = wire.buffers_residue(payload)
        if ip.protocol == wire.IPPROTO_ICMP:
            return total % 0xFFFF == 0
        if ip.protocol == wire.IPPROTO_UDP:
            header = b"".join(wire.clip(payload, wire.UDP_BYTES))
            if len(header) < wire.UDP_BYTES or header[6:] == b"\0\0":
                return True  # UDP may go without
            # What follows the datagram's own length is not summed; such a one is not worth it.
        elif ip.protocol != wire.IPPROTO_TCP:
            return True
        length = _payload_bytes(ip)
        total += wire.pseudo_residue(ip.source, ip.destination, ip.protocol, length)
        return total % 0xFFFF == 0

    # TCP.

    def _receive_tcp(self, frame: list[memoryview], head: bytes, ip: Ip) -> None:
        tcp = wire.parse_tcp(head, ip)
        if tcp is None:
            self._drop("malformed TCP header")
            return
        at = wire.ETH_BYTES + ip.header_bytes + tcp.header_bytes
        payload_bytes = ip.length - ip.header_bytes - tcp.header_bytes
        key = (tcp.source_port, ip.destination, tcp.destination_port)
        flow = self._tcp.get(key)
        if flow is not None and self._is_replaced(flow, tcp):
            self._remove_tcp(flow)
            flow = None
        if flow is not None:
            flow.receive(tcp, frame, at, payload_bytes, self._now_ns)
            if flow.remote[0] == self._config.dns_ip:
                self.has_new_deadline = True  # it may have been a query
            self._settle(flow)
        elif tcp.flags & (wire.TCP_SYN | wire.TCP_ACK | wire.TCP_RST) == wire.TCP_SYN:
            self._open_tcp(head, ip, tcp)
        else:
            self._drop("TCP segment of no connection")
            self._refuse_tcp(key, tcp, payload_bytes)

    @staticmethod
    def _is_replaced(flow: TcpFlow, tcp: Tcp) -> bool:
        """Whether the guest begins anew with the ports of a connection that is about to end."""
        connection = flow.connection
        is_syn = tcp.flags & (wire.TCP_SYN | wire.TCP_ACK) == wire.TCP_SYN
        return is_syn and connection.is_closing and tcp.seq != (connection.rcv_nxt - 1) & 0xFFFFFFFF

    def _open_tcp(self, head: bytes, ip: Ip, tcp: Tcp) -> None:
        key = (tcp.source_port, ip.destination, tcp.destination_port)
        if len(self._tcp) >= TCP_FLOWS_MAX:
            self._drop("too many TCP connections")
            self._refuse_tcp(key, tcp, 0)
            return
        target = self._target(ip.destination, tcp.destination_port, "TCP")
        if target is None:
            self._refuse_tcp(key, tcp, 0)
            return
        is_dns = ip.destination == self._config.dns_ip
        if not is_dns and not self._may_connect():
            self._drop("too many TCP connections being opened")  # the guest asks again
            return
        size = self._window_bytes()
        connection = Connection.accept(tcp, self._initial_seq(key), size, size, self._now_ns)
        remote = (ip.destination, tcp.destination_port)
        flow = TcpFlow(self, connection, remote, tcp.source_port, self._on_change)
        flow.quote = _quote(head, ip)
        self._tcp[key] = flow
        self._tcp_opened += 1
        if is_dns:
            flow.stream = self._names.accept(flow, self._now_ns)
            flow.connected(0)
            return
        self._connecting[flow] = None
        stream = self._host.connect_tcp(target, tcp.destination_port, flow)
        if isinstance(stream, int):
            flow.connected(stream)
        else:
            flow.stream = stream
            self._watch_time(flow)

    def _may_connect(self) -> bool:
        """Whether one more connect() may be under way. If need be the oldest goes, a black hole."""
        if len(self._connecting) < CONNECTING_MAX:
            return True
        oldest = next(iter(self._connecting))
        deadline_ns = oldest.connection.deadline_ns
        if deadline_ns is None or deadline_ns - self._now_ns > CONNECT_NS - CONNECT_PATIENCE_NS:
            return False
        oldest.connection.abort()
        self._settle(oldest)
        return True

    def _window_bytes(self) -> int:
        return LARGE_WINDOW_BYTES if len(self._tcp) < LARGE_WINDOW_FLOWS else WINDOW_BYTES

    def _initial_seq(self, key: tuple[int, int, int]) -> int:
        """RFC 6528: a keyed hash of the addresses, and a clock."""
        digest = blake2b(repr(key).encode(), key=self._secret, digest_size=4).digest()
        return (int.from_bytes(digest, "little") + self._now_ns // _ISN_NS) & 0xFFFFFFFF

    def _target(self, address: int, port: int, protocol: str) -> int | None:
        """Return the host's address for the guest's, or None if the policy forbids it."""
        config = self._config
        verdict = self._policy.check(address, port, self._now_ns)
        if not verdict.allowed:
            where = f"{protocol} to {wire.dotted(address)}:{port}: {verdict.rule}"
            if not self._refused[verdict.rule]:
                self._log(f"refused {where}")
            self._refused[verdict.rule] += 1
            return None
        return _LOOPBACK if address == config.gateway_ip else address

    def _refuse_tcp(self, key: tuple[int, int, int], tcp: Tcp, payload_bytes: int) -> None:
        """Answer a segment of no connection, RFC 9293 §3.10.7.1; never an RST by an RST."""
        if tcp.flags & wire.TCP_RST:
            return
        if tcp.flags & wire.TCP_ACK:
            self._send_bare(key, tcp.ack, 0, wire.TCP_RST)
            return
        length = payload_bytes + bool(tcp.flags & wire.TCP_SYN) + bool(tcp.flags & wire.TCP_FIN)
        self._send_bare(key, 0, (tcp.seq + length) & 0xFFFFFFFF, wire.TCP_RST | wire.TCP_ACK)

    def _send_bare(
        self, key: tuple[int, int, int], seq: int, ack: int, flags: int, window: int = 0
    ) -> None:
        """Send a segment of no connection: there is none, or no longer."""
        guest, remote = (self.guest_ip, key[0]), (key[1], key[2])
        self._queue_frame(
            wire.tcp_frame_header(self.link, remote, guest, seq, ack, flags, window, b"", 0, 0)
        )

    def _gateway_port(self, is_taken: Callable[[int], bool]) -> int:
        """Choose a port of the gateway's; they take turns, so that one comes again late."""
        while True:
            port = 49152 + next(self._ports) % 16384
            if not is_taken(port):
                return port

    def open_to_guest(self, port: int, stream: Stream, now_ns: int) -> TcpFlow | None:
        """A program of the host wants a port of the guest; None if there are too many."""
        self._now_ns = now_ns
        if len(self._tcp) >= TCP_FLOWS_MAX:
            return None
        gateway = self._config.gateway_ip
        source = self._gateway_port(lambda source: (port, gateway, source) in self._tcp)
        key = (port, gateway, source)
        size = self._window_bytes()
        flow = TcpFlow(
            self, Connection.connect(self._initial_seq(key), size, size, now_ns),
            (key[1], key[2]), port, self._on_change,
        )  # fmt: skip
        flow.stream = stream
        self._tcp[key] = flow
        self._tcp_opened += 1
        self._settle(flow)
        return flow

    def _on_change(self, flow: TcpFlow) -> None:
        """The host's end of a flow has moved."""
        self._connecting.pop(flow, None)
        if flow.error:
            flow.connection.abort()
        self._settle(flow)

    def _settle(self, flow: TcpFlow) -> None:
        """Draw the consequences of whatever has just happened to a connection."""
        connection = flow.connection
        if connection.is_closed:
            code = _UNREACHABLE_CODES.get(flow.error)
            if code is not None:
                self._queue_unreachable(code, flow.remote[0], flow.quote)
            elif connection.reset_due:
                flags = wire.TCP_RST | wire.TCP_ACK
                self._send_bare(flow.key, connection.snd_nxt, connection.rcv_nxt, flags)
            elif connection.ended_by_fin and connection.ack_due:  # for the guest's FIN
                seq, ack, window = connection.snd_nxt, connection.rcv_nxt, connection.window()
                self._send_bare(flow.key, seq, ack, wire.TCP_ACK, window)
            self._remove_tcp(flow)
            return
        if flow.has_pending:
            self._enqueue(flow)
        elif flow.waits_for_window:
            connection.await_window(self._now_ns)
        # Not for one that is served at once: to disarm the socket and to arm it again costs two
        # system calls for each answer.
        if not flow.is_queued or self._is_stalled or flow.holds_data:
            flow.update_watch()
        self._watch_time(flow)

    def _remove_tcp(self, flow: TcpFlow) -> None:
        self._tcp.pop(flow.key, None)
        self._connecting.pop(flow, None)
        flow.connection.deadline_ns = None
        if flow.timer is not None:
            flow.timer[2] = None
            flow.timer = None
        if flow.is_queued:
            self._pending.remove(flow)
            flow.is_queued = False
        flow.close()

    # UDP and ICMP.

    def _receive_udp(self, frame: list[memoryview], head: bytes, ip: Ip) -> None:
        udp = wire.parse_udp(head, ip)
        if udp is None:
            self._drop("malformed UDP header")
            return
        at = wire.ETH_BYTES + ip.header_bytes + wire.UDP_BYTES
        payload = wire.clip(wire.skip(frame, at), udp.payload_bytes)
        config = self._config
        if udp.destination_port == _DHCP_SERVER_PORT and ip.destination in (
            _BROADCAST_IP, config.gateway_ip,
        ):  # fmt: skip
            self._receive_dhcp(b"".join(payload))
        elif ip.source != self.guest_ip:
            self._drop("spoofed source address")
        elif ip.destination == config.dns_ip and udp.destination_port == DNS_PORT:
            self._names.query(udp.source_port, b"".join(payload), self._now_ns)
            self.has_new_deadline = True
        else:
            self._send_datagram(head, ip, udp, payload)

    def _receive_dhcp(self, message: bytes) -> None:
        reply = self._dhcp.receive(message)
        if reply is None:
            self._drop("DHCP that is no request")
            return
        source = (self._config.gateway_ip, _DHCP_SERVER_PORT)
        # To the broadcast address: the guest may have none of its own yet.
        self._queue_datagram(source, (_BROADCAST_IP, _DHCP_CLIENT_PORT), reply)

    def _queue_datagram(
        self, source: tuple[int, int], destination: tuple[int, int], payload: bytes
    ) -> None:
        udp = wire.udp_header(source, destination, [payload], len(payload)) + payload
        self._queue_frame(
            wire.ipv4_frame(self.link, source[0], destination[0], wire.IPPROTO_UDP, udp)
        )

    def _send_name_reply(self, guest_port: int, message: bytes) -> None:
        source = (self._config.dns_ip, DNS_PORT)
        self._queue_datagram(source, (self.guest_ip, guest_port), message)

    def _send_datagram(self, head: bytes, ip: Ip, udp: Udp, payload: list[memoryview]) -> None:
        key = (wire.IPPROTO_UDP, udp.source_port, ip.destination, udp.destination_port)
        flow = self._datagram_flow(key, head, ip)
        if flow is not None:
            self._pass_on(flow, head, ip, payload)

    def _receive_icmp(self, frame: list[memoryview], head: bytes, ip: Ip) -> None:
        at = wire.ETH_BYTES + ip.header_bytes
        message = wire.clip(wire.skip(frame, at), _payload_bytes(ip))
        first = wire.first_bytes(message, wire.ICMP_BYTES) if message else b""
        if len(first) < wire.ICMP_BYTES or first[0] != wire.ICMP_ECHO or first[1]:
            self._drop("ICMP other than an echo request")
            return
        rest = int.from_bytes(first[4:8], "big")
        if ip.destination in (self._config.gateway_ip, self._config.dns_ip):
            data = b"".join(wire.skip(message, wire.ICMP_BYTES))[:_ECHO_BYTES_MAX]
            self._queue_frame(echo_reply_frame(self, ip.destination, rest, data))
            return
        flow = self._datagram_flow((wire.IPPROTO_ICMP, rest >> 16, ip.destination, 0), head, ip)
        if flow is not None:
            self._pass_on(flow, head, ip, message)

    def _datagram_flow(
        self, key: tuple[int, int, int, int], head: bytes, ip: Ip
    ) -> DatagramFlow | None:
        """Find or make the flow; else tell the guest why there is none."""
        flow = self._datagrams.pop(key, None)
        if flow is None:
            flow = self._open_datagrams(key, head, ip)
        if flow is not None:
            self._datagrams[key] = flow  # the last one: used most recently
        return flow

    def _open_datagrams(
        self, key: tuple[int, int, int, int], head: bytes, ip: Ip
    ) -> DatagramFlow | None:
        is_udp = key[0] == wire.IPPROTO_UDP
        target = self._target(key[2], key[3], "UDP" if is_udp else "ICMP")
        if target is None:
            self._unreachable(wire.ICMP_PKT_FILTERED, head, ip)
            return None
        if len(self._datagrams) >= DATAGRAM_FLOWS_MAX:
            self._remove_datagrams(next(iter(self._datagrams.values())))
            self._drop("oldest datagram flow, for a new one")
        flow = DatagramFlow(self, key, self._enqueue, self._on_datagram_error)
        made = (
            self._host.open_udp(target, key[3], flow)
            if is_udp
            else self._host.open_ping(target, flow)
        )
        if isinstance(made, int):
            self._unreachable(unreachable_code(made), head, ip)
            return None
        flow.datagrams = made
        if self._sweep_ns is None:
            self._sweep_ns = self._now_ns + SWEEP_NS
            self.has_new_deadline = True
        return flow

    def open_datagrams_to_guest(self, port: int, datagrams: Datagrams, now_ns: int) -> DatagramFlow:
        """A peer of a published UDP port: its datagrams come from a port of the gateway."""
        self._now_ns = now_ns
        gateway = self._config.gateway_ip
        source = self._gateway_port(
            lambda source: (wire.IPPROTO_UDP, port, gateway, source) in self._datagrams
        )
        if len(self._datagrams) >= DATAGRAM_FLOWS_MAX:
            self._remove_datagrams(next(iter(self._datagrams.values())))
        flow = DatagramFlow(
            self, (wire.IPPROTO_UDP, port, gateway, source), self._enqueue, self._on_datagram_error
        )
        flow.datagrams = datagrams
        flow.last_ns = self._now_ns
        self._datagrams[flow.key] = flow
        if self._sweep_ns is None:
            self._sweep_ns = self._now_ns + SWEEP_NS
            self.has_new_deadline = True
        return flow

    def _pass_on(self, flow: DatagramFlow, head: bytes, ip: Ip, payload: list[memoryview]) -> None:
        flow.last_ns = self._now_ns
        flow.quote = _quote(head, ip)
        if flow.datagrams is not None:
            error = flow.datagrams.send(payload)
            if error:
                self._on_datagram_error(flow, error)
            flow.datagrams.watch(not flow.readable)

    def _on_datagram_error(self, flow: DatagramFlow, error: int) -> None:
        if flow.quote:
            self._queue_unreachable(unreachable_code(error), flow.key[2], flow.quote)

    def _unreachable(self, code: int, head: bytes, ip: Ip) -> None:
        broadcast = self.guest_ip | ~self._config.mask & 0xFFFF_FFFF
        if ip.destination >= _MULTICAST or ip.destination == broadcast:
            return  # RFC 1812 §4.3.2.7
        self._queue_unreachable(code, ip.destination, _quote(head, ip))

    def _queue_unreachable(self, code: int, address: int, quote: bytes) -> None:
        message = wire.icmp_message(wire.ICMP_DEST_UNREACH, code, 0, quote)
        # A port's error is the far end's; all others are the router's.
        source = address if code == wire.ICMP_PORT_UNREACH else self._config.gateway_ip
        self._queue_frame(
            wire.ipv4_frame(self.link, source, self.guest_ip, wire.IPPROTO_ICMP, message)
        )

    def _remove_datagrams(self, flow: DatagramFlow) -> None:
        self._datagrams.pop(flow.key, None)
        if flow.is_queued:
            self._pending.remove(flow)
            flow.is_queued = False
        flow.close()

    # To the guest.

    def _queue_frame(self, frame: bytes) -> None:
        if len(self._frames) < FRAMES_MAX:
            self._frames.append(frame)
        else:
            self._drop("answer, for the guest takes none")

    def _enqueue(self, flow: TcpFlow | DatagramFlow) -> None:
        if not flow.is_queued:
            flow.is_queued = True
            self._pending.append(flow)

    def has_pending(self) -> bool:
        """Whether transmit() may have something."""
        return bool(self._frames or self._pending)

    def transmit(self, rx: RxFrames, now_ns: int) -> bool:
        """Give the guest the next frame, if there is one; False if it has no buffer for it."""
        self._now_ns = now_ns
        done = self._transmit(rx, now_ns)
        if self._is_stalled == done:
            self._is_stalled = not done
            if not done:
                self._disarm()
        return done

    def _disarm(self) -> None:
        """The guest takes nothing: sockets with data for it would keep the loop busy."""
        for flow in self._pending:
            if isinstance(flow, TcpFlow):
                flow.update_watch()

    def _transmit(self, rx: RxFrames, now_ns: int) -> bool:
        if self._frames:
            frame = self._frames[0]
            buffers = rx.reserve(len(frame))
            if buffers is None:
                return False
            self._frames.popleft()
            wire.write_bytes(buffers, frame)
            rx.commit(len(frame))
            self.sent(buffers, len(frame))
            return True
        if not self._pending:
            return True
        flow = self._pending[0]
        if isinstance(flow, TcpFlow):
            done = flow.transmit(rx, now_ns)
        else:
            done = flow.transmit(rx, self._scratch, self._queue_frame, now_ns)
        if not done:
            return False
        # It may have been removed meanwhile, by an error that it met.
        if flow.is_queued:
            self._pending.popleft()
            flow.is_queued = False
        if isinstance(flow, TcpFlow):
            self._settle(flow)
        elif flow.has_pending:
            self._enqueue(flow)
        elif flow.datagrams is not None:
            flow.datagrams.watch(True)
        return True

    def sent(self, buffers: Sequence[memoryview], length: int) -> None:
        """See tcp_flow.Line."""
        self._frames_out += 1
        self.bytes_to_guest += length
        if self._tap is not None:
            self._tap(buffers, length)

    # Time.

    def _watch_time(self, flow: TcpFlow) -> None:
        """See that the flow's deadline is noticed.

        A deadline moves with every segment; the heap does not follow. An entry says that the flow
        is to be looked at then, and one that comes too early is entered again. Each flow has one,
        and an entry without a flow is waste: of flows that are gone nothing stays.
        """
        deadline_ns = flow.connection.deadline_ns
        if deadline_ns is None:
            return
        when_ns = min(deadline_ns, self._now_ns + LOOK_NS)
        entry = flow.timer
        if entry is not None:
            if entry[0] <= when_ns:
                return
            entry[2] = None
        flow.timer = entry = [when_ns, next(self._order), flow]
        self.has_new_deadline = True
        if len(self._timers) > 2 * len(self._tcp) + TIMERS_SPARE:
            self._timers = [entry for entry in self._timers if entry[2] is not None]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, entry)

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        earliest = self._names.next_deadline_ns() or _NEVER_NS
        if self._sweep_ns is not None and self._sweep_ns < earliest:
            earliest = self._sweep_ns
        if self._timers and self._timers[0][0] < earliest:
            earliest = self._timers[0][0]
        return earliest if earliest != _NEVER_NS else None

    def on_time(self, now_ns: int) -> None:
        """Do what is due; see has_pending() afterwards."""
        self._now_ns = now_ns
        while self._timers and self._timers[0][0] <= now_ns:
            flow = heapq.heappop(self._timers)[2]
            if flow is None:
                continue
            flow.timer = None
            deadline_ns = flow.connection.deadline_ns
            if deadline_ns is not None and deadline_ns <= now_ns:
                flow.connection.on_time(now_ns, flow.waits_for_window)
                self._settle(flow)
            else:
                self._watch_time(flow)
        if self._sweep_ns is not None and self._sweep_ns <= now_ns:
            for idle in [f for f in self._datagrams.values() if now_ns - f.last_ns > f.idle_ns]:
                self._remove_datagrams(idle)
            self._sweep_ns = now_ns + SWEEP_NS if self._datagrams else None
        self._names.on_time(now_ns)

    # Life.

    def reset(self) -> None:
        """Forget every flow, without a word to the guest, which forgot them too."""
        for flow in list(self._tcp.values()):
            self._remove_tcp(flow)
        for datagrams in list(self._datagrams.values()):
            self._remove_datagrams(datagrams)
        self._frames.clear()
        self._timers.clear()
        self._sweep_ns = None

    def statistics(self) -> StackStatistics:
        """Return the counters."""
        return StackStatistics(
            tcp_flows=len(self._tcp),
            datagram_flows=len(self._datagrams),
            tcp_opened=self._tcp_opened,
            frames_from_guest=self._frames_in,
            frames_to_guest=self._frames_out,
            bytes_from_guest=self._bytes_in,
            bytes_to_guest=self.bytes_to_guest,
            refused=dict(self._refused),
            dropped=dict(self._dropped),
        )


def _payload_bytes(ip: Ip) -> int:
    return ip.length - ip.header_bytes


def _quote(head: bytes, ip: Ip) -> bytes:
    """Return the start of a packet, for an ICMP error about it: only what is really there."""
    return head[wire.ETH_BYTES : wire.ETH_BYTES + min(ip.length, ip.header_bytes + 8)]


assert HEADER_BYTES < wire.HEADERS_MAX
