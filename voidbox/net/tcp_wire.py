"""TCP segments as bytes (RFC 9293 §3.1), and all headers of a frame that has one.

TCP      +0 ports   +4 sequence   +8 acknowledgement   +12 offset, flags, window
         +16 checksum   +18 urgent pointer   +20 options                          20…60
"""

from __future__ import annotations

import struct

from voidbox.named_tuple import NamedTuple
from voidbox.net.wire import (
    ETH_BYTES,
    ETH_P_IP,
    IP_BYTES,
    IP_DF,
    IP_MF,
    IP_OFFSET_MASK,
    IPPROTO_TCP,
    TRANSPORT_AT,
    TTL,
    Ip,
    Link,
    fold,
    residue,
)

TCP_BYTES = 20
TCP_FIN, TCP_SYN, TCP_RST, TCP_PSH, TCP_ACK, TCP_URG = 1, 2, 4, 8, 16, 32
TCP_CHECKSUM_AT = 16
TCPOPT_EOL, TCPOPT_NOP, TCPOPT_MAXSEG, TCPOPT_WINDOW = 0, 1, 2, 3
WSCALE_MAX = 14

HEADER_BYTES = TRANSPORT_AT + TCP_BYTES  # of a frame of ours, without options

_U16 = struct.Struct("!H")
_TCP = struct.Struct("!HHIIBBHHH")
# Both addresses and both ports, as they stand side by side behind an IP header without options:
# what tells a connection from all others.
ENDS = struct.Struct("!IIHH")
# From IP's length to TCP's window; fragment, TTL and protocol are one word.
_PLAIN_AT = ETH_BYTES + 2
_PLAIN = struct.Struct("!H2xI2x12sIIBBH")
_WHOLE_MASK, _WHOLE_TCP = (IP_MF | IP_OFFSET_MASK) << 16 | 0xFF, IPPROTO_TCP
_PLAIN_FLAGS = frozenset(
    (TCP_ACK, TCP_ACK | TCP_PSH, TCP_ACK | TCP_FIN, TCP_ACK | TCP_PSH | TCP_FIN)
)
_FRAME = struct.Struct("!16sH6sH12sIIBBHHH")
_unpack_plain = _PLAIN.unpack_from
assert ENDS.size == 12
assert _TCP.size == TCP_BYTES
assert _PLAIN.size == HEADER_BYTES - _PLAIN_AT - 4
assert _FRAME.size == HEADER_BYTES


class Tcp(NamedTuple):
    """A TCP header, RFC 9293 §3.1.

    Attributes:
        header_bytes: 20 to 60, options included.
        window: unscaled.
        mss: of a SYN; 0 if it gives none.
        wscale: of a SYN; None if it gives none.
    """

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    header_bytes: int
    mss: int
    wscale: int | None


def parse_plain(head: bytes, frame_bytes: int) -> tuple[bytes, int, int, int, int, int, int] | None:
    """Parse what nearly all frames are: a whole segment with ACK, and perhaps PSH or FIN.

    Args:
        head: begins with Ethernet's header, and IP's of version 4 without options.
    Returns:
        Both ends (see ENDS), sequence and acknowledgement number, flags, window, and where the
        payload begins in the frame; it ends where the packet does, whose end comes last. A plain
        tuple, for it costs a tenth of a named one. None for every other frame: parse_ip() and
        parse() say what that is.
    """
    if len(head) < HEADER_BYTES:
        return None
    length, word, ends, seq, ack, offset, flags, window = _unpack_plain(head, _PLAIN_AT)
    start, end = TRANSPORT_AT + (offset >> 4) * 4, ETH_BYTES + length
    if (
        word & _WHOLE_MASK != _WHOLE_TCP
        or flags not in _PLAIN_FLAGS
        or not HEADER_BYTES <= start <= end <= frame_bytes
        or int.from_bytes(head[ETH_BYTES:TRANSPORT_AT], "big") % 0xFFFF  # residue(), spelled out
    ):
        return None
    return ends, seq, ack, flags, window, start, end


def parse(head: bytes, ip: Ip) -> Tcp | None:
    """Parse the TCP header behind an IPv4 header."""
    at = ETH_BYTES + ip.header_bytes
    room = ip.length - ip.header_bytes
    if room < TCP_BYTES or len(head) < at + TCP_BYTES:
        return None
    source_port, destination_port, seq, ack, offset, flags, window, _, _ = _TCP.unpack_from(
        head, at
    )
    header_bytes = (offset >> 4) * 4
    if not TCP_BYTES <= header_bytes <= room or len(head) < at + header_bytes:
        return None
    mss, wscale = 0, None
    if flags & TCP_SYN and header_bytes > TCP_BYTES:
        options = parse_options(head[at + TCP_BYTES : at + header_bytes])
        if options is None:
            return None
        mss, wscale = options
    return Tcp(
        source_port, destination_port, seq, ack, flags, window, header_bytes, mss, wscale
    )  # fmt: skip


