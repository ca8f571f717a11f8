"""The whole stack between a guest and a host that are both played by the test; the clock too.

    guest (bytes of frames) ─► Stack ─► FakeHost: streams and datagram sockets that count themselves
    frames to the guest, with their sums checked ◄─ FakeRx: buffers that may run out

Frames are made and read here with `struct` alone, so that no fault of the stack's own hides itself.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from voidbox.net.addresses import NetworkConfig
from voidbox.net.datagram_table import DATAGRAM_FLOWS_MAX
from voidbox.net.dhcp import Server as DhcpServer
from voidbox.net.dns import Forwarder
from voidbox.net.fragment_table import BYTES_MAX as FRAGMENT_BYTES_MAX
from voidbox.net.fragment_table import DATAGRAMS_MAX, FRAGMENTS_MAX
from voidbox.net.host import RESET, DatagramOwner, StreamOwner
from voidbox.net.line import FRAMES_MAX
from voidbox.net.name_service import NameService, NameStream
from voidbox.net.policy import Policy
from voidbox.net.stack import Stack
from voidbox.net.tcp_flow import TcpFlow
from voidbox.net.tcp_outgoing import U32
from voidbox.net.tcp_states import State
from voidbox.net.tcp_table import CONNECTING_MAX, TCP_FLOWS_MAX

S = 1_000_000_000
GUEST_MAC, GATEWAY_MAC = bytes.fromhex("525400123456"), bytes.fromhex("525400123401")
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
START_NS = 1_000 * S


def ip_of(text: str) -> int:
    return int.from_bytes(bytes(map(int, text.split("."))), "big")


GUEST, GATEWAY, DNS = ip_of("10.0.2.15"), ip_of("10.0.2.2"), ip_of("10.0.2.3")
FAR = ip_of("192.0.2.7")


def sum16(data: bytes) -> int:
    """The Internet checksum of data, one's complement taken."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(payload: bytes, ether_type: int = 0x800, *, to: bytes = GATEWAY_MAC,
             source: bytes = GUEST_MAC) -> bytes:  # fmt: skip
    return to + source + struct.pack("!H", ether_type) + payload


def ipv4(payload: bytes, protocol: int, destination: int = FAR, source: int = GUEST, *,
         fragment: int = 0x4000, length: int | None = None, options: bytes = b"",
         version_ihl: int | None = None) -> bytes:  # fmt: skip
    """An IPv4 packet; what is given otherwise is not corrected."""
    if length is None:
        length = 20 + len(options) + len(payload)
    if version_ihl is None:
        version_ihl = 0x45 + len(options) // 4
    head = struct.pack("!BBHHHBBHII", version_ihl, 0, length & 0xFFFF, 7, fragment, 64, protocol, 0,
                       source, destination) + options  # fmt: skip
    head = head[:10] + struct.pack("!H", sum16(head)) + head[12:]
    return head + payload


def with_sum(message: bytes, at: int, protocol: int, destination: int, source: int) -> bytes:
    """Put the checksum of TCP or UDP where it belongs."""
    pseudo = struct.pack("!IIBBH", source, destination, 0, protocol, len(message))
    message = message[:at] + b"\0\0" + message[at + 2 :]
    return message[:at] + struct.pack("!H", sum16(pseudo + message) or 0xFFFF) + message[at + 2 :]


def udp(sport: int, dport: int, payload: bytes = b"", destination: int = FAR,
        source: int = GUEST) -> bytes:  # fmt: skip
    message = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    message = with_sum(message, 6, 17, destination, source)
    return ethernet(ipv4(message, 17, destination, source))


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, window: int = 65535,
        payload: bytes = b"", options: bytes = b"", destination: int = FAR,
        urgent: int = 0) -> bytes:  # fmt: skip
    options += b"\0" * (-len(options) % 4)
    message = struct.pack("!HHIIBBHHH", sport, dport, seq & U32, ack & U32,
                          (20 + len(options)) << 2, flags, window, 0, urgent)  # fmt: skip
    message = with_sum(message + options + payload, 16, 6, destination, GUEST)
    return ethernet(ipv4(message, 6, destination))


def icmp(type: int, code: int, rest: bytes, destination: int = FAR) -> bytes:
    message = bytes((type, code, 0, 0)) + rest
    message = message[:2] + struct.pack("!H", sum16(message)) + message[4:]
    return ethernet(ipv4(message, 1, destination))


