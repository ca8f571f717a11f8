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

from collections.abc import Sequence
from typing import Protocol

from voidbox.buffers import clip, first_bytes, skip, write_bytes
from voidbox.named_tuple import NamedTuple
from voidbox.net import wire
from voidbox.net.addresses import NetworkConfig
from voidbox.net.datagram_flows import DatagramFlow
from voidbox.net.datagram_table import DatagramTable
from voidbox.net.dhcp import CLIENT_PORT, SERVER_PORT
from voidbox.net.dhcp import Server as DhcpServer
from voidbox.net.flow_state import FlowState
from voidbox.net.fragment_table import FragmentTable
from voidbox.net.host import Datagrams, Host, Stream
from voidbox.net.line import Line, RxFrames, Tap
from voidbox.net.name_service import DNS_PORT, NameService
from voidbox.net.policy import Gate
from voidbox.net.tcp_flow import TcpFlow
from voidbox.net.tcp_table import TcpTable
from voidbox.net.tcp_wire import HEADER_BYTES
from voidbox.net.wire import HEADERS_MAX, Ip

_IP_TYPE, _ARP_TYPE = wire.ETH_P_IP.to_bytes(2, "big"), wire.ETH_P_ARP.to_bytes(2, "big")
_BROADCAST_IP = 0xFFFF_FFFF


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
        tap: takes every frame, for a pcap file.

    Attributes:
        line: the way to the guest.
    """

    def __init__(
        self,
        config: NetworkConfig,
        host: Host,
        policy: Gate,
        name_service: NameService,
        dhcp: DhcpServer,
        secret: bytes,
        *,
        tap: Tap | None = None,
    ) -> None:
        self.line = Line(config, tap)
        self._config = config
        self._policy = policy
        self._names = name_service
        self._dhcp = dhcp
        self._tap = tap
        self._tcp = TcpTable(self.line, host, policy, name_service, secret)
        self._datagrams = DatagramTable(self.line, host, policy)
        self._fragments = FragmentTable(self.line)
        # Of nearly all frames: to the gateway, IPv4 without options, which is a TCP segment then.
        self._plain_start = config.gateway_mac + config.guest_mac + _IP_TYPE + b"\x45"
        self._frames_in = self._bytes_in = 0
        name_service.send_datagram = self._send_name_reply
        name_service.on_query = self._on_query

    def start(self, has_csum: bool, has_tso: bool) -> None:
        """The guest's driver is ready; it takes partial checksums, and frames beyond the MTU."""
        self.line.has_csum, self.line.has_tso = has_csum, has_tso

    # From the guest.

    def receive(self, frame: list[memoryview], header: Header, now_ns: int) -> None:
        """Take one Ethernet frame; its buffers are valid during the call only."""
        if len(frame) == 1:
            frame_bytes = len(frame[0])
            head = bytes(frame[0][:HEADERS_MAX])
        else:
            frame_bytes = sum(map(len, frame))
            head = first_bytes(frame, HEADERS_MAX)
        self._frames_in += 1
        self._bytes_in += frame_bytes
        if self._tap is not None:
            self._tap(frame, frame_bytes)
        if (
            header.needs_csum
            and head.startswith(self._plain_start)
            and self._tcp.receive_plain(frame, head, frame_bytes, now_ns)
        ):
            return
        if head[6:12] != self._config.guest_mac:
            self.line.drop("spoofed MAC address")
            return
        ether_type = head[12:14]
        if ether_type == _IP_TYPE:
            ip = wire.parse_ip(head, frame_bytes)
            if ip is None:
                self.line.drop("malformed IPv4 header")
            else:
                self._receive_ip(frame, head, ip, header.needs_csum, now_ns)
        elif ether_type == _ARP_TYPE:
            self._receive_arp(head)
        else:
            self.line.drop("not IPv4 or ARP")

    def _receive_arp(self, head: bytes) -> None:
        arp = wire.parse_arp(head)
        config = self._config
        if arp is None or arp.op != wire.ARPOP_REQUEST:
            self.line.drop("ARP that asks nothing")
        elif arp.sender_ip not in (0, config.guest_ip) or arp.sender_mac != config.guest_mac:
            self.line.drop("spoofed ARP")
        elif not self._policy.is_neighbour(arp.target_ip):
            self.line.drop("ARP for an address that is not here")
        else:
            self.line.queue_frame(wire.arp_reply(self.line.link, arp))

    def _receive_ip(
        self, frame: list[memoryview], head: bytes, ip: Ip, needs_csum: bool, now_ns: int
    ) -> None:
        config, drop = self._config, self.line.drop
        is_udp = ip.protocol == wire.IPPROTO_UDP
        if head[:6] != config.gateway_mac and head[:6] != wire.BROADCAST_MAC:
            drop("for another MAC address")
        elif ip.source != config.guest_ip and (ip.source or ip.fragment or not is_udp):
            drop("spoofed source address")
        elif ip.destination == config.guest_ip:
            drop("to the guest itself")
        elif ip.fragment:
            self._receive_fragment(frame, head, ip, now_ns)
        elif not needs_csum and not _is_sum_right(frame, ip):
            drop("wrong checksum")
        elif ip.protocol == wire.IPPROTO_TCP:
            self._tcp.receive(frame, head, ip, now_ns)
        elif not self.line.takes_datagram(wire.ETH_BYTES + ip.length, now_ns):
            drop("datagram over the rate")
        elif is_udp:
            self._receive_udp(frame, head, ip, now_ns)
        elif ip.protocol == wire.IPPROTO_ICMP:
            self._receive_icmp(frame, head, ip, now_ns)
        else:
            drop("neither TCP, UDP nor ICMP")

    def _receive_fragment(self, frame: list[memoryview], head: bytes, ip: Ip, now_ns: int) -> None:
        whole = self._fragments.receive(frame, head, ip, now_ns)
        if whole is not None:
            head = whole[:HEADERS_MAX]
            packet = wire.parse_ip(head, len(whole))
            assert packet is not None, "we have made it"
            self._receive_ip([memoryview(whole)], head, packet, False, now_ns)

    def _receive_udp(self, frame: list[memoryview], head: bytes, ip: Ip, now_ns: int) -> None:
        udp = wire.parse_udp(head, ip)
        if udp is None:
            self.line.drop("malformed UDP header")
            return
        at = wire.ETH_BYTES + ip.header_bytes + wire.UDP_BYTES
        payload = clip(skip(frame, at), udp.payload_bytes)
        config = self._config
        is_for_dhcp = ip.destination in (_BROADCAST_IP, config.gateway_ip)
        if is_for_dhcp and udp.destination_port == SERVER_PORT:
            self._receive_dhcp(b"".join(payload))
        elif ip.source != config.guest_ip:
            self.line.drop("spoofed source address")
        elif ip.destination == config.dns_ip and udp.destination_port == DNS_PORT:
            self._names.query(udp.source_port, b"".join(payload), now_ns)
        else:
            key = (wire.IPPROTO_UDP, udp.source_port, ip.destination, udp.destination_port)
            self._datagrams.send(key, head, ip, payload, now_ns)

    def _receive_dhcp(self, message: bytes) -> None:
        reply = self._dhcp.receive(message)
        if reply is None:
            self.line.drop("DHCP that is no request")
            return
        source = (self._config.gateway_ip, SERVER_PORT)
        # To the broadcast address: the guest may have none of its own yet.
        self.line.queue_datagram(source, (_BROADCAST_IP, CLIENT_PORT), reply)

    def _on_query(self) -> None:
        self.line.has_new_deadline = True

    def _send_name_reply(self, guest_port: int, message: bytes) -> None:
        source = (self._config.dns_ip, DNS_PORT)
        self.line.queue_datagram(source, (self._config.guest_ip, guest_port), message)

    def _receive_icmp(self, frame: list[memoryview], head: bytes, ip: Ip, now_ns: int) -> None:
        at = wire.ETH_BYTES + ip.header_bytes
        message = clip(skip(frame, at), ip.length - ip.header_bytes)
        first = first_bytes(message, wire.ICMP_BYTES)
        if len(first) < wire.ICMP_BYTES or first[0] != wire.ICMP_ECHO or first[1]:
            self.line.drop("ICMP other than an echo request")
            return
        rest = int.from_bytes(first[4:8], "big")
        if ip.destination in (self._config.gateway_ip, self._config.dns_ip):
            data = b"".join(skip(message, wire.ICMP_BYTES))
            self.line.queue_echo_reply(ip.destination, rest, data)
            return
        key = (wire.IPPROTO_ICMP, rest >> 16, ip.destination, 0)
        self._datagrams.send(key, head, ip, message, now_ns)

    # From the host.

    def open_to_guest(self, port: int, stream: Stream, now_ns: int) -> TcpFlow | None:
        """A program of the host wants a TCP port of the guest; None if there are too many."""
        return self._tcp.open_to_guest(port, stream, now_ns)

    def open_datagrams_to_guest(self, port: int, datagrams: Datagrams, now_ns: int) -> DatagramFlow:
        """A program of the host sends to a UDP port of the guest."""
        return self._datagrams.open_to_guest(port, datagrams, now_ns)

    # To the guest.

    def has_pending(self) -> bool:
        """Whether transmit() may have something."""
        return bool(self.line.frames or self.line.pending)

    def transmit(self, rx: RxFrames, now_ns: int) -> bool:
        """Give the guest the next frame, if there is one; False if it has no buffer for it."""
        line = self.line
        if line.frames:
            done = self._transmit_frame(rx)
        elif line.pending:
            flow = line.pending[0]
            if isinstance(flow, TcpFlow):
                done = self._tcp.transmit(flow, rx, now_ns)
            else:
                assert isinstance(flow, DatagramFlow)
                done = self._datagrams.transmit(flow, rx, now_ns)
        else:
            done = True
        if line.is_stalled == done:
            line.is_stalled = not done
            if not done:
                self._disarm()
        return done

    def pause(self) -> None:
        """The guest takes nothing for a while: as if it had no buffer, until transmit() works."""
        self.line.is_stalled = True
        self._disarm()

    def resume(self, now_ns: int) -> None:
        """The guest stood still, and so was on_time(), until now."""
        self._tcp.resume(now_ns)

    def _disarm(self) -> None:
        """The guest takes nothing: sockets with data for it would keep the loop busy."""
        for flow in self.line.pending:
            if isinstance(flow, TcpFlow):
                flow.update_watch()

    def _transmit_frame(self, rx: RxFrames) -> bool:
        line = self.line
        frame = line.frames[0]
        buffers = rx.reserve(len(frame))
        if buffers is None:
            return False
        line.frames.popleft()
        write_bytes(buffers, frame)
        rx.commit(len(frame))
        line.sent(buffers, len(frame))
        return True

    # Snapshots.

    def flow_states(self) -> tuple[FlowState, ...]:
        """Return the guest's TCP connections, for reset_flows()."""
        return self._tcp.flow_states()

    def reset_flows(self, states: Sequence[FlowState]) -> None:
        """Tell the guest of a restored machine that its connections of before are over."""
        self._tcp.reset_flows(states)

    # Time.

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        self.line.has_new_deadline = False
        parts = (self._tcp, self._datagrams, self._fragments, self._names)
        times = [time for part in parts if (time := part.next_deadline_ns()) is not None]
        return min(times, default=None)

    def on_time(self, now_ns: int) -> None:
        """Do what is due; see has_pending() afterwards."""
        self._tcp.on_time(now_ns)
        self._datagrams.on_time(now_ns)
        self._fragments.on_time(now_ns)
        self._names.on_time(now_ns)

    # Life.

    def reset(self) -> None:
        """Forget every flow, without a word to the guest, which forgot them too."""
        self._tcp.reset()
        self._datagrams.reset()
        self._fragments.reset()
        self.line.frames.clear()

    def statistics(self) -> StackStatistics:
        """Return the counters."""
        return StackStatistics(
            tcp_flows=len(self._tcp.flows),
            datagram_flows=len(self._datagrams.flows),
            tcp_opened=self._tcp.opened,
            frames_from_guest=self._frames_in,
            frames_to_guest=self.line.frames_to_guest,
            bytes_from_guest=self._bytes_in,
            bytes_to_guest=self.line.bytes_to_guest,
            refused=self._policy.statistics().refused,
            dropped=dict(self.line.dropped),
        )


def _is_sum_right(frame: list[memoryview], ip: Ip) -> bool:
    """Whether the transport's checksum is right, where the guest made one."""
    length = ip.length - ip.header_bytes
    payload = clip(skip(frame, wire.ETH_BYTES + ip.header_bytes), length)
    total = wire.buffers_residue(payload)
    if ip.protocol == wire.IPPROTO_ICMP:
        return total % 0xFFFF == 0
    if ip.protocol == wire.IPPROTO_UDP:
        header = first_bytes(payload, wire.UDP_BYTES)
        if len(header) < wire.UDP_BYTES or header[6:] == b"\0\0":
            return True  # UDP may go without
        # What follows the datagram's own length is not summed; such a one is not worth it.
    elif ip.protocol != wire.IPPROTO_TCP:
        return True
    total += wire.pseudo_residue(ip.source, ip.destination, ip.protocol, length)
    return total % 0xFFFF == 0


assert HEADER_BYTES < wire.HEADERS_MAX
