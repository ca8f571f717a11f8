"""Datagrams of the guest that come in IPv4 fragments, put together again (RFC 791, RFC 815).

Only the whole is looked at: ports, checksums and the policy's verdict are of one packet, whatever
was sent in which piece. So fragments that hide or change a header (RFC 1858, RFC 3128) get nowhere;
those that have no other use are dropped at once. What overlaps is of no honest sender: all of the
datagram goes (RFC 5722). Everything is bounded: datagrams, their pieces, bytes, and time.
"""

from __future__ import annotations

from bisect import bisect_left

from voidbox.buffers import clip, skip
from voidbox.net import wire
from voidbox.net.line import Line, quote
from voidbox.net.tcp_wire import TCP_BYTES
from voidbox.net.wire import Ip

DATAGRAMS_MAX = 64
FRAGMENTS_MAX = 128  # of one; 65,535 bytes over an MTU of 576 are 119
BYTES_MAX = 1 << 20
FRAGMENT_NS = 30_000_000_000  # as Linux waits (net.ipv4.ipfrag_time)

_Key = tuple[int, int, int]  # (destination, protocol, identification)


class _Datagram:
    """What is there of one.

    Attributes:
        pieces: (first byte, one past the last, data), sorted, none over another.
        received_bytes: in them.
        end: one past the datagram's last byte; None until the last fragment is there.
        header: Ethernet's and IP's of the first fragment; empty until that is there.
        quote: for an ICMP error about it; empty if there must be none.
    """

    __slots__ = ("deadline_ns", "end", "header", "pieces", "quote", "received_bytes")

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.pieces: list[tuple[int, int, bytes]] = []
        self.received_bytes = 0
        self.end: int | None = None
        self.header = self.quote = b""

    def place(self, start: int, data: bytes, is_last: bool) -> str:
        """Take a fragment; returns why it cannot be, or nothing."""
        end = start + len(data)
        idx = bisect_left(self.pieces, start, key=lambda piece: piece[0])
        after = self.pieces[idx : idx + 1]
        if after and after[0][:2] == (start, end):
            return "fragment that came before"
        overlaps = (after and after[0][0] < end) or (idx and self.pieces[idx - 1][1] > start)
        is_past = self.end is not None and (end > self.end or (is_last and end != self.end))
        if overlaps or is_past or (is_last and after):
            return "fragments that contradict each other"
        if len(self.pieces) == FRAGMENTS_MAX:
            return "datagram in too many fragments"
        self.pieces.insert(idx, (start, end, data))
        self.received_bytes += len(data)
        if is_last:
            self.end = end
        return ""

    def whole(self) -> bytes:
        """Return the frame that was never cut."""
        header = bytearray(self.header)
        ip = memoryview(header)[wire.ETH_BYTES :]
        ip[2:4] = (len(ip) + self.received_bytes).to_bytes(2, "big")
        ip[6:8] = ip[10:12] = b"\0\0"  # no fragment; the checksum
        ip[10:12] = wire.fold(wire.residue(ip)).to_bytes(2, "big")
        return b"".join((header, *(data for _, _, data in self.pieces)))


class FragmentTable:
    """Thread: loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._datagrams: dict[_Key, _Datagram] = {}  # the oldest first
        self._bytes = 0  # in all of them

    def receive(self, frame: list[memoryview], head: bytes, ip: Ip, now_ns: int) -> bytes | None:
        """Take a fragment; returns the whole frame if nothing is missing any more."""
        start = (ip.fragment & wire.IP_OFFSET_MASK) * 8
        size = ip.length - ip.header_bytes
        is_last = not ip.fragment & wire.IP_MF
        if not _is_sound(ip, start, size, is_last):
            self._line.drop("malformed fragment")
            return None
        key = (ip.destination, ip.protocol, ip.ip_id)
        self._make_room(key, size)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = _Datagram(now_ns + FRAGMENT_NS)
            self._line.has_new_deadline = True
        at = wire.ETH_BYTES + ip.header_bytes
        why_not = datagram.place(start, b"".join(clip(skip(frame, at), size)), is_last)
        if why_not:
            self._line.drop(why_not)
            if why_not != "fragment that came before":
                self._forget(key)
            return None
        self._bytes += size
        if not start:
            datagram.header = head[:at]
            datagram.quote = quote(head, ip) if self._line.may_answer(ip) else b""
        if datagram.received_bytes != datagram.end:
            return None
        self._forget(key)
        if len(datagram.header) - wire.ETH_BYTES + datagram.end > wire.IP_BYTES_MAX:
            self._line.drop("malformed fragment")
            return None
        return datagram.whole()

    def _make_room(self, key: _Key, size: int) -> None:
        count_max = DATAGRAMS_MAX if key in self._datagrams else DATAGRAMS_MAX - 1
        while len(self._datagrams) > count_max or self._bytes + size > BYTES_MAX:
            self._forget(next(iter(self._datagrams)))
            self._line.drop("oldest unfinished datagram, for a new one")

    def _forget(self, key: _Key) -> None:
        self._bytes -= self._datagrams.pop(key).received_bytes

    # Time.

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        oldest = next(iter(self._datagrams.values()), None)
        return None if oldest is None else oldest.deadline_ns

    def on_time(self, now_ns: int) -> None:
        """Give up what was not finished in time, and say so (RFC 792)."""
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.deadline_ns > now_ns:
                break
            self._forget(key)
            self._line.drop("unfinished datagram")
            if datagram.quote:
                self._line.queue_error(
                    wire.ICMP_TIME_EXCEEDED, wire.ICMP_EXC_FRAGTIME, datagram.quote
                )

    def reset(self) -> None:
        """Forget everything."""
        self._datagrams.clear()
        self._bytes = 0


def _is_sound(ip: Ip, start: int, size: int, is_last: bool) -> bool:
    """Whether some honest sender may have cut a packet like this."""
    if not size or (size % 8 and not is_last) or ip.header_bytes + start + size > wire.IP_BYTES_MAX:
        return False
    # RFC 3128: a TCP header is never cut.
    return ip.protocol != wire.IPPROTO_TCP or (start or size) >= TCP_BYTES