def echo(identifier: int, sequence: int, data: bytes = b"abc", destination: int = FAR) -> bytes:
    return icmp(8, 0, struct.pack("!HH", identifier, sequence) + data, destination)


def arp(target: int = GATEWAY, *, op: int = 1, sender: int = GUEST,
        sender_mac: bytes = GUEST_MAC) -> bytes:  # fmt: skip
    body = struct.pack("!HHBBH6sI6sI", 1, 0x800, 6, 4, op, sender_mac, sender, bytes(6), target)
    return ethernet(body, 0x806, to=b"\xff" * 6)


def repaired(frame: bytes) -> bytes:
    """Set the IPv4 header's checksum right, if there is such a header."""
    size = 4 * (frame[14] & 15) if len(frame) > 14 else 0
    if frame[12:14] != b"\x08\x00" or not 20 <= size <= len(frame) - 14:
        return frame
    head = bytearray(frame[14 : 14 + size])
    head[10:12] = b"\0\0"
    head[10:12] = struct.pack("!H", sum16(bytes(head)))
    return frame[:14] + bytes(head) + frame[14 + size :]


class Seen(NamedTuple):
    """A frame that the guest got."""

    frame: bytes
    gso_size: int

    @property
    def ether_type(self) -> int:
        return int.from_bytes(self.frame[12:14], "big")

    @property
    def protocol(self) -> int:
        return self.frame[23] if self.ether_type == 0x800 else -1

    @property
    def source(self) -> int:
        return int.from_bytes(self.frame[26:30], "big")

    @property
    def body(self) -> bytes:
        """What follows the IPv4 header."""
        return self.frame[34:]

    @property
    def tcp(self) -> TcpSeen:
        assert self.protocol == 6, self
        sport, dport, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", self.body)
        size = (offset >> 4) * 4
        options, payload = self.body[20:size], self.body[size:]
        return TcpSeen(sport, dport, seq, ack, flags, window, options, payload)


class TcpSeen(NamedTuple):
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    options: bytes
    payload: bytes

    @property
    def mss(self) -> int | None:
        at = self.options.find(b"\x02\x04")
        return int.from_bytes(self.options[at + 2 : at + 4], "big") if at >= 0 else None

    @property
    def wscale(self) -> int | None:
        at = self.options.find(b"\x03\x03")
        return self.options[at + 2] if at >= 0 else None


def check_frame(frame: bytes, csum_start: int, csum_offset: int) -> None:
    """Whatever goes to the guest is whole, and summed right."""
    assert frame[:6] == GUEST_MAC and frame[6:12] == GATEWAY_MAC
    if frame[12:14] != b"\x08\x00":
        return
    (length,) = struct.unpack_from("!H", frame, 16)
    assert length == len(frame) - 14 and sum16(frame[14:34]) == 0
    protocol, fragment = frame[23], int.from_bytes(frame[20:22], "big") & 0x3FFF
    if csum_start:
        at = csum_start + csum_offset
        assert (csum_start, at) == (34, 50)
        full = struct.pack("!H", sum16(frame[34:]))
        frame = frame[:at] + full + frame[at + 2 :]
    if fragment:
        return
    pseudo = frame[26:34] + struct.pack("!BBH", 0, protocol, length - 20)
    assert sum16((b"" if protocol == 1 else pseudo) + frame[34:]) == 0, frame.hex()


class FakeRx:
    """The guest's receive buffers: `credits` frames of them, None for any number.

    Attributes:
        room_bytes: for a frame, in all the buffers that it ever has.
    """

    def __init__(self) -> None:
        self.seen: deque[Seen] = deque()
        self.credits: int | None = None
        self.piece_bytes = 1526  # as Linux gives them: a frame lies in several
        self.room_bytes = 65549
        self.checks = True
        self.count = 0
        self._memory = memoryview(bytearray(70000))
        self._reserved = 0

    def reserve(self, size: int, least: int = -1) -> list[memoryview] | None:
        assert 0 < size <= 65549 and least <= size
        if self.credits == 0:
            return None
        assert (size if least < 0 else least) <= self.room_bytes, "the device is broken by that"
        self._reserved = size = min(size, self.room_bytes)
        area, piece = self._memory, self.piece_bytes
        return [area[at : min(at + piece, size)] for at in range(0, size, piece)]

    def commit(self, length: int, *, gso_size: int = 0, csum_start: int = 0, csum_offset: int = 0,
               header_bytes: int = 0) -> None:  # fmt: skip
        assert 14 <= length <= self._reserved
        assert not gso_size or (csum_start and header_bytes and length > header_bytes + gso_size)
        assert gso_size or length <= 1514
        self._reserved = 0
        self.count += 1
        if self.credits is not None:
            self.credits -= 1
        frame = bytes(self._memory[:length])
        if self.checks:
            check_frame(frame, csum_start, csum_offset)
        self.seen.append(Seen(frame, gso_size))

    def cancel(self) -> None:
        self._reserved = 0


