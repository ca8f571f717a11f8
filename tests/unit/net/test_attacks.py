"""Packets that have broken other network stacks, floods, and traffic at random.

After each of them: no exception, tables and queues within their bounds, a counter that says why,
and the next good frame is served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.net.exchange import pattern
from tests.unit.net.tap import Offloads
from tests.unit.net.world import (
    ACK,
    DNS,
    FAR,
    FIN,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    NOBODY,
    PSH,
    RST,
    SYN,
    URG,
    FakeDatagrams,
    FakeStream,
    Header,
    S,
    World,
    arp,
    assert_served,
    echo,
    ethernet,
    icmp,
    ip_of,
    ipv4,
    repaired,
    sum16,
    tcp,
    udp,
    with_sum,
)
from tests.unit.vsock.loop import EpollLoop
from voidbox.event_loop import EventLoop
from voidbox.nat.backend import NatBackend
from voidbox.nat.bucket import BURST_S
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import _Peer
from voidbox.nat.sockets import LOOPBACK, HostSockets, TcpSocket
from voidbox.net.datagram_table import DATAGRAM_FLOWS_MAX
from voidbox.net.fragment_table import BYTES_MAX as FRAGMENT_BYTES_MAX
from voidbox.net.fragment_table import DATAGRAMS_MAX, FRAGMENTS_MAX
from voidbox.net.host import RESET
from voidbox.net.line import FRAMES_MAX
from voidbox.net.tcp import before
from voidbox.net.tcp_outgoing import U32
from voidbox.net.tcp_states import State
from voidbox.net.tcp_table import CONNECTING_MAX, TCP_FLOWS_MAX

HOSTILE = ip_of("198.51.100.66")  # where the attacks go, if anywhere


# --- the table ----------------------------------------------------------------------------------


def fragment(
    offset_bytes: int, more: bool, size: int, ip_id: int = 7, protocol: int = 17, *,
    data: bytes | None = None, options: bytes = b"",
) -> bytes:  # fmt: skip
    field = (0x2000 if more else 0) | offset_bytes // 8
    payload = b"\x41" * size if data is None else data
    packet = bytearray(ipv4(payload, protocol, HOSTILE, fragment=field, options=options))
    packet[4:6] = struct.pack("!H", ip_id)
    return repaired(ethernet(bytes(packet)))


def raw_udp(payload: bytes, length: int, room: int | None = None) -> bytes:
    """UDP whose length field is a lie, its checksum left out."""
    message = struct.pack("!HHHH", 1000, 2000, length, 0) + payload
    return ethernet(ipv4(message if room is None else message[:room], 17, HOSTILE))


def dhcp_message(options: bytes) -> bytes:
    head = struct.pack("!BBBBIHH16s16s192sI", 1, 1, 6, 0, 0x1234, 0, 0, bytes(16),
                       GUEST_MAC.ljust(16, b"\0"), bytes(192), 0x63825363)  # fmt: skip
    return head + options


def dhcp(message: bytes) -> bytes:
    frame = bytearray(udp(68, 67, message, 0xFFFF_FFFF, 0))
    frame[:6] = b"\xff" * 6
    return bytes(frame)


def raw_tcp(offset: int, flags: int = SYN, options: bytes = b"", size: int | None = None) -> bytes:
    message = struct.pack("!HHIIBBHHH", 1000, 80, 1, 0, offset << 4, flags, 65535, 0, 0) + options
    if size is not None:
        message = message[:size]
    if len(message) >= 18:
        message = with_sum(message, 16, 6, HOSTILE, GUEST)
    return ethernet(ipv4(message, 6, HOSTILE))


def dns_query(name: bytes, count: int = 1, flags: int = 0x100) -> bytes:
    return struct.pack("!HHHHHH", 1, flags, count, 0, 0, 0) + name + b"\0\1\0\1"


def bad_ip(version_ihl: int = 0x45, length: int | None = None, size: int = 40) -> bytes:
    return ethernet(ipv4(bytes(size), 17, HOSTILE, version_ihl=version_ihl, length=length))


def long_option_ip(words: int) -> bytes:
    return ethernet(ipv4(bytes(8), 17, HOSTILE, options=bytes(4 * words)))


def ipv6_echo(payload_length: int) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, payload_length, 58, 255) + bytes(32)
    return ethernet(head + b"\x80\0\0\0\0\1\0\1", 0x86DD)


MALFORMED_IP = "malformed IPv4 header"
MALFORMED_TCP = "malformed TCP header"
MALFORMED_UDP = "malformed UDP header"

# What is sent, and why it goes no further; with none of it the guest gets an answer.
DROPPED: dict[str, tuple[list[bytes], str]] = {
    **{
        f"CVE-2020-29129 ARP of {size} bytes": ([arp()[:size]], "ARP that asks nothing")
        for size in range(14, 42)
    },
    **{
        f"CVE-2020-29130 NC-SI of {size} bytes": ([ethernet(bytes(size), 0x88F8)],
                                                  "not IPv4 or ARP")
        for size in range(16)
    },
    **{
        f"CVE-2021-3592 DHCP of {size} bytes": ([dhcp(dhcp_message(b"")[:size])],
                                                "DHCP that is no request")
        for size in (0, 1, 43, 44, 235, 236, 239)
    },
    **{
        f"CVE-2021-3592 DHCP options {options.hex()}": ([dhcp(dhcp_message(options))],
                                                        "DHCP that is no request")
        for options in (b"", b"\x35", b"\x35\x01", b"\x35\xff\x01", b"\x35\x00\xff", b"\x00" * 300,
                        b"\x0c\xff" + bytes(10))
    },
    **{
        f"CVE-2021-3593 UDP of {room} bytes": ([raw_udp(b"", 8, room)], MALFORMED_UDP)
        for room in range(8)
    },
    **{
        f"CVE-2021-3594 a UDP length of {length}": ([raw_udp(b"payload", length)], MALFORMED_UDP)
        for length in (0, 1, 7, 16, 1500, 65535)
    },
    **{
        f"CVE-2020-10756 ICMPv6 of {length} bytes": ([ipv6_echo(length)], "not IPv4 or ARP")
        for length in (0, 8, 9, 65535)
    },
    **{
        f"CVE-2026-120830 an IP length of {length}": ([bad_ip(length=length)], MALFORMED_IP)
        for length in (0, 1, 19, 61, 62, 1500, 65535)
    },
    **{
        f"an IHL of {ihl}": ([bad_ip(0x40 | ihl)], MALFORMED_IP) for ihl in (0, 1, 4)
    },
    "an IHL beyond the packet": ([ethernet(ipv4(bytes(8), 17, HOSTILE, version_ihl=0x4F))],
                                 MALFORMED_IP),
    **{f"IP version {version}": ([bad_ip(version << 4 | 5)], MALFORMED_IP)
       for version in (0, 3, 5, 6, 15)},
    "a wrong header checksum": ([ethernet(b"\x45" + ipv4(b"", 17)[1:10] + b"\0\0" +
                                          ipv4(b"", 17)[12:])], MALFORMED_IP),
    "half an IP header": ([ethernet(ipv4(b"", 17)[:19])], MALFORMED_IP),
    "IP of nothing": ([ethernet(b"")], MALFORMED_IP),
    **{
        f"a TCP offset of {offset}": ([raw_tcp(offset)], MALFORMED_TCP) for offset in (0, 4, 6, 15)
    },
    "a TCP option of length 0": ([raw_tcp(6, options=b"\x02\x00\x05\xb4")], MALFORMED_TCP),
    "a TCP option of length 1": ([raw_tcp(6, options=b"\x1e\x01\x00\x00")], MALFORMED_TCP),
    "a TCP option past the end": ([raw_tcp(6, options=b"\x02\x05\x05\xb4")], MALFORMED_TCP),
    "a TCP option without its length": ([raw_tcp(6, options=b"\x01\x01\x01\x03")], MALFORMED_TCP),
    **{
        f"TCP of {size} bytes": ([raw_tcp(5, size=size)],
                                 MALFORMED_TCP if size >= 18 else "wrong checksum")
        for size in (18, 19, 1, 13)
    },
    "LAND: to the guest from itself": ([tcp(80, 80, 1, 0, SYN, destination=GUEST)],
                                       "to the guest itself"),
    "a spoofed source": ([ethernet(ipv4(udp(1, 2)[34:], 17, FAR, ip_of("10.0.2.16")))],
                         "spoofed source address"),
    "the gateway's address as the source": ([ethernet(ipv4(bytes(8), 1, GUEST, GATEWAY))],
                                            "spoofed source address"),
    "no source address": ([udp(1, 53, b"", FAR, 0)], "spoofed source address"),
    "TCP without a source address": ([ethernet(ipv4(tcp(1, 2, 3, 4, SYN)[34:], 6, FAR, 0))],
                                     "spoofed source address"),
    "a spoofed MAC": ([ethernet(udp(1, 2)[14:], source=b"\x52\x54\0\0\0\1")],
                      "spoofed MAC address"),
    "a multicast MAC as the source": ([ethernet(b"", source=b"\xff" * 6)], "spoofed MAC address"),
    "the gateway's MAC as the source": ([ethernet(b"", source=GATEWAY_MAC)], "spoofed MAC address"),
    "for another MAC": ([ethernet(udp(1, 2)[14:], to=b"\x33\x33\0\0\0\1")],
                        "for another MAC address"),
    "ARP from another MAC": ([arp(sender_mac=b"\x02\0\0\0\0\1")], "spoofed ARP"),
    "ARP from another address": ([arp(sender=GATEWAY)], "spoofed ARP"),
    "an ARP reply": ([arp(op=2)], "ARP that asks nothing"),
    "ARP for the guest": ([arp(GUEST)], "ARP for an address that is not here"),
    **{f"ARP for {address}, which is nobody's": ([arp(ip_of(address))],
                                                 "ARP for an address that is not here")
       for address in ("10.0.2.1", "10.0.2.4", "10.0.2.77", "10.0.2.0", "10.0.2.255")},
    "ARP for the world": ([arp(FAR)], "ARP for an address that is not here"),
    "a VLAN tag": ([ethernet(b"\0\1\x08\0" + ipv4(b"", 17), 0x8100)], "not IPv4 or ARP"),
    "an 802.3 frame": ([ethernet(bytes(46), 46)], "not IPv4 or ARP"),
    **{f"protocol {number}": ([ethernet(ipv4(bytes(20), number, HOSTILE))],
                              "neither TCP, UDP nor ICMP")
       for number in (0, 2, 4, 41, 47, 50, 132, 255)},
    **{
        f"ICMP type {type}": ([icmp(type, 0, bytes(8), HOSTILE)], "ICMP other than an echo request")
        for type in (0, 3, 5, 9, 11, 13, 17, 255)
    },
    "an echo request with a code": ([icmp(8, 1, bytes(4), HOSTILE)],
                                    "ICMP other than an echo request"),
    **{
        f"ICMP of {size} bytes": (
            [ethernet(ipv4((b"\x08\0\xf7\xff" + bytes(4))[:size], 1, HOSTILE))],
            "ICMP other than an echo request")
        for size in (0, 4, 7)
    },
    "an ICMP error about an ICMP error": ([icmp(3, 1, bytes(4) + ipv4(bytes(8), 1))],
                                          "ICMP other than an echo request"),
    "a wrong UDP checksum": ([ethernet(ipv4(struct.pack("!HHHHI", 1, 2, 12, 1, 0), 17, HOSTILE))],
                             "wrong checksum"),
    "a wrong TCP checksum": ([ethernet(ipv4(tcp(1, 2, 3, 4, SYN)[34:], 6, HOSTILE))],
                             "wrong checksum"),
    "bytes after a UDP datagram": ([raw_udp(b"payload", 10).replace(b"\x07\xd0\x00\x0a\x00\x00",
                                                                     b"\x07\xd0\x00\x0a\x12\x34")],
                                   "wrong checksum"),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_what_is_dropped(name: str) -> None:
    frames, reason = DROPPED[name]
    world = World()
    world.host.fails[HOSTILE] = errno.EHOSTUNREACH  # an ICMP error would quote it
    for frame in frames:
        assert world.ask(frame) == [], "answered"
    assert world.dropped == {reason: len(frames)}
    assert world.host.opened == 0
    world.host.fails.clear()
    assert_served(world)


@pytest.mark.parametrize("name", DROPPED)
def test_what_is_dropped_is_dropped_without_checksums_and_in_pieces(name: str) -> None:
    """NEEDS_CSUM makes the stack believe the checksum: no more than that."""
    frames, reason = DROPPED[name]
    world = World()
    world.host.fails[HOSTILE] = errno.EHOSTUNREACH
    for frame in frames:
        world.send(frame, needs_csum=True, cuts=(0, 1, 13, 20, 34, 35, 50, 60))
    if reason != "wrong checksum":
        assert world.take() == []
        assert world.dropped == {reason: len(frames)}
        assert world.host.opened == 0
    world.host.fails.clear()
    assert_served(world)


UNFINISHED, MALFORMED = "unfinished datagram", "malformed fragment"
CONTRADICTORY, AGAIN = "fragments that contradict each other", "fragment that came before"
OLDEST = "oldest unfinished datagram, for a new one"


def udp_fragments(size: int, ip_id: int = 7, piece: int = 1480) -> list[bytes]:
    """A good UDP datagram of `size` bytes of data, in pieces."""
    message = udp(1000, 2000, pattern(0, size), HOSTILE)[34:]
    return [
        fragment(at, at + piece < len(message), piece, ip_id, data=message[at : at + piece])
        for at in range(0, len(message), piece)
    ]


# What is sent, and what becomes of it within half a minute: nothing of it goes anywhere.
FRAGMENTS: dict[str, tuple[list[bytes], dict[str, int]]] = {
    "CVE-2019-14378 a first fragment of 64 KiB": ([fragment(0, True, 65512)], {UNFINISHED: 1}),
    "CVE-2019-14378 a first fragment, then the same again": (
        [fragment(0, True, 1480)] * 2, {AGAIN: 1, UNFINISHED: 1}),
    "CVE-2019-15890 overlapping fragments": (
        [fragment(0, True, 1480), fragment(8, True, 1480), fragment(8, False, 8)],
        {CONTRADICTORY: 1, UNFINISHED: 1}),
    "CVE-2020-1983 a fragment that begins after its end": (
        [fragment(2000, True, 16), fragment(0, True, 1480), fragment(8, False, 16)],
        {CONTRADICTORY: 1}),
    "teardrop: the second within the first": (
        [fragment(0, True, 40), fragment(24, False, 8)], {CONTRADICTORY: 1}),
    "teardrop from behind": (
        [fragment(24, False, 8), fragment(0, True, 40)], {CONTRADICTORY: 1}),
    "RFC 815: a hole filled beyond its ends": (
        [fragment(0, True, 8), fragment(24, True, 8), fragment(8, True, 24)], {CONTRADICTORY: 1}),
    "RFC 815: a fragment over all that came": (
        [fragment(8, True, 8), fragment(0, True, 64)], {CONTRADICTORY: 1}),
    "two ends": ([fragment(64, False, 8), fragment(128, False, 8)], {CONTRADICTORY: 1}),
    "an end before what came": ([fragment(128, True, 8), fragment(64, False, 8)],
                                {CONTRADICTORY: 1}),
    "something behind the end": ([fragment(64, False, 8), fragment(72, True, 8)],
                                 {CONTRADICTORY: 1}),
    "ping of death": ([fragment(65528, False, 1480, protocol=1), fragment(0, True, 8, protocol=1)],
                      {MALFORMED: 1, UNFINISHED: 1}),
    "ping of death by a byte": ([fragment(65512, False, 4, protocol=1)], {MALFORMED: 1}),
    "too long by the first one's options": (
        [fragment(0, True, 1480, options=b"\x01" * 40), fragment(1480, True, 64000),
         fragment(65480, False, 20)], {MALFORMED: 1}),
    "a fragment of nothing": ([fragment(0, True, 0), fragment(8, False, 0)], {MALFORMED: 2}),
    "a length that no fragment has": ([fragment(0, True, 12)], {MALFORMED: 1}),
    "RFC 1858 a TCP header in two fragments": (
        [fragment(0, True, 8, protocol=6), fragment(8, False, 12, protocol=6)], {MALFORMED: 2}),
    "RFC 1858 the flags of a SYN hidden": (
        [fragment(0, True, 24, protocol=6), fragment(8, False, 16, protocol=6)],
        {MALFORMED: 1, UNFINISHED: 1}),
    "RFC 3128 the first of two first ones": (
        [fragment(0, True, 16, protocol=6), fragment(0, True, 24, protocol=6),
         fragment(16, False, 8, protocol=6)], {MALFORMED: 2, UNFINISHED: 1}),
    "tiny fragments without end": (
        [fragment(8 * n, True, 8) for n in range(200)],
        {"datagram in too many fragments": 1, UNFINISHED: 1}),
    "a datagram without its middle": (
        [fragment(0, True, 1480), fragment(2960, False, 8)], {UNFINISHED: 1}),
    "a datagram without its end": ([fragment(0, True, 1480)], {UNFINISHED: 1}),
    "a datagram without its start": ([fragment(1480, False, 8)], {UNFINISHED: 1}),
    "pieces of two datagrams": (
        [fragment(0, True, 1480, 1), fragment(1480, False, 8, 2)], {UNFINISHED: 2}),
    "pieces of two protocols": (
        [fragment(0, True, 1480), fragment(1480, False, 8, protocol=1)], {UNFINISHED: 2}),
    "a whole one with a wrong checksum": (
        [*udp_fragments(3000)[:2], fragment(2960, False, 48)], {"wrong checksum": 1}),
    "a whole one that lies about its length": (
        [fragment(0, True, 8, data=struct.pack("!HHHH", 1, 2, 1000, 0)), fragment(8, False, 8)],
        {MALFORMED_UDP: 1}),
    "of a spoofed source": (
        [repaired(f[:26] + FAR.to_bytes(4, "big") + f[30:]) for f in udp_fragments(3000)],
        {"spoofed source address": 3}),
    "of no source": ([repaired(f[:26] + bytes(4) + f[30:]) for f in udp_fragments(3000)],
                     {"spoofed source address": 3}),
}  # fmt: skip


@pytest.mark.parametrize("needs_csum", [False, True])
@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_that_are_no_datagram(name: str, needs_csum: bool) -> None:
    frames, dropped = FRAGMENTS[name]
    world = World()
    for frame in frames:
        world.send(frame, needs_csum=needs_csum, cuts=(0, 1, 13, 20, 34, 35, 50, 60))
        world.check()
        assert world.take() == [], "answered"
    world.wait(31)
    assert world.dropped == dropped and world.host.opened == 0
    # RFC 792: told to whoever sent the first one.
    for seen in world.take():
        assert seen.body[:2] == b"\x0b\x01" and seen.source == GATEWAY
        assert any(seen.body[8:] in frame for frame in frames)
    assert_served(world)


@pytest.mark.parametrize("order", ["as sent", "backwards", "mixed", "each twice"])
@pytest.mark.parametrize("size", [1473, 2952, 9000, 65507])
def test_a_datagram_in_fragments_arrives(size: int, order: str) -> None:
    world = World()
    frames = udp_fragments(size)
    if order == "backwards":
        frames.reverse()
    elif order == "mixed":
        frames = frames[1::2] + frames[::2]
    elif order == "each twice":
        frames = [frame for one in frames[:-1] for frame in (one, one)] + frames[-1:]
    for frame in frames:
        assert not world.host.datagrams
        world.send(frame, cuts=(20, 34, 100))
    assert world.host.datagrams[0].got == [pattern(0, size)]
    assert world.stack._fragments._bytes == 0
    world.check()


def test_a_datagram_in_fragments_is_judged_as_a_whole() -> None:
    """Its ports are in the first fragment, which may come last."""
    world = World(deny=("*:2000",))
    frames = udp_fragments(3000)
    for frame in reversed(frames):
        assert world.take() == []
        world.send(frame)
    (seen,) = world.take()
    assert seen.body[:2] == b"\x03\x0d" and world.host.opened == 0
    # It quotes the datagram, as if it had never been cut.
    quoted = seen.body[8:]
    assert sum16(quoted[:20]) == 0 and quoted[20:] == frames[0][34:42]
    assert quoted[2:8] == struct.pack("!HHH", 20 + 8 + 3000, 7, 0)


def test_a_datagram_that_the_host_cannot_send_is_answered() -> None:
    world = World()
    world.send(udp(1000, 2000, b"x", HOSTILE))
    world.host.datagrams[0].error = errno.EMSGSIZE
    for frame in udp_fragments(60_000):
        world.send(frame)
    (seen,) = world.take()
    assert seen.body[:2] == b"\x03\x04"  # fragmentation needed


def test_a_ping_in_fragments() -> None:
    world = World()
    message = echo(7, 8, pattern(0, 9000), GATEWAY)[34:]
    for at in range(0, len(message), 1480):
        part = message[at : at + 1480]
        more = 0x2000 if at + 1480 < len(message) else 0
        world.send(ethernet(ipv4(part, 1, GATEWAY, fragment=more | at // 8)))
    frames = world.take()
    assert b"".join(seen.body for seen in frames)[8:] == pattern(0, 9000)
    assert len({seen.frame[18:20] for seen in frames}) == 1


def test_a_dns_query_in_fragments() -> None:
    world = World()
    message = with_sum(
        struct.pack("!HHHH", 1000, 53, 8 + 60000, 0) + dns_query(b"\x07example\x03com\0")
        + bytes(60000 - 29), 6, 17, DNS, GUEST,
    )  # fmt: skip
    for at in range(0, len(message), 1480):
        more = 0x2000 if at + 1480 < len(message) else 0
        world.send(ethernet(ipv4(message[at : at + 1480], 17, DNS, fragment=more | at // 8)))
    (seen,) = world.take()  # bytes behind the question
    assert seen.body[:2] == (53).to_bytes(2, "big") and seen.body[11] & 15 == 1
    assert_served(world)


CLOSED = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.0.0.1", "169.254.169.254",
          "100.100.100.200", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
          "10.0.2.255", "10.0.2.0", "10.0.2.77", "10.0.2.2", "10.0.2.3"]  # fmt: skip


@pytest.mark.parametrize("allow", [(), ("0.0.0.0/0",)], ids=["open", "everything allowed"])
@pytest.mark.parametrize("address", CLOSED)
def test_the_host_and_its_networks_cannot_be_reached(address: str, allow: tuple[str, ...]) -> None:
    """A raw SYN to 127.0.0.1 has led to the host's loopback elsewhere."""
    world = World(allow=allow)
    target = ip_of(address)
    answers = world.ask(tcp(1, 80, 1, 0, SYN, destination=target))
    assert [seen.tcp.flags for seen in answers] == [RST | ACK]
    errors = world.ask(udp(1, 80, b"x", target))
    if target >= 0xE000_0000 or address == "10.0.2.255":
        assert errors == []  # RFC 1812 §4.3.2.7: none about what goes to many
    else:
        assert [seen.body[:2] for seen in errors] == [b"\x03\x0d"]
        assert errors[0].source == GATEWAY
    if address not in ("10.0.2.2", "10.0.2.3"):
        answers = world.ask(echo(1, 1, b"", target))
        assert [seen.body[:2] for seen in answers] == [b"\x03\x0d"] * len(errors)
    assert world.host.opened == 0
    assert sum(world.stack.statistics().refused.values()) >= 2
    assert_served(world)


