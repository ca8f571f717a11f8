"""Frames as bytes, with scapy as an oracle that shares no code with us."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import checksum

from voidbox.net import tcp_wire, wire
from voidbox.net.addresses import format_address
from voidbox.net.wire import Link

GUEST_MAC, GATEWAY_MAC = bytes.fromhex("525400123456"), bytes.fromhex("525400123401")
LINK = Link(GUEST_MAC, GATEWAY_MAC)
GUEST, FAR = 0x0A00_020F, 0xC000_0207

addresses = st.integers(0, 0xFFFF_FFFF)
ports = st.integers(0, 0xFFFF)
seqs = st.integers(0, 0xFFFF_FFFF)
payloads = st.binary(max_size=300)


def ether(**fields: object) -> Packet:
    return Ether(src=GUEST_MAC.hex(":"), dst=GATEWAY_MAC.hex(":"), **fields)


def split(data: bytes, cuts: list[int]) -> list[memoryview]:
    """Cut data at places; buffers may be empty."""
    places = sorted(min(cut, len(data)) for cut in cuts)
    ends = [*places, len(data)]
    return [memoryview(data)[a:b] for a, b in zip([0, *places], ends, strict=True)]


def assert_sums_are_right(frame: bytes) -> Packet:
    """Have scapy make every checksum anew; 0 and 0xFFFF are the same sum."""
    packet = Ether(frame)
    fresh = Ether(frame)
    for layer in (IP, TCP, UDP, ICMP):
        if layer in fresh:
            del fresh[layer].chksum
    fresh = Ether(bytes(fresh))
    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:
            assert packet[layer].chksum % 0xFFFF == fresh[layer].chksum % 0xFFFF, layer
    return packet


# --- the checksum -------------------------------------------------------------------------------


@given(st.binary(max_size=2000))
def test_the_sum_is_that_of_rfc_1071(data: bytes) -> None:
    assert wire.fold(wire.residue(data)) % 0xFFFF == checksum(data) % 0xFFFF


def test_the_example_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert wire.residue(data) == 0xDDF2
    assert wire.fold(wire.residue(data)) == 0x220D


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 20, b"\xff\xff", b"\xff" * 1460, b"\xff"])
def test_sums_at_the_edges(data: bytes) -> None:
    field = wire.fold(wire.residue(data))
    assert 1 <= field <= 0xFFFF  # 0 would say "no checksum" in UDP
    padded = data + b"\0" * (len(data) & 1)
    assert (wire.residue(padded) + field) % 0xFFFF == 0


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=8))
def test_a_sum_over_pieces_is_that_of_the_whole(data: bytes, cuts: list[int]) -> None:
    pieces = split(data, cuts)
    assert wire.buffers_residue(pieces) % 0xFFFF == wire.residue(data)


def test_a_sum_over_pieces_of_every_length() -> None:
    data = bytes((1, 200, 3, 40, 5, 60, 7, 8))
    for cuts in itertools.product(range(len(data) + 1), repeat=3):
        assert wire.buffers_residue(split(data, list(cuts))) % 0xFFFF == wire.residue(data), cuts


# --- parsers ------------------------------------------------------------------------------------


def parse_all(head: bytes, frame_bytes: int) -> None:
    """Every parser on the same bytes: none may raise, whatever the others said."""
    wire.parse_arp(head)
    ip = wire.parse_ip(head, frame_bytes)
    made_up = wire.Ip(1, 2, 6, 20 + 4 * (frame_bytes % 11), frame_bytes, 64, 0, 0)
    for packet in (ip, made_up):
        if packet is not None:
            wire.parse_udp(head, packet)
            tcp_wire.parse(head, packet)


@given(st.binary(max_size=wire.HEADERS_MAX), st.integers(0, 70000))
def test_random_bytes_never_raise(head: bytes, frame_bytes: int) -> None:
    parse_all(head, frame_bytes)


def with_right_sum(frame: bytearray) -> bytes:
    """Correct the IPv4 header's checksum, so that a mutation gets further."""
    size = (frame[14] & 15) * 4
    if len(frame) >= 34 and size >= 20:
        frame[24:26] = b"\0\0"
        struct.pack_into("!H", frame, 24, checksum(bytes(frame[14 : 14 + size])))
    return bytes(frame)


