"""Frames as bytes: Ethernet, ARP, IPv4, ICMP, UDP, and the Internet checksum; TCP in tcp_wire.

Headers are read with one `struct` call from a private copy of a frame's first bytes, and written
with one into the guest's buffer. Addresses are integers, as are ports; MAC addresses are 6 bytes.
Parsers return None for what breaks a rule, and never raise.

    Ethernet  0 destination MAC   6 source MAC   12 type                             14 bytes
    ARP      14 header           22 sender MAC, IP   32 target MAC, IP               28
    IPv4     14 0x45, TOS, length  18 id, fragment  22 TTL, protocol, sum  26 addresses  20…60
    UDP      +0 ports   +4 length   +6 checksum                                       8
    ICMP     +0 type, code, checksum   +4 identifier, sequence                        8
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voidbox.named_tuple import NamedTuple

ETH_BYTES = 14
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
BROADCAST_MAC = b"\xff" * 6

MTU = 1500
IP_BYTES = 20
IP_BYTES_MAX = 65535  # of a whole packet
IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP = 1, 6, 17
IP_DF = 0x4000
IP_MF = 0x2000
IP_OFFSET_MASK = 0x1FFF
TTL = 64
_FRAGMENT_BYTES = (MTU - IP_BYTES) // 8 * 8

ARP_BYTES = 28
ARPOP_REQUEST, ARPOP_REPLY = 1, 2

UDP_BYTES = 8
ICMP_BYTES = 8
ICMP_ECHOREPLY, ICMP_DEST_UNREACH, ICMP_ECHO, ICMP_TIME_EXCEEDED = 0, 3, 8, 11
ICMP_NET_UNREACH, ICMP_HOST_UNREACH, ICMP_PORT_UNREACH, ICMP_FRAG_NEEDED = 0, 1, 3, 4
ICMP_EXC_FRAGTIME = 1
ICMP_PKT_FILTERED = 13  # administratively prohibited, RFC 1812

TRANSPORT_AT = ETH_BYTES + IP_BYTES  # in the frames that we make, which have no IP options
HEADERS_MAX = ETH_BYTES + 60 + 60

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_ETH = struct.Struct("!6s6sH")
_IP = struct.Struct("!BBHHHBBHII")
_ARP = struct.Struct("!HHBBH6sI6sI")
_UDP = struct.Struct("!HHHH")
_ICMP = struct.Struct("!BBHHH")
assert _ETH.size == ETH_BYTES
assert _IP.size == IP_BYTES
assert _ARP.size == ARP_BYTES
assert _UDP.size == UDP_BYTES
assert _ICMP.size == ICMP_BYTES


# The checksum, RFC 1071.


def residue(data: bytes | bytearray | memoryview) -> int:
    """Return the one's complement sum of `data` as a residue modulo 65,535.

    2^16 is 1 modulo 65,535, so the sum of all 16-bit words is the whole number's residue. Bytes
    at odd positions may follow only in a new call whose residue is byte-swapped.
    """
    if len(data) & 1:
        return (int.from_bytes(data, "big") << 8) % 0xFFFF
    return int.from_bytes(data, "big") % 0xFFFF


def fold(total: int) -> int:
    """Return the checksum field for the sum of all residues; never 0, its other form 0xFFFF is."""
    return 0xFFFF - total % 0xFFFF


def pseudo_residue(source: int, destination: int, protocol: int, length: int) -> int:
    """Return the residue of TCP's and UDP's pseudo header, RFC 9293 §3.1."""
    total = (source >> 16) + (source & 0xFFFF) + (destination >> 16) + (destination & 0xFFFF)
    return total + protocol + length


def buffers_residue(buffers: Sequence[memoryview | bytes]) -> int:
    """Return the residue of the concatenation of `buffers`."""
    total, is_odd = 0, False
    for buffer in buffers:
        part = residue(buffer)
        if is_odd:  # its bytes stand in the other half of their words
            part = (part << 8) % 0xFFFF
        total += part
        is_odd ^= bool(len(buffer) & 1)
    return total


# Parsed headers.


class Ip(NamedTuple):
    """An IPv4 packet without its Ethernet header.

    Attributes:
        source: the sender's address.
        destination: the receiver's.
        protocol: IPPROTO_*.
        header_bytes: 20 to 60.
        length: of the whole packet, header included; all of it is in the frame.
        ttl: the time to live.
        fragment: IP_MF, and the offset in units of 8 bytes; 0 for a whole packet.
        ip_id: the identification, which all fragments of a packet share.
    """

    source: int
    destination: int
    protocol: int
    header_bytes: int
    length: int
    ttl: int
    fragment: int
    ip_id: int


class Udp(NamedTuple):
    """A UDP header; payload_bytes are what follows it, all of it in the packet."""

    source_port: int
    destination_port: int
    payload_bytes: int
    checksum: int


class Arp(NamedTuple):
    """An ARP packet for Ethernet and IPv4, RFC 826."""

    op: int
    sender_mac: bytes
    sender_ip: int
    target_mac: bytes
    target_ip: int


def parse_arp(head: bytes) -> Arp | None:
    """Parse the ARP packet of a frame; None unless it is one for IPv4 over Ethernet."""
    if len(head) < ETH_BYTES + ARP_BYTES:
        return None
    hardware, protocol, hardware_bytes, protocol_bytes, *rest = _ARP.unpack_from(head, ETH_BYTES)
    if (hardware, protocol, hardware_bytes, protocol_bytes) != (1, ETH_P_IP, 6, 4):
        return None
    return Arp(*rest)


def parse_ip(head: bytes, frame_bytes: int) -> Ip | None:
    """Parse the IPv4 header of a frame of `frame_bytes`, whose first bytes are `head`."""
    if len(head) < TRANSPORT_AT:
        return None
    (
        version_ihl, _, length, ip_id, fragment, ttl, protocol, _, source, destination
    ) = _IP.unpack_from(head, ETH_BYTES)  # fmt: skip
    header_bytes = (version_ihl & 15) * 4
    if version_ihl >> 4 != 4 or not IP_BYTES <= header_bytes <= length <= frame_bytes - ETH_BYTES:
        return None
    if len(head) < ETH_BYTES + header_bytes or residue(head[ETH_BYTES : ETH_BYTES + header_bytes]):
        return None
    fragment &= IP_MF | IP_OFFSET_MASK
    return Ip(source, destination, protocol, header_bytes, length, ttl, fragment, ip_id)


def parse_udp(head: bytes, ip: Ip) -> Udp | None:
    """Parse the UDP header behind an IPv4 header."""
    at = ETH_BYTES + ip.header_bytes
    room = ip.length - ip.header_bytes
    if room < UDP_BYTES or len(head) < at + UDP_BYTES:
        return None
    source_port, destination_port, length, checksum = _UDP.unpack_from(head, at)
    if not UDP_BYTES <= length <= room:
        return None
    return Udp(source_port, destination_port, length - UDP_BYTES, checksum)


# Building. Frames go from the gateway's MAC to the guest's.


class Link(NamedTuple):
    """The two ends of the wire."""

    guest_mac: bytes
    gateway_mac: bytes


def eth_header(link: Link, ether_type: int = ETH_P_IP) -> bytes:
    """Return the Ethernet header of a frame to the guest."""
    return _ETH.pack(link.guest_mac, link.gateway_mac, ether_type)


def ip_header(
    source: int, destination: int, protocol: int, payload_bytes: int, ip_id: int = 0,
    fragment: int = IP_DF,
) -> bytes:  # fmt: skip
    """Return an IPv4 header without options."""
    length = IP_BYTES + payload_bytes
    total = 0x4500 + length + ip_id + fragment + (TTL << 8 | protocol)
    total += (source >> 16) + (source & 0xFFFF) + (destination >> 16) + (destination & 0xFFFF)
    return _IP.pack(
        0x45, 0, length, ip_id, fragment, TTL, protocol, fold(total), source, destination
    )  # fmt: skip


def arp_reply(link: Link, request: Arp) -> bytes:
    """Answer an ARP request: the gateway's MAC is that of every address asked for."""
    return eth_header(link, ETH_P_ARP) + _ARP.pack(
        1, ETH_P_IP, 6, 4, ARPOP_REPLY,
        link.gateway_mac, request.target_ip, request.sender_mac, request.sender_ip,
    )  # fmt: skip