def test_the_gateway_stands_for_the_hosts_loopback_where_a_port_was_opened() -> None:
    world = World(host_ports=(8080,))
    world.open(1000, 8080, destination=GATEWAY)
    assert world.host.last is not None and world.host.last.address == 0x7F00_0001
    world.send(udp(1000, 8080, b"x", GATEWAY))
    assert world.host.datagrams[0].key == (0x7F00_0001, 8080)
    (seen,) = world.ask(tcp(1001, 8081, 1, 0, SYN, destination=GATEWAY))
    assert seen.tcp.flags == RST | ACK


def test_an_icmp_error_quotes_real_bytes_alone() -> None:
    """Whatever follows the packet in the guest's buffers, and in ours, stays there."""
    world = World()
    world.host.fails[HOSTILE] = errno.EHOSTUNREACH
    for size in (0, 1, 8, 20, 1400):
        frame = udp(1, 2, b"\x11" * size, HOSTILE)
        (seen,) = world.ask(frame + b"\xee" * 100)
        assert seen.body[8:] == frame[14:42]
        assert seen.body[4:8] == bytes(4)
    options = ethernet(ipv4(udp(1, 2, b"", HOSTILE)[34:], 17, HOSTILE, options=b"\x01" * 40))
    (seen,) = world.ask(options)
    assert seen.body[8:] == options[14:] and len(seen.body) == 8 + 60 + 8