def parse_options(options: bytes) -> tuple[int, int | None] | None:
    """Return (MSS, window scale) of a SYN's options; None if they are malformed."""
    mss, wscale = 0, None
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == TCPOPT_EOL:
            break
        if kind == TCPOPT_NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return None
        if kind == TCPOPT_MAXSEG and length == 4:
            (mss,) = _U16.unpack_from(options, at + 2)
        elif kind == TCPOPT_WINDOW and length == 3:
            wscale = min(options[at + 2], WSCALE_MAX)  # RFC 7323 §2.3
        at += length
    return mss, wscale


def syn_options(mss: int, wscale: int | None) -> bytes:
    """Return the options of a SYN: MSS, and the window scale if the other side has offered it."""
    options = bytes((TCPOPT_MAXSEG, 4)) + _U16.pack(mss)
    if wscale is not None:
        options += bytes((TCPOPT_NOP, TCPOPT_WINDOW, 3, wscale))
    return options


# What is alike in the headers of all segments: type, version, TOS; identification to protocol.
_ETH_IP = struct.pack("!HBB", ETH_P_IP, 0x45, 0)
_IP_MIDDLE = struct.pack("!HHBB", 0, IP_DF, TTL, IPPROTO_TCP)


class Headers:
    """Makes the headers of a connection's segments: what all have alike is packed and summed once.

    Args:
        source, destination: (address, port).
    """

    __slots__ = ("_ends", "_front", "_ip_sum", "_ports_sum", "_tcp_sum")

    def __init__(self, link: Link, source: tuple[int, int], destination: tuple[int, int]) -> None:
        self._front = link.guest_mac + link.gateway_mac + _ETH_IP
        self._ends = ENDS.pack(source[0], destination[0], source[1], destination[1])
        addresses = (
            (source[0] >> 16) + (source[0] & 0xFFFF)
            + (destination[0] >> 16) + (destination[0] & 0xFFFF)
        )  # fmt: skip
        self._ip_sum = 0x4500 + IP_DF + (TTL << 8 | IPPROTO_TCP) + addresses
        self._tcp_sum = addresses + IPPROTO_TCP
        self._ports_sum = source[1] + destination[1]

    def pack_data(
        self, seq: int, ack: int, window: int, payload_bytes: int, payload_residue: int | None
    ) -> bytes:
        """Return what pack() does for ACK and PSH: a segment with data has no other flags."""
        if payload_residue is not None:
            return self.pack(seq, ack, TCP_ACK | TCP_PSH, window, payload_bytes, payload_residue)
        tcp_bytes = TCP_BYTES + payload_bytes
        length = IP_BYTES + tcp_bytes
        return _FRAME.pack(
            self._front, length, _IP_MIDDLE, 0xFFFF - (self._ip_sum + length) % 0xFFFF,
            self._ends, seq, ack, TCP_BYTES << 2, TCP_ACK | TCP_PSH, window,
            (self._tcp_sum + tcp_bytes) % 0xFFFF, 0,
        )  # fmt: skip

    def pack(
        self, seq: int, ack: int, flags: int, window: int, payload_bytes: int,
        payload_residue: int | None, options: bytes = b"",
    ) -> bytes:  # fmt: skip
        """Return Ethernet's, IP's and TCP's header.

        Args:
            payload_residue: of the payload; None leaves the checksum to the receiver: the field
                then holds the pseudo header's sum, as a partial checksum must (VirtIO 1.2
                §5.1.6.2).
        """
        header_bytes = TCP_BYTES + len(options)
        tcp_bytes = header_bytes + payload_bytes
        length = IP_BYTES + tcp_bytes
        offset = header_bytes << 2
        checksum = self._tcp_sum + tcp_bytes
        if payload_residue is None:
            checksum %= 0xFFFF
        else:
            checksum += self._ports_sum + (seq >> 16) + (seq & 0xFFFF) + (ack >> 16)
            checksum += (ack & 0xFFFF) + (offset << 8 | flags) + window
            checksum = fold(checksum + residue(options) + payload_residue)
        header = _FRAME.pack(
            self._front, length, _IP_MIDDLE, 0xFFFF - (self._ip_sum + length) % 0xFFFF,
            self._ends, seq, ack, offset, flags, window, checksum, 0,
        )  # fmt: skip
        return header + options if options else header
