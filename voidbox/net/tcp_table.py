"""All TCP connections of the guest: which segment is whose, who may open one, and when to look."""

from __future__ import annotations

import errno
import heapq
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count

from voidbox.net import wire
from voidbox.net.addresses import format_address
from voidbox.net.flow_state import FlowState
from voidbox.net.host import Host, Stream
from voidbox.net.line import Line, RxFrames, quote
from voidbox.net.name_service import NameService
from voidbox.net.policy import Gate
from voidbox.net.tcp import Connection
from voidbox.net.tcp_flow import TcpFlow, TimerEntry
from voidbox.net.tcp_outgoing import CONNECT_NS, U32
from voidbox.net.tcp_states import CLOSED, CONNECTING, ESTABLISHED
from voidbox.net.tcp_wire import (
    ENDS,
    TCP_ACK,
    TCP_FIN,
    TCP_RST,
    TCP_SYN,
    Headers,
    Tcp,
    parse,
    parse_plain,
)
from voidbox.net.wire import Ip

TCP_FLOWS_MAX = 1024
IDLE_MIN_NS = 60_000_000_000  # what was silent for so long may have to make room for others
CONNECTING_MAX = 128
CONNECT_PATIENCE_NS = 3_000_000_000  # then a connect() may have to make room for others
# The first connections get windows that keep a fast stream going; the rest, ones that keep the
# memory behind all of them bounded.
LARGE_WINDOW_FLOWS = 32
LARGE_WINDOW_BYTES = 2 << 20
WINDOW_BYTES = 256 << 10
LOOK_NS = 30_000_000_000  # the longest that a flow is not looked at
TIMERS_SPARE = 64
# A connect() that failed for want of a way; every other failure is an RST.
_UNREACHABLE_CODES = {
    errno.ENETUNREACH: wire.ICMP_NET_UNREACH,
    errno.EHOSTUNREACH: wire.ICMP_HOST_UNREACH,
}
_ISN_NS = 4_000  # RFC 6528: the clock part of a sequence number moves every 4 µs
_SYN_ALONE = TCP_SYN
_OPENING = TCP_SYN | TCP_ACK | TCP_RST