def test_a_dhcp_reply_holds_no_stale_bytes() -> None:
    world = World()
    discover = dhcp(dhcp_message(b"\x35\x01\x01\xff"))
    (first,) = world.ask(discover)
    secret = b"SECRET" * 50
    world.send(dhcp(dhcp_message(b"\x0c\xc8" + secret)))
    world.send(udp(1, 2, secret))
    (second,) = world.ask(discover)
    assert b"SECRET" not in second.frame
    assert first.body == second.body


@pytest.mark.parametrize("size", [0, 1, 100, 1400, 1401, 1472])
def test_a_ping_of_the_gateway_comes_back_whole(size: int) -> None:
    data = bytes(range(251)) * 6
    (seen,) = World().ask(echo(7, 8, data[:size], GATEWAY))
    assert seen.body[8:] == data[:size]


@pytest.mark.parametrize("size", [1473, 9000, 65507])
def test_a_ping_that_no_frame_holds_is_answered_in_fragments(size: int) -> None:
    world = World()
    frames = world.ask(echo(7, 8, bytes(size), GATEWAY))
    assert sum(len(seen.body) for seen in frames) == 8 + size
    assert_served(world)


DNS_QUERIES = {
    "nothing": b"",
    "a byte": b"\0",
    "half a header": bytes(11),
    "a header alone": struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0),
    "a pointer to itself": dns_query(b"\xc0\x0c"),
    "a pointer to a pointer": dns_query(b"\xc0\x0e\xc0\x0c"),
    "a pointer past the end": dns_query(b"\xff\xff"),
    "a loop with labels": dns_query(b"\x01a\xc0\x0c"),
    "a name without an end": struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\x3f" + b"a" * 63,
    "a name of 300 bytes": dns_query((b"\x3f" + b"a" * 63) * 5 + b"\0"),
    "a label of a reserved kind": dns_query(b"\x80\x01\0"),
    "65535 questions": dns_query(b"\x01a\0", count=65535),
    "no question": dns_query(b"", count=0),
    "a reply": dns_query(b"\x01a\0", flags=0x8180),
    "64 KiB": dns_query(b"\x01a\0") + bytes(60000),
}