SYN = bytes(
    ether()
    / IP(src="10.0.2.15", dst="192.0.2.7", options=b"\x01\x01\x01\x00")
    / TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1460), ("NOP", None), ("WScale", 7)])
)


@given(
    st.lists(st.tuples(st.integers(12, len(SYN) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(SYN) + 20),
)
def test_mutated_frames_never_raise(changes: list[tuple[int, int]], length: int) -> None:
    frame = bytearray(SYN)
    for at, value in changes:
        frame[at] = value
    whole = with_right_sum(frame)
    parse_all(whole[:length], length)


@pytest.mark.parametrize("length", range(len(SYN) + 1))
def test_a_frame_that_is_cut_off_anywhere_is_nothing(length: int) -> None:
    assert (wire.parse_ip(SYN[:length], length) is None) == (length < len(SYN))


options_of_ip = st.integers(0, 10).map(lambda words: b"\x01" * (4 * words))


@given(addresses, addresses, st.integers(0, 255), st.integers(0, 255), options_of_ip, payloads,
       st.sampled_from([0, wire.IP_DF, wire.IP_MF, 1, 0x1FFF, wire.IP_MF | 5]),
       st.binary(max_size=30))  # fmt: skip
def test_ip_headers_as_scapy_makes_them(
    source: int, destination: int, protocol: int, ttl: int, options: bytes, payload: bytes,
    fragment: int, trailer: bytes,
) -> None:  # fmt: skip
    packet = IP(src=format_address(source), dst=format_address(destination), proto=protocol,
                ttl=ttl, flags=fragment >> 13, frag=fragment & 0x1FFF)  # fmt: skip
    raw = bytearray(bytes(packet / payload))
    raw[0] = 0x45 + len(options) // 4
    raw[2:4] = struct.pack("!H", len(raw) + len(options))
    frame = with_right_sum(bytearray(bytes(ether(type=0x800))) + raw[:20] + options + raw[20:])
    frame += trailer  # an Ethernet's padding is not of the packet
    ip = wire.parse_ip(frame[: wire.HEADERS_MAX], len(frame))
    assert ip == wire.Ip(
        source, destination, protocol, 20 + len(options), 20 + len(options) + len(payload), ttl,
        fragment & 0x3FFF, packet.id,
    )  # fmt: skip


def ip_frame(payload: bytes = b"", **fields: object) -> bytearray:
    return bytearray(bytes(ether() / IP(src="10.0.2.15", dst="192.0.2.7", **fields) / payload))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (14, b"\x65"), (14, b"\x55"),  # another version
        (14, b"\x44"), (14, b"\x40"),  # IHL below 5
        (14, b"\x4f"),  # IHL beyond the packet
        (16, b"\x00\x13"),  # shorter than its header
        (16, b"\x00\x39"), (16, b"\xff\xff"),  # longer than the frame
    ],
)  # fmt: skip
def test_ip_headers_that_break_a_rule(at: int, value: bytes) -> None:
    frame = ip_frame(bytes(36), proto=17)
    assert wire.parse_ip(bytes(frame), len(frame)) is not None
    frame[at : at + len(value)] = value
    head = with_right_sum(frame)
    assert wire.parse_ip(head, len(head)) is None


def test_an_ip_header_with_a_wrong_sum_is_none() -> None:
    frame = ip_frame(bytes(40))
    for at in range(14, 34):
        for bit in range(8):
            wrong = bytearray(frame)
            wrong[at] ^= 1 << bit
            assert wire.parse_ip(bytes(wrong), len(wrong)) is None, (at, bit)


@given(addresses, st.binary(min_size=6, max_size=6), addresses, st.integers(0, 65535))
def test_arp_as_scapy_makes_it(sender: int, mac: bytes, target: int, op: int) -> None:
    frame = bytes(
        ether()
        / ARP(op=op, hwsrc=mac.hex(":"), psrc=format_address(sender), pdst=format_address(target))
    )
    arp = wire.parse_arp(frame)
    assert arp == wire.Arp(op, mac, sender, bytes(6), target)
    for length in range(len(frame)):
        assert wire.parse_arp(frame[:length]) is None


@pytest.mark.parametrize("field", ["hwtype", "ptype", "hwlen", "plen"])
def test_arp_for_another_network_is_none(field: str) -> None:
    assert wire.parse_arp(bytes(ether() / ARP(**{field: 7}))) is None