class Header(NamedTuple):
    needs_csum: bool = False


class FakeStream:
    """A TCP socket of the host.

    Attributes:
        got: what it took of the guest's.
        room: how much more it takes at once.
    """

    def __init__(self, host: FakeHost, address: int, port: int, owner: StreamOwner) -> None:
        self.address, self.port, self.owner = address, port, owner
        self.got = bytearray()
        self.room = 1 << 62
        self.gives = bytearray()
        self.has_ended = self.breaks = self.is_connected = self.is_shut = False
        self.was_told = False
        self.is_open, self.was_reset = True, False
        self.wants = (False, False)
        self.is_kept_alive = False
        self._host = host

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        assert self.is_open and self.is_connected
        if not self.gives:
            return RESET if self.breaks else 0 if self.has_ended else None
        done = 0
        for buffer in buffers:
            part = self.gives[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        del self.gives[:done]
        return done

    def send(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        assert self.is_open and self.is_connected and not self.is_shut
        if self.breaks:
            return None
        data = b"".join(buffers)[: self.room]
        self.got += data
        self.room -= len(data)
        return len(data)

    def shutdown_write(self) -> None:
        assert self.is_open and not self.is_shut
        self.is_shut = True

    def watch(self, readable: bool, writable: bool) -> None:
        assert self.is_open
        self.wants = (readable, writable)

    def is_broken(self) -> bool:
        return self.breaks

    def keep_alive(self) -> None:
        assert self.is_open and self.is_connected
        self.is_kept_alive = True

    def close(self, is_reset: bool) -> None:
        assert self.is_open, "closed twice"
        self.is_open, self.was_reset = False, is_reset
        self._host.streams.remove(self)

    def poll(self) -> bool:
        """What epoll would report, level-triggered; True if it did."""
        if not (self.is_open and self.is_connected):
            return False
        readable = self.wants[0] and bool(self.gives or self.has_ended or self.breaks)
        readable |= self.breaks and not self.was_told  # EPOLLHUP, wanted or not
        self.was_told |= self.breaks
        writable = self.wants[1] and (self.room > 0 or self.breaks)
        if readable or writable:
            self.owner.ready(readable, writable)
        return readable or writable


class FakeDatagrams:
    """A UDP or ping socket of the host. `gives` holds datagrams, and errors as negative numbers."""

    def __init__(self, host: FakeHost, key: tuple[int, int], owner: DatagramOwner) -> None:
        self.key, self.owner = key, owner
        self.got: list[bytes] = []
        self.gives: deque[bytes | int] = deque()
        self.error = 0
        self.is_open, self.wants = True, False
        self._host = host

    def send(self, buffers: Iterable[memoryview | bytes]) -> int:
        assert self.is_open
        if not self.error:
            self.got.append(b"".join(buffers))
        return self.error

    def recv_into(self, buffer: memoryview) -> int | None:
        assert self.is_open
        if not self.gives:
            return None
        data = self.gives.popleft()
        if isinstance(data, int):
            return data
        buffer[: len(data)] = data
        return len(data)

    def watch(self, readable: bool) -> None:
        assert self.is_open
        self.wants = readable

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False
        self._host.datagrams.remove(self)

    def poll(self) -> bool:
        if not (self.is_open and self.wants and self.gives):
            return False
        self.wants = False
        self.owner.ready()
        return True


class FakeHost:
    """The host: what is open now, and how connect() ends.

    Attributes:
        fails: errno by address, given at once.
        connects: whether connections succeed by themselves.
    """

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.datagrams: list[FakeDatagrams] = []
        self.last: FakeStream | None = None
        self.fails: dict[int, int] = {}
        self.connects = True
        self.opened = 0
        self.black_holes: set[int] = set()

    def connect_tcp(self, address: int, port: int, owner: StreamOwner) -> FakeStream | int:
        if address in self.fails:
            return self.fails[address]
        self.opened += 1
        self.last = FakeStream(self, address, port, owner)
        self.streams.append(self.last)
        return self.last

    def accepted(self) -> FakeStream:
        """A program of the host has connected to a published port."""
        stream = FakeStream(self, 0, 0, NOBODY)
        stream.is_connected = True
        self.last = stream
        self.streams.append(stream)
        return stream

    def open_udp(self, address: int, port: int, owner: DatagramOwner) -> FakeDatagrams | int:
        if address in self.fails:
            return self.fails[address]
        self.opened += 1
        made = FakeDatagrams(self, (address, port), owner)
        self.datagrams.append(made)
        return made

    def open_ping(self, address: int, owner: DatagramOwner) -> FakeDatagrams | int:
        return self.open_udp(address, 0, owner)

    def poll(self) -> bool:
        """One pass of the loop; True if something happened."""
        happened = False
        for stream in list(self.streams):
            if stream.is_open and not stream.is_connected:
                if self.connects and stream.address not in self.black_holes:
                    stream.is_connected = True
                    stream.owner.connected(0)
                    happened = True
            else:
                happened |= stream.poll()
        for datagrams in list(self.datagrams):
            happened |= datagrams.poll()
        return happened


class _Nobody:
    def connected(self, error: int) -> None:
        pass

    def ready(self, readable: bool = False, writable: bool = False) -> None:
        pass


NOBODY = _Nobody()


class FakeResolvers:
    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bytes]] = []

    def send_udp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        self.asked.append((server_idx, upstream_id, message))

    send_tcp = send_udp