@pytest.mark.parametrize("name", DNS_QUERIES)
@pytest.mark.parametrize("is_tcp", [False, True], ids=["UDP", "TCP"])
def test_dns_queries(name: str, is_tcp: bool) -> None:
    world = World()
    query = DNS_QUERIES[name]
    if is_tcp:
        _, iss = open_dns(world, 1000)
        message = struct.pack("!H", len(query)) + query
        for at in range(0, len(message), 30000):
            part = message[at : at + 30000]
            world.send(tcp(1000, 53, 1001 + at, iss + 1, ACK, payload=part, destination=DNS))
            world.check()
            world.take()
    else:
        answers = world.ask(udp(1000, 53, query, DNS))
        assert all(int.from_bytes(seen.body[10:12], "big") & 0x8000 for seen in answers)
        assert (len(answers) <= 1 and len(query) > 11) or not answers
    assert len(world.resolvers.asked) <= 1
    assert_served(world)
    world.wait(60)
    assert world.stack.next_deadline_ns() is None or world.flows or world.host.datagrams


def open_dns(world: World, sport: int) -> tuple[None, int]:
    (seen,) = world.ask(tcp(sport, 53, 1000, 0, SYN, destination=DNS))
    assert seen.tcp.flags == SYN | ACK
    world.send(tcp(sport, 53, 1001, seen.tcp.seq + 1, ACK, destination=DNS))
    return None, seen.tcp.seq


def test_a_guest_that_asks_by_tcp_and_reads_no_answer() -> None:
    world = World()
    _, iss = open_dns(world, 1000)
    world.send(tcp(1000, 53, 1001, iss + 1, ACK, 0, destination=DNS))
    query = dns_query(b"\x09localhost\0")
    message = (struct.pack("!H", len(query)) + query) * 1000
    seq = 1001
    for _ in range(100):
        world.send(tcp(1000, 53, seq, iss + 1, ACK, 0, payload=message[:60000], destination=DNS))
        seq += len(message[:60000])
        world.take()
        if not world.flows:
            break
        (flow,) = world.flows
        assert len(flow.stream._unread) < 1 << 20  # type: ignore[union-attr]
    assert not world.flows
    assert_served(world)


def test_urgent_pointers_of_all_kinds() -> None:
    """CVE-2026-9539: the pointer is not used, the data are in band."""
    world = World()
    stream, iss = world.open()
    seq = 1001
    for urgent in (0, 1, 10, 11, 0xFFFF) * 20:
        world.send(
            tcp(40000, 80, seq, iss + 1, ACK | URG | PSH, payload=b"0123456789", urgent=urgent)
        )
        seq += 10
        world.send(tcp(40000, 80, seq, iss + 1, ACK | URG, urgent=urgent))
    world.take()
    assert bytes(stream.got) == b"0123456789" * 100
    world.check()
    assert_served(world)