@given(ports, ports, payloads)
def test_udp_as_scapy_makes_it(source: int, destination: int, payload: bytes) -> None:
    frame = bytes(
        ether() / IP(src="10.0.2.15", dst="192.0.2.7") / UDP(sport=source, dport=destination)
        / payload
    )  # fmt: skip
    ip = wire.parse_ip(frame, len(frame))
    assert ip is not None
    udp = wire.parse_udp(frame, ip)
    chksum = Ether(frame)[UDP].chksum
    assert udp == wire.Udp(source, destination, len(payload), chksum)


@pytest.mark.parametrize(
    ("room", "length", "is_right"),
    [(8, 8, True), (8, 7, False), (8, 0, False), (8, 9, False), (8, 65535, False), (7, 8, False),
     (0, 8, False), (20, 8, True), (20, 20, True), (20, 21, False)],
)  # fmt: skip
def test_udp_lengths(room: int, length: int, is_right: bool) -> None:
    data = (struct.pack("!HHHH", 1000, 2000, length, 0) + bytes(20))[:room]
    frame = bytes(ip_frame(data, proto=17)) + bytes(20)  # bytes behind the packet are not its
    ip = wire.parse_ip(frame, len(frame))
    assert ip is not None
    udp = wire.parse_udp(frame, ip)
    assert (udp is not None) == is_right
    if udp is not None:
        assert udp.payload_bytes == length - 8


syn_option = st.one_of(
    st.just(("NOP", None)),
    st.tuples(st.just("MSS"), st.integers(0, 65535)),
    st.tuples(st.just("WScale"), st.integers(0, 255)),
    st.tuples(st.just("Timestamp"), st.tuples(seqs, seqs)),
    st.just(("SAckOK", b"")),
)


@given(ports, ports, seqs, seqs, st.integers(0, 255), ports,
       st.lists(syn_option, max_size=3, unique_by=lambda option: option[0]), payloads)  # fmt: skip
def test_tcp_as_scapy_makes_it(
    source: int, destination: int, seq: int, ack: int, flags: int, window: int,
    options: list[tuple[str, object]], payload: bytes,
) -> None:  # fmt: skip
    frame = bytes(
        ether() / IP(src="10.0.2.15", dst="192.0.2.7")
        / TCP(sport=source, dport=destination, seq=seq, ack=ack, flags=flags, window=window,
              options=options)
        / payload
    )  # fmt: skip
    ip = wire.parse_ip(frame, len(frame))
    assert ip is not None
    tcp = tcp_wire.parse(frame, ip)
    given_options = dict(options) if flags & tcp_wire.TCP_SYN else {}
    scale = given_options.get("WScale")
    assert tcp == tcp_wire.Tcp(
        source, destination, seq, ack, flags, window, len(frame) - 34 - len(payload),
        given_options.get("MSS", 0), None if scale is None else min(int(str(scale)), 14),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", (0, None)),
        (b"\x02\x04\x05\xb4", (1460, None)),
        (b"\x02\x04\x00\x00", (0, None)),
        (b"\x02\x04\xff\xff\x03\x03\x0e\x00", (65535, 14)),
        (b"\x03\x03\xff\x00", (0, 14)),  # RFC 7323 §2.3
        (b"\x03\x03\x00\x00", (0, 0)),
        (b"\x00\x02\x04\x05", (0, None)),  # nothing after the end
        (b"\x01\x01\x01\x01", (0, None)),
        (b"\x02\x03\x05\x00", (0, None)),  # of a wrong length: passed over
        (b"\x03\x04\x05\x00", (0, None)),
        (b"\x1e\x04\x00\x00\x02\x04\x05\xb4", (1460, None)),  # of an unknown kind
        (b"\x02\x00\x05\xb4", None),
        (b"\x02\x01\x05\xb4", None),
        (b"\x1e\x00\x00\x00", None),
        (b"\x01\x01\x01\x02", None),
        (b"\x02\x05\x05\xb4", None),
        (b"\x01\x02\x04\x05", None),
        (b"\xff\xff\xff\xff", None),
    ],
)
def test_options_of_a_syn(options: bytes, expected: tuple[int, int | None] | None) -> None:
    assert tcp_wire.parse_options(options) == expected