class TcpTable:
    """Thread: loop.

    Args:
        secret: unpredictable bytes, for sequence numbers.

    Attributes:
        flows: those that live, by the ends that their segments name (tcp_wire.ENDS).
        opened: how many ever did.
    """

    def __init__(
        self, line: Line, host: Host, policy: Gate, names: NameService, secret: bytes
    ) -> None:
        self.flows: dict[bytes, TcpFlow] = {}
        self.opened = 0
        self._line = line
        self._dns_ip = line.config.dns_ip
        self._host = host
        self._policy = policy
        self._names = names
        self._secret = secret
        self._connecting: dict[TcpFlow, None] = {}  # the oldest first
        self._timers: list[TimerEntry] = []  # a heap; see _watch_time
        self._order = count()
        self._now_ns = 0

    # From the guest.

    def receive(self, frame: list[memoryview], head: bytes, ip: Ip, now_ns: int) -> None:
        """Take a segment."""
        self._now_ns = now_ns
        tcp = parse(head, ip)
        if tcp is None:
            self._line.drop("malformed TCP header")
            return
        payload_bytes = ip.length - ip.header_bytes - tcp.header_bytes
        remote = (ip.destination, tcp.destination_port)
        key = ENDS.pack(ip.source, ip.destination, tcp.source_port, tcp.destination_port)
        flow = self.flows.get(key)
        if flow is not None and self._is_replaced(flow, tcp):
            self._remove(flow)
            flow = None
        if flow is not None:
            at = wire.ETH_BYTES + ip.header_bytes + tcp.header_bytes
            flow.receive(tcp, frame, at, payload_bytes, now_ns)
            self._settle(flow)
        elif tcp.flags & _OPENING == _SYN_ALONE:
            self._open(key, head, ip, tcp)
        else:
            self._line.drop("TCP segment of no connection")
            self._refuse(remote, tcp, payload_bytes)

    def receive_plain(
        self, frame: list[memoryview], head: bytes, frame_bytes: int, now_ns: int
    ) -> bool:
        """Take a segment of a flow that there is, as nearly all are; False: it is another frame.

        Args:
            head: see parse_plain().
        """
        segment = parse_plain(head, frame_bytes)
        if segment is None:
            return False
        ends, seq, ack, flags, window, start, end = segment
        flow = self.flows.get(ends)
        if flow is None:
            return False
        self._now_ns = now_ns
        if flags & TCP_FIN or not flow.receive_expected(
            seq, ack, window, frame, start, end - start, now_ns
        ):
            tcp = Tcp(flow.guest_port, flow.remote[1], seq, ack, flags, window, 0, 0, None)
            flow.receive(tcp, frame, start, end - start, now_ns)
        self._settle(flow)
        return True

    @staticmethod
    def _is_replaced(flow: TcpFlow, tcp: Tcp) -> bool:
        """Whether the guest begins anew with the ports of a connection that is about to end."""
        connection = flow.connection
        is_syn = tcp.flags & (TCP_SYN | TCP_ACK) == _SYN_ALONE
        return is_syn and connection.is_closing and tcp.seq != (connection.rcv_nxt - 1) & U32

    def _open(self, key: bytes, head: bytes, ip: Ip, tcp: Tcp) -> None:
        remote = (ip.destination, tcp.destination_port)
        target = self._policy.target("TCP", ip.destination, tcp.destination_port, self._now_ns)
        if target is None:
            self._refuse(remote, tcp, 0)
            return
        is_dns = ip.destination == self._dns_ip
        if not is_dns and not self._may_connect():
            self._line.drop("too many TCP connections being opened")  # the guest asks again
            return
        if not self._make_room():
            self._refuse(remote, tcp, 0)
            return
        size = self._window_bytes()
        connection = Connection.accept(tcp, self._initial_seq(key), size, size, self._now_ns)
        flow = self._add(key, remote, tcp.source_port, connection)
        flow.quote = quote(head, ip)
        if is_dns:
            stream: Stream | int = self._names.accept(flow, self._now_ns)
        else:
            stream = self._host.connect_tcp(target, tcp.destination_port, flow)
        if isinstance(stream, int):
            flow.connected(stream)
            return
        flow.stream = stream
        if stream.is_connected:
            flow.connected(0)
        else:
            self._connecting[flow] = None
            self._watch_time(flow)

    def _add(
        self, key: bytes, remote: tuple[int, int], port: int, connection: Connection
    ) -> TcpFlow:
        flow = TcpFlow(self._line, connection, key, remote, port, self._on_change)
        self.flows[key] = flow
        self.opened += 1
        return flow

    def _make_room(self) -> bool:
        """Whether there may be one flow more. If need be that ends which was silent for longest."""
        if len(self.flows) < TCP_FLOWS_MAX:
            return True
        idle = [flow for flow in self.flows.values() if self._is_idle(flow.connection)]
        if not idle:
            self._line.drop("too many TCP connections")
            self._line.on_note(f"too many TCP connections: {TCP_FLOWS_MAX}, and none is idle")
            return False
        oldest = min(idle, key=lambda flow: flow.connection.last_ns)
        silent_s = (self._now_ns - oldest.connection.last_ns) // 1_000_000_000
        kind = "half-closed" if oldest.connection.is_half_closed else "idle"
        self._line.drop("oldest idle TCP connection, for a new one")
        remote = f"{format_address(oldest.remote[0])}:{oldest.remote[1]}"
        self._line.on_note(
            f"too many TCP connections: ended one, {kind} and silent for {silent_s} s, "
            f"between the guest's port {oldest.guest_port} and {remote}"
        )
        oldest.connection.abort()
        self._settle(oldest)
        return True

    def _is_idle(self, connection: Connection) -> bool:
        if connection.is_half_closed:
            return True
        silent_ns = self._now_ns - connection.last_ns
        return connection.state is ESTABLISHED and silent_ns >= IDLE_MIN_NS

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
        return LARGE_WINDOW_BYTES if len(self.flows) < LARGE_WINDOW_FLOWS else WINDOW_BYTES

    def _initial_seq(self, key: bytes) -> int:
        """RFC 6528: a keyed hash of the addresses, and a clock."""
        digest = blake2b(key, key=self._secret, digest_size=4).digest()
        return (int.from_bytes(digest, "little") + self._now_ns // _ISN_NS) & U32

    def _refuse(self, remote: tuple[int, int], tcp: Tcp, payload_bytes: int) -> None:
        """Answer a segment of no connection, RFC 9293 §3.10.7.1; never an RST by an RST."""
        if tcp.flags & TCP_RST:
            return
        headers = self._headers(remote, tcp.source_port)
        if tcp.flags & TCP_ACK:
            self._line.queue_frame(headers.pack(tcp.ack, 0, TCP_RST, 0, 0, 0))
            return
        length = payload_bytes + bool(tcp.flags & TCP_SYN) + bool(tcp.flags & TCP_FIN)
        ack = (tcp.seq + length) & U32
        self._line.queue_frame(headers.pack(0, ack, TCP_RST | TCP_ACK, 0, 0, 0))

    def _headers(self, remote: tuple[int, int], port: int) -> Headers:
        """Make the headers of segments of no connection: there is none, or no longer."""
        return Headers(self._line.link, remote, (self._line.guest_ip, port))

    # Snapshots.

    def flow_states(self) -> tuple[FlowState, ...]:
        """Return what the guest would have to be told of each flow, were it gone."""
        return tuple(
            FlowState(
                flow.guest_port, *flow.remote, flow.connection.snd_max, flow.connection.rcv_nxt
            )
            for flow in self.flows.values()
            # A SYN that nobody has answered is sent again, and opens a flow as the first one did.
            if flow.connection.state is not CONNECTING
        )

    def reset_flows(self, states: Sequence[FlowState]) -> None:
        """Tell the guest of a restored machine that its connections of before are over.

        A reader that is silent would wait for ever. The number is exact, for the guest is of the
        same instant; if it is not, the guest asks (RFC 5961), and _refuse() answers.
        """
        for state in states[:TCP_FLOWS_MAX]:
            remote = (state.address & U32, state.port & 0xFFFF)
            headers = self._headers(remote, state.guest_port & 0xFFFF)
            # Past the limit on small frames: as many as there were flows, and once.
            self._line.frames.append(
                headers.pack(state.seq & U32, state.ack & U32, TCP_RST | TCP_ACK, 0, 0, 0)
            )

    # From the host.

    def open_to_guest(self, port: int, stream: Stream, now_ns: int) -> TcpFlow | None:
        """A program of the host wants a port of the guest; None if there are too many."""
        self._now_ns = now_ns
        if not self._make_room():
            return None
        guest, gateway = self._line.guest_ip, self._line.config.gateway_ip
        source = self._line.gateway_port(
            lambda source: ENDS.pack(guest, gateway, port, source) in self.flows
        )
        key = ENDS.pack(guest, gateway, port, source)
        size = self._window_bytes()
        connection = Connection.connect(self._initial_seq(key), size, size, now_ns)
        flow = self._add(key, (gateway, source), port, connection)
        flow.stream = stream
        self._settle(flow)
        return flow

    def _on_change(self, flow: TcpFlow) -> None:
        """The host's end of a flow has moved."""
        self._connecting.pop(flow, None)
        if flow.error:
            flow.connection.abort()
        self._settle(flow)

    # To the guest.

    def transmit(self, flow: TcpFlow, rx: RxFrames, now_ns: int) -> bool:
        """Give a flow its turn; False if the guest has no buffer for what it sends."""
        if not flow.transmit(rx, now_ns):
            return False
        self._line.end_turn(flow)
        self._now_ns = now_ns
        self._settle(flow)
        return True

    def _settle(self, flow: TcpFlow) -> None:
        """Draw the consequences of whatever has just happened to a connection."""
        connection, line = flow.connection, self._line
        if connection.state is CLOSED:
            self._end(flow)
            return
        if line.sharing.is_active:
            line.sharing.look(self._now_ns)
        if not flow.is_at_rest:
            if not flow.is_queued:
                if flow.has_pending:
                    line.enqueue(flow)
                elif flow.waits_for_window:
                    connection.await_window(self._now_ns)
            # Not for one that is served at once: to disarm the socket and to arm it again costs
            # two system calls for each answer.
            if not flow.is_queued or line.is_stalled or flow.holds_data:
                flow.update_watch()
        entry = flow.timer
        if entry is None or (connection.deadline_ns or 0) < entry[0]:
            self._watch_time(flow)

    def _end(self, flow: TcpFlow) -> None:
        """Say the last word that is owed, and forget the flow."""
        connection = flow.connection
        code = _UNREACHABLE_CODES.get(flow.error)
        if code is not None:
            self._line.queue_unreachable(code, flow.remote[0], flow.quote)
        elif connection.reset_due:
            self._send_last(flow, TCP_RST | TCP_ACK, 0)
        elif connection.ended_by_fin and connection.ack_due:  # for the guest's FIN
            self._send_last(flow, TCP_ACK, connection.window())
        self._remove(flow)

    def _send_last(self, flow: TcpFlow, flags: int, window: int) -> None:
        connection = flow.connection
        headers = self._headers(flow.remote, flow.guest_port)
        seq, ack = connection.snd_nxt, connection.rcv_nxt
        self._line.queue_frame(headers.pack(seq, ack, flags, window, 0, 0))

    def _remove(self, flow: TcpFlow) -> None:
        self.flows.pop(flow.key, None)
        self._connecting.pop(flow, None)
        flow.connection.deadline_ns = None
        if flow.timer is not None:
            flow.timer[2] = None
            flow.timer = None
        self._line.withdraw(flow)
        flow.close()

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
        if len(self._timers) > 2 * len(self.flows) + TIMERS_SPARE:
            self._timers = [entry for entry in self._timers if entry[2] is not None]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, entry)
        if self._timers[0] is entry:
            self._line.has_new_deadline = True

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        when_ns: int | None = self._timers[0][0] if self._timers else None
        return when_ns

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
        self._now_ns = now_ns
        while self._timers and self._timers[0][0] <= now_ns:
            flow = heapq.heappop(self._timers)[2]
            if flow is None:
                continue
            flow.timer = None
            deadline_ns = flow.connection.deadline_ns
            if deadline_ns is not None and deadline_ns <= now_ns:
                flow.on_time(now_ns)
                self._settle(flow)
            else:
                self._watch_time(flow)

    def resume(self, now_ns: int) -> None:
        """The guest could say nothing until now, and has as much time for it as ever."""
        for flow in self.flows.values():
            flow.connection.resume(now_ns)

    def reset(self) -> None:
        """Forget every flow, without a word to the guest."""
        for flow in list(self.flows.values()):
            self._remove(flow)
        self._timers.clear()