def test_a_burst_on_one_session_is_bounded_and_fair() -> None:
    """CVE-2026-120831: the host's kernel queues, the stack does not; others get their turn."""
    world = World()
    world.send(udp(1000, 2000, b"hello"))
    (busy,) = world.host.datagrams
    stream, _ = world.open()
    world.rx.credits = 0
    busy.gives.extend(b"x" * 1400 for _ in range(5000))
    stream.gives += b"y" * 100
    world.pump()
    world.check()
    assert len(busy.gives) == 5000  # nothing is read that the guest has no buffer for
    world.rx.credits = 4
    kinds = [seen.protocol for seen in world.take()]
    assert len(kinds) == 4 and 6 in kinds
    assert_served(world)


def test_large_datagrams_share_the_queue_of_frames() -> None:
    world = World()
    for port in range(20):
        world.send(udp(1000 + port, 2000, b"hello"))
    for datagrams in world.host.datagrams:
        datagrams.gives.extend([bytes(65507)] * 3)
    world.rx.credits = 20
    world.pump()
    assert len(world.stack.line.frames) <= FRAMES_MAX
    world.rx.credits = None
    frames = world.take()
    assert 0 < len(frames) <= 20 * 3 * 45
    world.check()
    assert_served(world)


# --- bounded memory -----------------------------------------------------------------------------


def footprint(world: World) -> int:
    """Bytes of memory behind all data that is held for a flow."""
    total = 0
    for flow in world.flows:
        for part in (*flow._held, *flow._kept._parts):
            total += sys.getsizeof(part)
    return total


def test_a_guest_that_sends_byte_by_byte_to_a_host_that_does_not_read() -> None:
    world = World()
    size = 50_000
    world.stack._tcp._window_bytes = lambda: size  # type: ignore[method-assign]
    stream, iss = world.open()
    stream.room = 0
    frame = bytearray(tcp(40000, 80, 1001, iss + 1, ACK, payload=b"x"))
    for place in range(size + 1000):
        struct.pack_into("!I", frame, 38, 1001 + place)
        world.send(bytes(frame), needs_csum=True)
        if place % 1000 == 0:
            world.take()
            world.check()
    (flow,) = world.flows
    assert flow.connection.held_bytes == size
    assert footprint(world) < 2 * size
    stream.room = 1 << 62
    world.take()
    assert len(stream.got) == size and not footprint(world)
    assert_served(world)


def test_a_guest_that_announces_a_gib_and_acknowledges_nothing() -> None:
    world = World(has_csum=True)
    streams = []
    for port in range(20):
        stream, _ = world.open(1000 + port, options=b"\x03\x03\x0e", window=65535)
        streams.append(stream)
    for _ in range(300):  # as a far end does that sends little at a time
        for stream in streams:
            stream.gives += bytes(5)
        world.take()
    assert footprint(world) < 2 * 20 * 300 * 5
    world.rx.checks = False
    for stream in streams[:5]:
        stream.gives += bytes(10 << 20)
    world.take()
    world.check()
    assert footprint(world) < 6 * (2 << 20)
    world.send(tcp(1000, 80, 1001, 0, RST))
    for stream in streams[1:5]:
        stream.owner.connection.abort()  # type: ignore[attr-defined]
        stream.owner.ready(False, False)
    world.wait(300)
    assert not world.flows and not world.host.streams
    assert_served(world)


def test_a_guest_that_never_takes_a_frame() -> None:
    world = World()
    world.rx.credits = 0
    for number in range(2000):
        world.send(arp())
        world.send(echo(1, number, bytes(1000), GATEWAY))
        world.send(tcp(number, 80, 1, 0, SYN))
        world.send(udp(number, 80, bytes(100)))
        world.send(udp(number, 53, dns_query(b"\x09localhost\0"), DNS))
        world.send(echo(number, 1, b"", FAR))
        world.send(tcp(number, 99, 1, 7, ACK))
        world.pump()
    for stream in world.host.streams:
        stream.gives += bytes(100_000)
    world.pump()
    world.check()
    assert footprint(world) == 0
    assert world.dropped["answer, for the guest takes none"] > 1000
    world.wait(8000)
    assert not world.flows and not world.host.streams and not world.host.datagrams
    assert not world.stack._tcp._timers or len(world.stack._tcp._timers) < 100
    assert world.stack.next_deadline_ns() is None
    assert_served(world)


# --- floods -------------------------------------------------------------------------------------

FLOOD = 100_000 if "VOIDBOX_LONG" in os.environ else 5_000


@pytest.mark.slow
def test_a_flood_of_short_connections_leaves_nothing() -> None:
    """VOIDBOX_LONG=1 makes it twenty times as many."""
    world = World()
    world.rx.checks = False
    templates = {
        flags: bytearray(tcp(1, 80, 0, 0, flags, payload=b"GET" if flags & PSH else b""))
        for flags in (SYN, ACK, ACK | PSH | FIN, RST)
    }

    def send(flags: int, sport: int, seq: int, ack: int) -> None:
        frame = templates[flags]
        struct.pack_into("!H", frame, 34, sport)
        struct.pack_into("!II", frame, 38, seq & U32, ack & U32)
        world.stack.receive([memoryview(frame)], NEEDS_CSUM, world.now_ns)

    for number in range(FLOOD):
        sport, seq = 1024 + number % 60000, number * 7919
        world.now_ns += 20_000_000
        if number % 100 == 0:
            world.wait(0.001)
            world.check()
            assert len(world.flows) < 700
        world.rx.seen.clear()
        send(SYN, sport, seq, 0)
        world.pump()
        iss = world.rx.seen.pop().tcp.seq
        stream = world.host.last
        assert stream is not None
        if number % 5 == 0:  # the guest gives up at once
            send(RST, sport, seq + 1, 0)
            continue
        send(ACK | PSH | FIN, sport, seq + 1, iss + 1)
        stream.gives += b"200"
        stream.has_ended = True
        world.pump()
        assert stream.got == b"GET"
        if number % 5 == 1:  # the last acknowledgement never comes
            continue
        send(ACK, sport, seq + 5, iss + 5)
        assert not stream.is_open and not stream.was_reset
    world.wait(120)
    assert not world.flows and not world.host.streams and not world.stack._tcp._connecting
    assert not world.stack.line.pending and len(world.stack._tcp._timers) < 200
    world.wait(40)
    assert not world.stack._tcp._timers
    assert_served(world)


class _NeedsCsum:
    needs_csum = True


NEEDS_CSUM = _NeedsCsum()


def test_udp_to_ten_thousand_ports() -> None:
    world = World()
    world.rx.checks = False
    for port in range(10_000):
        world.send(udp(1000, port + 1, b"x"))
        assert len(world.host.datagrams) <= DATAGRAM_FLOWS_MAX
    world.check()
    assert len(world.host.datagrams) == DATAGRAM_FLOWS_MAX
    assert world.dropped == {"oldest datagram flow, for a new one": 10_000 - DATAGRAM_FLOWS_MAX}
    assert world.host.datagrams[0].key == (FAR, 10_000 - DATAGRAM_FLOWS_MAX + 1)
    assert_served(world)
    world.wait(200)
    assert not world.host.datagrams and world.stack.next_deadline_ns() is None