@given(st.binary(max_size=40))
def test_options_never_raise_nor_loop(options: bytes) -> None:
    tcp_wire.parse_options(options)


@pytest.mark.parametrize(
    ("offset", "room", "is_right"),
    [(5, 20, True), (4, 20, False), (0, 20, False), (6, 20, False), (15, 59, False),
     (15, 60, True), (5, 19, False), (5, 0, False)],
)  # fmt: skip
def test_tcp_offsets(offset: int, room: int, is_right: bool) -> None:
    data = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, offset << 4, tcp_wire.TCP_ACK, 5, 0, 0)
    frame = bytes(ip_frame((data + bytes(40))[:room], proto=6)) + bytes(60)
    ip = wire.parse_ip(frame, len(frame))
    assert ip is not None
    assert (tcp_wire.parse(frame, ip) is not None) == is_right


def test_a_head_that_lacks_options_is_nothing() -> None:
    ip = wire.parse_ip(SYN, len(SYN))
    assert ip is not None
    for length in range(len(SYN)):
        assert tcp_wire.parse(SYN[:length], ip) is None


# --- builders -----------------------------------------------------------------------------------


def test_an_arp_reply() -> None:
    request = wire.parse_arp(
        bytes(ether() / ARP(hwsrc=GUEST_MAC.hex(":"), psrc="10.0.2.15", pdst="10.0.2.9"))
    )
    assert request is not None
    packet = Ether(wire.arp_reply(LINK, request))
    assert (packet.src, packet.dst) == (GATEWAY_MAC.hex(":"), GUEST_MAC.hex(":"))
    arp = packet[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc) == (2, GATEWAY_MAC.hex(":"), "10.0.2.9")
    assert (arp.hwdst, arp.pdst) == (GUEST_MAC.hex(":"), "10.0.2.15")
    assert (arp.hwtype, arp.ptype, arp.hwlen, arp.plen) == (1, 0x800, 6, 4)


@given(addresses, addresses, ports, ports, payloads, st.lists(st.integers(0, 300), max_size=4))
def test_udp_frames(
    source: int, destination: int, sport: int, dport: int, payload: bytes, cuts: list[int]
) -> None:
    header = wire.udp_header(
        (source, sport), (destination, dport), split(payload, cuts), len(payload)
    )
    frame = wire.ipv4_frame(LINK, source, destination, wire.IPPROTO_UDP, header + payload)
    packet = assert_sums_are_right(frame)
    assert (packet[IP].src, packet[IP].dst) == (format_address(source), format_address(destination))
    assert (packet[UDP].sport, packet[UDP].dport, packet[UDP].len) == (
        sport,
        dport,
        8 + len(payload),
    )
    assert packet[UDP].chksum  # 0 says that there is none
    ip = wire.parse_ip(frame, len(frame))
    assert ip is not None
    udp = wire.parse_udp(frame, ip)
    assert udp == wire.Udp(sport, dport, len(payload), packet[UDP].chksum)


@given(addresses, addresses, st.integers(0, 255), st.integers(0, 65515), ports, ports)
def test_ip_headers(
    source: int, destination: int, protocol: int, size: int, ip_id: int, fragment: int
) -> None:
    header = wire.ip_header(source, destination, protocol, size, ip_id, fragment)
    packet = IP(header)
    assert (packet.len, packet.id, packet.proto, packet.ttl) == (20 + size, ip_id, protocol, 64)
    assert (int(packet.flags) << 13 | packet.frag) == fragment
    assert checksum(header) == 0
    ip = wire.parse_ip(wire.eth_header(LINK) + header, 34 + size)
    assert ip == wire.Ip(
        source, destination, protocol, 20, 20 + size, 64, fragment & 0x3FFF, ip_id
    )  # fmt: skip


@given(st.integers(0, 255), st.integers(0, 255), seqs, payloads)
def test_icmp_messages(type: int, code: int, rest: int, payload: bytes) -> None:
    message = wire.icmp_message(type, code, rest, payload)
    assert message[:2] == bytes((type, code))
    assert message[4:] == struct.pack("!I", rest) + payload
    assert checksum(message) == 0