class World:
    """A guest, the stack, a host and a clock.

    Attributes:
        rx: what the guest received is in rx.seen, the oldest first.
    """

    def __init__(
        self,
        *,
        allow: tuple[str, ...] = (),
        deny: tuple[str, ...] = (),
        host_ports: tuple[int, ...] = (),
        has_csum: bool = False,
        has_tso: bool = False,
        secret: bytes = b"secret",
    ) -> None:
        config = NetworkConfig()
        policy = Policy(allow, deny, host_ports)
        self.now_ns = START_NS
        self.host = FakeHost()
        self.rx = FakeRx()
        self.resolvers = FakeResolvers()
        self.names = NameService(Forwarder(policy, 1, lambda: 4711), self.resolvers)
        dhcp = DhcpServer(config)
        self.log: list[str] = []
        policy.on_refused = self.log.append
        self.stack = Stack(config, self.host, policy, self.names, dhcp, secret)
        self.stack.line.on_note = self.log.append
        self.stack.start(has_csum, has_tso)

    def send(self, frame: bytes, *, needs_csum: bool = False, cuts: Sequence[int] = ()) -> None:
        """The guest sends a frame; its memory is scribbled over afterwards."""
        memory = bytearray(frame)
        view = memoryview(memory)
        places = [0, *sorted(min(cut, len(frame)) for cut in cuts), len(frame)]
        buffers = [view[a:b] for a, b in itertools.pairwise(places)]
        self.stack.receive(buffers, Header(needs_csum), self.now_ns)
        memory[:] = b"\xa5" * len(memory)

    def pump(self) -> None:
        """Let the host's sockets and the guest's buffers be served until nothing moves."""
        for _ in range(100_000):
            moved = self.host.poll()
            while self.stack.has_pending():
                before = self.rx.count
                if not self.stack.transmit(self.rx, self.now_ns):
                    break
                moved |= self.rx.count != before
            if not moved:
                return
        raise AssertionError("it never comes to rest")

    def take(self) -> list[Seen]:
        """What the guest got since the last time."""
        self.pump()
        frames = list(self.rx.seen)
        self.rx.seen.clear()
        return frames

    def ask(self, frame: bytes) -> list[Seen]:
        """Send a frame and take what comes."""
        self.send(frame)
        return self.take()

    def wait(self, seconds: float) -> None:
        """Let time go by, deadline for deadline."""
        end_ns = self.now_ns + int(seconds * S)
        self.pump()
        for _ in range(100_000):
            deadline_ns = self.stack.next_deadline_ns()
            if deadline_ns is None or deadline_ns > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns = max(self.now_ns, deadline_ns)
            self.stack.on_time(self.now_ns)
            self.pump()
        raise AssertionError("deadlines without end")

    @property
    def dropped(self) -> dict[str, int]:
        return self.stack.statistics().dropped

    @property
    def flows(self) -> list[TcpFlow]:
        return list(self.stack._tcp.flows.values())

    def open(self, sport: int = 40000, dport: int = 80, seq: int = 1000, *, options: bytes = b"",
             window: int = 65535, destination: int = FAR) -> tuple[FakeStream, int]:  # fmt: skip
        """Connect; returns the host's stream and our first sequence number."""
        self.rx.seen.clear()
        answers = self.ask(
            tcp(sport, dport, seq, 0, SYN, window, options=options, destination=destination)
        )
        (answer,) = [a.tcp for a in answers if a.tcp.dport == sport]
        assert answer.flags == SYN | ACK and answer.ack == (seq + 1) & U32
        iss = answer.seq
        self.send(tcp(sport, dport, seq + 1, iss + 1, ACK, window, destination=destination))
        stream = self.host.last
        assert stream is not None
        return stream, iss

    def check(self) -> None:
        """What holds at any time, whatever anybody did."""
        stack = self.stack
        assert len(stack._tcp.flows) <= TCP_FLOWS_MAX
        assert len(stack._tcp._connecting) <= CONNECTING_MAX
        assert len(stack._datagrams.flows) <= DATAGRAM_FLOWS_MAX
        assert len(stack.line.frames) <= FRAMES_MAX
        assert len(stack._tcp._timers) <= 3 * len(stack._tcp.flows) + 200
        assert len(stack.line.pending) <= len(stack._tcp.flows) + len(stack._datagrams.flows)
        fragments = stack._fragments
        assert len(fragments._datagrams) <= DATAGRAMS_MAX
        parts = [datagram.pieces for datagram in fragments._datagrams.values()]
        assert all(len(pieces) <= FRAGMENTS_MAX for pieces in parts)
        held = sum(len(data) for pieces in parts for _, _, data in pieces)
        assert held == fragments._bytes <= FRAGMENT_BYTES_MAX
        queued = set(map(id, stack.line.pending))
        assert len(queued) == len(stack.line.pending)
        streams, datagrams = [], []
        for key, flow in stack._tcp.flows.items():
            assert flow.key == key
            assert flow.is_queued == (id(flow) in queued)
            assert flow.stream is not None
            if not isinstance(flow.stream, NameStream):
                streams.append(flow.stream)
            self._check_flow(flow)
        for datagram_key, datagram_flow in stack._datagrams.flows.items():
            assert datagram_flow.key == datagram_key
            assert datagram_flow.is_queued == (id(datagram_flow) in queued)
            datagrams.append(datagram_flow.datagrams)
        assert {id(s) for s in streams} == {id(s) for s in self.host.streams}, "a socket leaks"
        assert {id(d) for d in datagrams} == {id(d) for d in self.host.datagrams}, "a socket leaks"

    @staticmethod
    def _check_flow(flow: TcpFlow) -> None:
        c = flow.connection
        assert c.state is not State.CLOSED
        sent, nxt = (c.snd_max - c.snd_una) & U32, (c.snd_nxt - c.snd_una) & U32
        assert nxt <= sent <= c._send_bytes + 1
        assert flow._kept.size <= c._send_bytes
        promised = (c.rcv_adv - c.rcv_nxt) & U32
        assert promised + c.held_bytes <= c._receive_bytes
        assert sum(map(len, flow._held)) == c.held_bytes
        assert sum(map(len, flow._kept._parts)) - flow._kept._first == flow._kept.size
        if c.state not in (State.CONNECTING, State.SYN_SENT, State.SYN_RECEIVED):
            has_fin = c._our_fin_seq is not None and sent > 0
            assert flow._kept.size == sent - has_fin
        assert c.deadline_ns is not None, f"{c.state} for ever"


def assert_served(world: World, sport: int = 60000) -> None:
    """The next good frames: ARP, a connection with data both ways, UDP, a ping."""
    world.rx.credits = None
    world.rx.checks = True
    world.take()
    (reply,) = world.ask(arp())
    assert reply.ether_type == 0x806 and reply.frame[28:32] == GATEWAY.to_bytes(4, "big")
    stream, iss = world.open(sport)
    world.send(tcp(sport, 80, 1001, iss + 1, ACK, payload=b"question"))
    stream.gives += b"answer"
    (seen,) = world.take()
    assert (seen.tcp.payload, bytes(stream.got)) == (b"answer", b"question")
    world.send(tcp(sport, 80, 1009, iss + 7, RST | ACK))
    assert not stream.is_open
    world.send(udp(sport, 9, b"datagram"))
    assert world.host.datagrams[-1].got == [b"datagram"]
    (pong,) = world.ask(echo(1, 2, b"ping", GATEWAY))
    assert pong.body[:1] == b"\0" and pong.body[4:] == b"\0\1\0\2ping"
    world.check()