def test_a_flow_that_is_used_is_not_the_oldest() -> None:
    world = World()
    world.send(udp(1, 1, b"x"))
    first = world.host.datagrams[0]
    for port in range(2000):
        world.send(udp(2, port + 1, b"x"))
        if port % 100 == 0:
            world.send(udp(1, 1, b"x"))
    assert first.is_open and len(first.got) == 21


def test_a_flow_by_which_the_guest_only_receives_is_not_the_oldest() -> None:
    """Of a published port, say: else others take the place of the peer that sends most."""
    world = World()
    world.send(udp(1000, 9, b"subscribe"))
    used = world.host.datagrams[0]
    for number in range(DATAGRAM_FLOWS_MAX + 10):
        used.gives.append(b"news")
        world.take()
        world.send(udp(2000 + number, 9, b"x"))
    assert used.is_open
    world.check()


def test_a_ping_flood() -> None:
    world = World()
    for number in range(3000):
        world.send(echo(number, 1, bytes(1000), GATEWAY))
        world.send(echo(number, 1, bytes(56), FAR))
    world.check()
    assert world.dropped == {
        "answer, for the guest takes none": 3000 - FRAMES_MAX,
        "oldest datagram flow, for a new one": 3000 - DATAGRAM_FLOWS_MAX,
    }
    assert len(world.take()) == FRAMES_MAX
    assert_served(world)


def test_a_syn_flood() -> None:
    world = World()
    world.host.black_holes.add(HOSTILE)
    for number in range(5000):
        world.send(tcp(1024 + number, 80, 1, 0, SYN, destination=HOSTILE))
    assert len(world.host.streams) == CONNECTING_MAX
    world.check()
    world.wait(4)
    assert_served(world)
    world.wait(40)
    assert not world.flows and not world.host.streams


@pytest.mark.slow
def test_a_flood_of_syns_that_are_accepted_and_then_forgotten() -> None:
    world = World()
    world.rx.checks = False
    for number in range(3000):
        world.send(tcp(1024 + number, 80, 1, 0, SYN))
        world.pump()
    assert len(world.flows) == TCP_FLOWS_MAX == len(world.host.streams)
    world.check()
    world.wait(70)  # given up after a minute
    assert not world.flows and not world.host.streams
    assert_served(world)