@given(addresses, addresses, ports, ports, seqs, seqs, st.integers(0, 255), ports, payloads,
       st.sampled_from([None, (1460, None), (1, 0), (65535, 14)]), st.booleans())  # fmt: skip
def test_tcp_frames(
    source: int, destination: int, sport: int, dport: int, seq: int, ack: int, flags: int,
    window: int, payload: bytes, offer: tuple[int, int | None] | None, is_partial: bool,
) -> None:  # fmt: skip
    options = tcp_wire.syn_options(*offer) if offer else b""
    headers = tcp_wire.Headers(LINK, (source, sport), (destination, dport))
    sum_ = None if is_partial else wire.buffers_residue([payload])
    header = headers.pack(seq, ack, flags, window, len(payload), sum_, options)
    frame = header + payload
    if is_partial:
        # What the receiver's card does: sum from the transport header on, with the field as it is.
        field = wire.fold(wire.residue(frame[34:]))
        frame = frame[:50] + struct.pack("!H", field) + frame[52:]
    packet = assert_sums_are_right(frame)
    tcp = packet[TCP]
    assert (packet[IP].src, packet[IP].dst) == (format_address(source), format_address(destination))
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (sport, dport, seq, ack)
    assert (int(tcp.flags), tcp.window, tcp.urgptr) == (flags, window, 0)
    assert bytes(tcp.payload) == payload
    found = dict(tcp.options)
    assert found.get("MSS") == (offer[0] if offer else None)
    assert found.get("WScale") == (offer[1] if offer else None)
    ip = wire.parse_ip(frame[: wire.HEADERS_MAX], len(frame))
    assert ip is not None
    parsed = tcp_wire.parse(frame[: wire.HEADERS_MAX], ip)
    is_syn = offer is not None and flags & tcp_wire.TCP_SYN
    assert parsed == tcp_wire.Tcp(
        sport, dport, seq, ack, flags, window, 20 + len(options),
        offer[0] if is_syn and offer else 0, offer[1] if is_syn and offer else None,
    )  # fmt: skip


def fields_of(frame: bytes) -> tuple[bytes | int, ...] | None:
    """What parse_plain() is to find, by way of the other parsers."""
    ip = wire.parse_ip(frame[: wire.HEADERS_MAX], len(frame))
    if ip is None or ip.header_bytes != 20 or ip.fragment or ip.protocol != 6:
        return None
    tcp = tcp_wire.parse(frame[: wire.HEADERS_MAX], ip)
    if tcp is None or tcp.flags & ~(16 | 8 | 1) or not tcp.flags & 16:
        return None
    start = 34 + tcp.header_bytes
    ends = ip.source, ip.destination, tcp.source_port, tcp.destination_port
    return (tcp_wire.ENDS.pack(*ends), tcp.seq, tcp.ack, tcp.flags, tcp.window, start,
            14 + ip.length)  # fmt: skip


@given(
    st.binary(max_size=100), st.sampled_from([16, 24, 17, 25, 2, 20, 16 | 64]), options_of_ip,
    st.lists(st.tuples(st.integers(14, 60), st.integers(0, 255)), max_size=2), st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
def test_plain_segments_are_what_the_other_parsers_say(
    payload: bytes, flags: int, options: bytes, changes: list[tuple[int, int]], cut: int,
    is_repaired: bool,
) -> None:  # fmt: skip
    """Whatever is in the frame, and wherever it is cut off."""
    headers = tcp_wire.Headers(LINK, (FAR, 80), (GUEST, 40000))
    frame = bytearray(headers.pack(1, 2, flags, 3, len(payload), 0, options) + payload)
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    if is_repaired:
        frame = with_right_sum(frame)
    whole = bytes(frame[: len(frame) - cut % 30] if cut % 3 == 0 else frame)
    if whole[14:15] == b"\x45":  # else nobody asks it
        assert tcp_wire.parse_plain(whole[: wire.HEADERS_MAX], len(whole)) == fields_of(whole)


def test_a_packet_of_all_64_kib() -> None:
    payload = bytes(65535 - 40)
    headers = tcp_wire.Headers(LINK, (FAR, 80), (GUEST, 40000))
    header = headers.pack(0, 0, tcp_wire.TCP_ACK, 0, len(payload), 0)
    packet = assert_sums_are_right(header + payload)
    assert packet[IP].len == 65535