def udp_header(
    source: tuple[int, int], destination: tuple[int, int], payload: Sequence[memoryview | bytes],
    payload_bytes: int,
) -> bytes:  # fmt: skip
    """Return a UDP header with its checksum; source and destination are (address, port)."""
    length = UDP_BYTES + payload_bytes
    total = pseudo_residue(source[0], destination[0], IPPROTO_UDP, length)
    total += source[1] + destination[1] + length + buffers_residue(payload)
    return _UDP.pack(source[1], destination[1], length, fold(total))


def icmp_message(type: int, code: int, rest: int, payload: bytes) -> bytes:
    """Return an ICMP message; `rest` is its second word, payload what follows."""
    body = _U32.pack(rest) + payload
    total = (type << 8 | code) + residue(body)
    return bytes((type, code)) + _U16.pack(fold(total)) + body


def ipv4_frame(link: Link, source: int, destination: int, protocol: int, payload: bytes) -> bytes:
    """Return a whole frame around an IPv4 payload."""
    header = ip_header(source, destination, protocol, len(payload))
    return eth_header(link) + header + payload


def ipv4_frames(
    link: Link, source: int, destination: int, protocol: int, payload: bytes, ip_id: int
) -> list[bytes]:
    """Return a whole frame around an IPv4 payload, or those of its fragments if the MTU is less."""
    if IP_BYTES + len(payload) <= MTU:
        return [ipv4_frame(link, source, destination, protocol, payload)]
    frames = []
    for at in range(0, len(payload), _FRAGMENT_BYTES):
        part = payload[at : at + _FRAGMENT_BYTES]
        fragment = at // 8 | (IP_MF if at + len(part) < len(payload) else 0)
        header = ip_header(source, destination, protocol, len(part), ip_id, fragment)
        frames.append(eth_header(link) + header + part)
    return frames