@pytest.mark.parametrize(
    ("size", "kept"), [(1480, DATAGRAMS_MAX), (65504, FRAGMENT_BYTES_MAX // 65504)]
)
def test_a_flood_of_fragments(size: int, kept: int) -> None:
    world = World()
    for number in range(3000):
        world.send(fragment(0, True, size, number))
        assert world.stack._fragments._bytes <= FRAGMENT_BYTES_MAX
    assert world.dropped == {OLDEST: 3000 - kept}
    # The last of them may still be finished.
    world.send(fragment(size, False, 8, 2999))
    assert world.dropped["wrong checksum"] == 1
    assert_served(world)
    world.wait(31)
    assert world.stack._fragments._bytes == 0 and not world.stack._fragments._datagrams
    assert world.dropped[UNFINISHED] == kept - 1


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_fragments_as_linux_would_send_them(data: st.DataObject) -> None:
    """Any sizes, any order, several datagrams at once: each arrives once and whole."""
    world = World()
    sizes = data.draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=4))
    frames = []
    for number, size in enumerate(sizes):
        piece = 8 * data.draw(st.integers((size + 8) // (8 * FRAGMENTS_MAX) + 1, 185))
        frames += udp_fragments(size, number, piece)
    for frame in data.draw(st.permutations(frames)):
        world.send(frame)
    got = [bytes(part) for datagrams in world.host.datagrams for part in datagrams.got]
    assert sorted(got) == sorted(pattern(0, size) for size in sizes)
    world.check()


def test_deadlines_do_not_pile_up() -> None:
    """An hour of a byte a second on one flow, and flows that come and go."""
    world = World()
    stream, iss = world.open()
    for second in range(3600):
        stream.gives += b"x"
        world.take()
        world.send(tcp(40000, 80, 1001, iss + 2 + second, ACK))
        world.wait(1.5)
        assert len(world.stack._tcp._timers) < 100
    world.check()


def test_a_peer_of_a_published_port_after_a_long_silence() -> None:
    world = World()
    world.send(udp(1, 2, b"x"))
    world.take()
    world.now_ns += 3600 * S  # nothing happens that would tell the stack the time
    peer = FakeDatagrams(world.host, (0, 0), NOBODY)
    world.host.datagrams.append(peer)
    peer.owner = world.stack.open_datagrams_to_guest(53, peer, world.now_ns)
    peer.gives.append(b"hello")
    peer.owner.ready()
    world.rx.credits = 0
    world.wait(1)  # a sweep, before the guest has a buffer
    world.rx.credits = None
    (seen,) = world.take()
    assert seen.body[8:] == b"hello" and seen.source == GATEWAY
    world.wait(200)
    assert not peer.is_open
    world.check()


@pytest.mark.parametrize(("size", "kept"), [(100, 64), (65507, 4), (0, 64)])
def test_what_waits_of_one_peer_is_counted_and_weighed(size: int, kept: int) -> None:
    peer = _Peer(None, ("192.0.2.1", 1))  # type: ignore[arg-type]
    peer.owner = NOBODY
    for number in range(200):
        peer.deliver(bytes([number]) * size)
    buffer = memoryview(bytearray(65536))
    sizes = []
    while (got := peer.recv_into(buffer)) is not None:
        sizes.append(got)
    assert sizes == [size] * kept
    if size:
        assert buffer[0] == 199  # the oldest went
    for _ in range(kept):
        peer.deliver(bytes(size))  # there is as much room as before
    assert [peer.recv_into(buffer) for _ in range(kept + 1)] == [size] * kept + [None]


def test_no_descriptor_is_left() -> None:
    """The stack is told by errno, not by an exception."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    errors: list[BaseException] = []
    with_loop = EventLoop(on_error=errors.append)
    sockets = HostSockets(with_loop, lambda: None)
    taken = []
    try:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        made = [
            sockets.connect_tcp(FAR, 80, None),  # type: ignore[arg-type]
            sockets.open_udp(FAR, 80, None),  # type: ignore[arg-type]
            sockets.open_ping(FAR, None),  # type: ignore[arg-type]
        ]
        os.close(taken.pop())  # one is enough, also to ask first whose address it is
        last = sockets.open_udp(FAR, 80, None)  # type: ignore[arg-type]
        assert last in (errno.ENETUNREACH, errno.EHOSTUNREACH) or not isinstance(last, int)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
        with_loop.close()
    if not isinstance(last, int):
        last.close()
    assert {*made} <= {errno.EMFILE, errno.EACCES} and made[0] == made[1]
    assert not errors


def test_the_error_of_a_datagram_does_not_swallow_the_next() -> None:
    loop = EpollLoop()
    with contextlib.closing(loop), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        place = server.getsockname()
        server.close()
        datagrams = HostSockets(loop, lambda: None).open_udp(LOOPBACK, place[1], NOBODY)
        assert not isinstance(datagrams, int)
        with contextlib.closing(datagrams):
            assert datagrams.send([b"to nobody"]) == 0
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
                later.bind(place)
                later.settimeout(5)
                assert datagrams.send([b"to a service that began"]) == errno.ECONNREFUSED
                assert later.recv(100) == b"to a service that began"
                assert datagrams.send([b"and on"]) == 0
                assert later.recv(100) == b"and on"


class _PatientOwner:
    """A flow whose guest takes nothing for now: it wants to hear of nothing."""

    stream: TcpSocket

    def connected(self, error: int) -> None:
        raise AssertionError

    def ready(self, readable: bool, writable: bool) -> None:
        self.stream.watch(False, False)


@pytest.mark.parametrize("is_reset", [True, False])
def test_a_far_end_that_hung_up_keeps_nobody_busy(is_reset: bool) -> None:
    """Nothing was wanted of the socket when the far end went: it is told of that once."""
    loop = EpollLoop()
    owner = _PatientOwner()
    with (
        contextlib.closing(loop),
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        far, _ = server.accept()
        owner.stream = HostSockets(loop, lambda: None).accepted(ours)
        owner.stream.owner = owner
        owner.stream.watch(True, False)
        owner.stream.watch(False, False)
        if is_reset:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            owner.stream.shutdown_write()
        far.close()
        assert loop.turn(5) == 1
        assert [loop.turn(0.01) for _ in range(3)] == [0, 0, 0]
        owner.stream.watch(True, False)  # the guest takes data again
        assert loop.turn(5) == 1
        buffer = [memoryview(bytearray(10))]
        assert owner.stream.recv_into(buffer) == (RESET if is_reset else 0)
        owner.stream.close(False)


def test_nothing_is_late_while_the_guest_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EpollLoop()
    calls: list[int] = []
    with contextlib.closing(loop), contextlib.closing(NatBackend(NatConfig(), loop)) as backend:
        monkeypatch.setattr(backend._stack, "on_time", calls.append)
        deadlines = iter([time.monotonic_ns()] * 2)
        monkeypatch.setattr(backend._stack, "next_deadline_ns", lambda: next(deadlines, None))
        backend.start(Offloads(True, True))
        backend.pause()
        backend._set_timer(time.monotonic_ns())
        assert loop.turn(0.1) == 1
        assert not calls
        backend.resume()
        assert loop.turn(0.1) == len(calls) == 1


def test_a_flood_of_datagrams_keeps_to_the_rate() -> None:
    """Nothing acknowledges them, and so nothing held them back."""
    rate, size = 10_000, 1000
    loop = EpollLoop()
    with contextlib.closing(loop), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        config = NatConfig(allow_host_ports=(port,), rate_bytes_s=rate)
        started_ns = time.monotonic_ns()
        with contextlib.closing(NatBackend(config, loop)) as backend:
            backend.start(Offloads(True, True))
            frame = memoryview(udp(2000, port, bytes(size), GATEWAY))
            stream = memoryview(tcp(2000, port, 1, 1, ACK, payload=bytes(1400), destination=FAR))
            for _ in range(100):
                backend.receive([frame], Header())
                backend.receive([stream], Header())  # which may overdraw the rate
            arrived = 0
            with contextlib.suppress(BlockingIOError):
                while server.recv(size):
                    arrived += 1
            may_pass = rate * (time.monotonic_ns() - started_ns) / S + rate * BURST_S
            assert 1 <= arrived <= may_pass // size + 1
            assert backend.statistics().dropped["datagram over the rate"] == 100 - arrived
            # What was dropped is not paid for.
            debt_bytes = arrived * len(frame) + 100 * len(stream)
            assert backend._budget is not None
            assert backend._budget.wait_s(time.monotonic_ns()) <= debt_bytes / rate
            backend.set_rate(None)
            for _ in range(100):
                backend.receive([frame], Header())
            assert backend.statistics().dropped["datagram over the rate"] == 100 - arrived


# --- at random ----------------------------------------------------------------------------------

TEMPLATES = [
    arp(), udp(1000, 2000, b"payload"), udp(1000, 53, dns_query(b"\x01a\0"), DNS), echo(1, 2),
    echo(1, 2, b"x", GATEWAY), tcp(990, 80, 1, 0, SYN, options=b"\x02\x04\x05\xb4\x03\x03\x07"),
    tcp(990, 80, 2, 3, ACK | PSH, payload=b"data"), tcp(990, 80, 2, 3, FIN | ACK),
    tcp(990, 53, 1, 0, SYN, destination=DNS), dhcp(dhcp_message(b"\x35\x01\x01\xff")),
    fragment(0, True, 16), icmp(3, 3, bytes(32)), raw_udp(b"x", 9),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    frame = bytearray(draw(st.sampled_from(TEMPLATES)))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(12, len(frame) - 1))] = draw(st.integers(0, 255))
    frame += draw(st.binary(max_size=20))
    return repaired(bytes(frame[: draw(st.integers(14, len(frame)))]))


@given(st.lists(st.tuples(mutated(), st.booleans(), st.lists(st.integers(0, 80), max_size=3)),
                max_size=10))  # fmt: skip
@settings(deadline=None)
def test_mutated_frames(frames: list[tuple[bytes, bool, list[int]]]) -> None:
    world = World()
    for frame, needs_csum, cuts in frames:
        world.send(frame, needs_csum=needs_csum, cuts=cuts)
        world.take()
        world.check()
    assert_served(world)


@given(st.lists(st.binary(min_size=2, max_size=80), max_size=20))
@settings(deadline=None)
def test_random_frames(frames: list[bytes]) -> None:
    world = World()
    for frame in frames:
        world.send(ethernet(frame[2:], int.from_bytes(frame[:2], "big")))
        world.send(ethernet(frame, 0x800))
        world.send(frame)
    world.check()
    assert_served(world)


SPORTS = st.integers(1000, 1003)
FLAGS = st.sampled_from(
    [ACK] * 6 + [ACK | PSH, FIN | ACK, FIN | ACK, RST, RST | ACK, SYN, SYN | ACK, FIN, 0, URG | ACK]
)
NEAR = st.one_of(st.just(0), st.just(0), st.integers(-3000, 3000), st.integers(0, U32))
SYN_OPTIONS = st.sampled_from(
    [b"", b"\x02\x04\x05\xb4", b"\x02\x04\0\1\3\3\xff", b"\x02\x04\xff\xff\3\3\7"]
)


NUMBERS = [1000, 0xFFFF_FFF0, 0x7FFF_FFF0]


class Anything(RuleBasedStateMachine):
    """Valid, mutated and random frames, events of the host, and time, in any order.

    What gets through is the pattern of exchange.py both ways, byte for byte.
    """

    @initialize(has_csum=st.booleans(), has_tso=st.booleans(), isn=st.sampled_from(NUMBERS),
                window=st.sampled_from([3000, 70000]), iss=st.sampled_from(NUMBERS))  # fmt: skip
    def begin(self, has_csum: bool, has_tso: bool, window: int, iss: int, isn: int) -> None:
        self.world = World(has_csum=has_csum or has_tso, has_tso=has_tso)
        self.world.stack._tcp._window_bytes = lambda: window  # type: ignore[method-assign]
        self.world.stack._tcp._initial_seq = lambda key: iss  # type: ignore[method-assign]
        self.iss, self.isn = iss, isn
        self.edges: dict[object, tuple[int, int, int]] = {}
        self.given: dict[FakeStream, int] = {}
        self.taken: dict[FakeStream, int] = {}
        self.strange: set[FakeStream] = set()  # which begin with a number of no pattern
        self.open(1000, 65535, b"\x02\x04\x05\xb4")

    def streams(self, is_connected: bool) -> list[FakeStream]:
        return [s for s in self.world.host.streams if s.is_connected == is_connected]

    def frame(self, key: tuple[int, int, int], seq: int, ack: int, flags: int, window: int = 65535,
              size: int = 0, options: bytes = b"") -> None:  # fmt: skip
        payload = pattern((seq - self.isn - 1) & U32, size)
        known = set(self.world.host.streams)
        self.world.send(tcp(key[0], key[2], seq, ack, flags, window, payload, options, key[1]))
        if seq & U32 != self.isn:
            self.strange |= set(self.world.host.streams) - known

    @rule(sport=SPORTS, window=st.integers(0, 65535), options=SYN_OPTIONS)
    def open(self, sport: int, window: int, options: bytes) -> None:
        """A whole handshake."""
        key = (sport, FAR, 80)
        self.world.host.connects = True
        self.frame(key, self.isn, 0, SYN, window, 0, options)
        self.take()
        self.frame(key, self.isn + 1, self.iss + 1, ACK, window)

    @rule(sport=SPORTS, window=st.integers(0, 65535), options=SYN_OPTIONS, connects=st.booleans())
    def syn(self, sport: int, window: int, options: bytes, connects: bool) -> None:
        self.world.host.connects = connects
        self.frame((sport, FAR, 80), self.isn, 0, SYN, window, 0, options)

    @rule(data=st.data(), flags=FLAGS, seq=NEAR, ack=NEAR, size=st.integers(0, 3000),
          window=st.sampled_from([0, 1, 500, 3000, 65535]))  # fmt: skip
    def segment(self, data: st.DataObject, flags: int, seq: int, ack: int, size: int,
                window: int) -> None:  # fmt: skip
        """A segment about where a connection is: on the spot, near it, or anywhere."""
        if self.world.flows:
            flow = data.draw(st.sampled_from(self.world.flows))
            c = flow.connection
            # A guest's first number is `isn`: the pattern begins there.
            first = self.isn if c.state is State.SYN_SENT else c.rcv_nxt + seq
            self.frame((flow.guest_port, *flow.remote), first, c.snd_nxt + ack, flags, window, size)

    @rule(share=st.integers(0, 4), size=st.sampled_from([0, 0, 1, 1000, 4000]),
          flags=st.sampled_from([0, 0, 0, 0, FIN]))  # fmt: skip
    def talk(self, share: int, size: int, flags: int) -> None:
        """What a sane guest does: acknowledge something, say something, or end."""
        for flow in self.world.flows:
            c = flow.connection
            if c.state is State.SYN_SENT:
                self.frame((flow.guest_port, *flow.remote), self.isn, self.iss + 1, SYN | ACK)
            elif c.state is not State.CONNECTING:
                ack = c.snd_una + ((c.snd_max - c.snd_una) & U32) * share // 4
                self.frame(
                    (flow.guest_port, *flow.remote), c.rcv_nxt, ack, ACK | flags, 65535, size
                )

    @rule(frame=mutated(), needs_csum=st.booleans(), cuts=st.lists(st.integers(0, 80), max_size=3))
    def mutation(self, frame: bytes, needs_csum: bool, cuts: list[int]) -> None:
        known = set(self.world.host.streams)
        self.world.send(frame, needs_csum=needs_csum, cuts=cuts)
        self.strange |= set(self.world.host.streams) - known

    @rule(body=st.binary(max_size=60), ether_type=st.sampled_from([0x800, 0x806, 0x86DD, 0]))
    def noise(self, body: bytes, ether_type: int) -> None:
        self.world.send(ethernet(body, ether_type))

    @precondition(lambda self: self.streams(False))
    @rule(data=st.data(), error=st.sampled_from([0, errno.ECONNREFUSED, errno.ENETUNREACH]))
    def connect(self, data: st.DataObject, error: int) -> None:
        stream = data.draw(st.sampled_from(self.streams(False)))
        stream.is_connected = not error
        stream.owner.connected(error)

    @precondition(lambda self: self.streams(True))
    @rule(data=st.data(), size=st.integers(0, 100_000), room=st.sampled_from([0, 1, 999, 1 << 40]),
          what=st.sampled_from(["give"] * 4 + ["room"] * 4 + ["end", "end", "break"]))  # fmt: skip
    def move(self, data: st.DataObject, size: int, room: int, what: str) -> None:
        stream = data.draw(st.sampled_from(self.streams(True)))
        if what == "give" and not stream.has_ended:
            at = self.given.get(stream, 0)
            stream.gives += pattern(at, size)
            self.given[stream] = at + size
        elif what == "room":
            stream.room = room
        elif what == "end":
            stream.has_ended = True
        elif what == "break":
            stream.breaks = True

    @rule(port=st.integers(80, 82))
    def publish(self, port: int) -> None:
        stream = self.world.host.accepted()
        flow = self.world.stack.open_to_guest(port, stream, self.world.now_ns)
        assert flow is not None
        stream.owner = flow

    @rule(sport=SPORTS, size=st.integers(0, 2000), error=st.sampled_from([0, 0, errno.EPERM]))
    def datagram(self, sport: int, size: int, error: int) -> None:
        for datagrams in self.world.host.datagrams:
            datagrams.error = error
            datagrams.gives.extend([bytes(size), -errno.ECONNREFUSED][: 1 + bool(error)])
        self.world.send(udp(sport, 9, bytes(size)))
        self.world.send(echo(sport, 9, bytes(size)))

    @rule(sport=SPORTS, name=st.sampled_from(sorted(DNS_QUERIES)))
    def query(self, sport: int, name: str) -> None:
        self.world.send(udp(sport, 53, DNS_QUERIES[name][:1400], DNS))

    @rule(count=st.sampled_from([None, None, 0, 1, 5]))
    def buffers(self, count: int | None) -> None:
        self.world.rx.credits = count

    @rule()
    def take(self) -> None:
        for seen in self.world.take():
            if seen.protocol == 6 and seen.tcp.sport != 53:
                place = (seen.tcp.seq - self.iss - 1) & U32
                assert seen.tcp.payload == pattern(place, len(seen.tcp.payload))

    @rule(seconds=st.sampled_from([0.001, 0.3, 1, 1, 1, 5, 40]))
    def time(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(what=st.sampled_from(["hours", "reset", *[""] * 8]))
    def rarely(self, what: str) -> None:
        if what == "hours":
            self.world.wait(7300)
        elif what == "reset":
            self.world.stack.reset()

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.check()
        edges = {}
        for flow in self.world.flows:
            c = flow.connection
            old = self.edges.get(c)
            if old is not None and old[2]:
                assert not before(c.rcv_adv, old[0]), "the right edge moved back"
                assert not before(c.snd_una, old[1]), "an acknowledgement was taken back"
            edges[c] = (c.rcv_adv, c.snd_una, c.state not in (State.SYN_SENT, State.CONNECTING))
        self.edges = edges
        for stream in set(self.world.host.streams) - self.strange:
            at = self.taken.get(stream, 0)
            assert stream.got[at:] == pattern(at, len(stream.got) - at)
            self.taken[stream] = len(stream.got)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.rx.credits = None
            self.take()
            self.world.stack.reset()
            self.world.check()
            assert not self.world.host.streams and not self.world.host.datagrams
            self.world.host.connects = True
            assert_served(self.world)


TestAnything = pytest.mark.slow(Anything.TestCase)
TestAnything.settings = settings(
    deadline=None,
    max_examples=int(os.environ.get("VOIDBOX_EXAMPLES", "100")),
    stateful_step_count=40,
)
