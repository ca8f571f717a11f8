"""All UDP and echo flows of the guest."""

from __future__ import annotations

from functools import cached_property

from voidbox.net import wire
from voidbox.net.datagram_flows import DATAGRAM_BYTES_MAX, DatagramFlow, unreachable_code
from voidbox.net.host import Datagrams, Host
from voidbox.net.line import Line, RxFrames, quote
from voidbox.net.policy import Gate
from voidbox.net.wire import Ip

DATAGRAM_FLOWS_MAX = 512
SWEEP_NS = 10_000_000_000

Key = tuple[int, int, int, int]  # (protocol, guest's port or echo identifier, address, port or 0)


class DatagramTable:
    """Thread: loop.

    Attributes:
        flows: those that live; the one that was not used for longest first.
    """

    def __init__(self, line: Line, host: Host, policy: Gate) -> None:
        self.flows: dict[Key, DatagramFlow] = {}
        self._line = line
        self._host = host
        self._policy = policy
        self._sweep_ns: int | None = None

    @cached_property
    def _scratch(self) -> memoryview:
        """For one datagram; most guests never get any."""
        return memoryview(bytearray(DATAGRAM_BYTES_MAX))

    def send(self, key: Key, head: bytes, ip: Ip, payload: list[memoryview], now_ns: int) -> None:
        """Pass a datagram of the guest on; or tell it why that cannot be."""
        flow = self.flows.pop(key, None)
        if flow is None:
            flow = self._open(key, head, ip, now_ns)
        if flow is None:
            return
        self.flows[key] = flow  # the last one: used most recently
        flow.last_ns = now_ns
        flow.quote = quote(head, ip)
        if flow.datagrams is not None:
            error = flow.datagrams.send(payload)
            if error:
                self._on_error(flow, error)
            flow.datagrams.watch(not flow.readable)

    def _open(self, key: Key, head: bytes, ip: Ip, now_ns: int) -> DatagramFlow | None:
        protocol, _, address, port = key
        is_udp = protocol == wire.IPPROTO_UDP
        target = self._policy.target("UDP" if is_udp else "ICMP", address, port, now_ns)
        if target is None:
            self._line.refuse(wire.ICMP_PKT_FILTERED, head, ip)
            return None
        self._make_room()
        flow = DatagramFlow(self._line, key, self._line.enqueue, self._on_error)
        host = self._host
        made = host.open_udp(target, port, flow) if is_udp else host.open_ping(target, flow)
        if isinstance(made, int):
            self._line.refuse(unreachable_code(made), head, ip)
            return None
        flow.datagrams = made
        self._watch_time(now_ns)
        return flow

    def _make_room(self) -> None:
        if len(self.flows) >= DATAGRAM_FLOWS_MAX:
            self._remove(next(iter(self.flows.values())))
            self._line.drop("oldest datagram flow, for a new one")

    def open_to_guest(self, port: int, datagrams: Datagrams, now_ns: int) -> DatagramFlow:
        """A peer of a published UDP port: its datagrams come from a port of the gateway."""
        gateway = self._line.config.gateway_ip
        source = self._line.gateway_port(
            lambda source: (wire.IPPROTO_UDP, port, gateway, source) in self.flows
        )
        self._make_room()
        key = (wire.IPPROTO_UDP, port, gateway, source)
        flow = self.flows[key] = DatagramFlow(self._line, key, self._line.enqueue, self._on_error)
        flow.datagrams = datagrams
        flow.last_ns = now_ns
        self._watch_time(now_ns)
        return flow

    def _on_error(self, flow: DatagramFlow, error: int) -> None:
        if flow.quote:
            self._line.queue_unreachable(unreachable_code(error), flow.key[2], flow.quote)

    def transmit(self, flow: DatagramFlow, rx: RxFrames, now_ns: int) -> bool:
        """Send a flow's next datagram to the guest; False if it has no buffer."""
        if not flow.transmit(rx, self._scratch, self._line.queue_frame, now_ns):
            return False
        self.flows[flow.key] = self.flows.pop(flow.key)  # the last one, as in send()
        self._line.end_turn(flow)
        # Another turn, or it waits for the socket.
        if flow.has_pending:
            self._line.enqueue(flow)
        elif flow.datagrams is not None:
            flow.datagrams.watch(True)
        return True

    def _remove(self, flow: DatagramFlow) -> None:
        self.flows.pop(flow.key, None)
        self._line.withdraw(flow)
        flow.close()

    # Time.

    def _watch_time(self, now_ns: int) -> None:
        if self._sweep_ns is None:
            self._sweep_ns = now_ns + SWEEP_NS
            self._line.has_new_deadline = True

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        return self._sweep_ns

    def on_time(self, now_ns: int) -> None:
        """Remove what was idle for too long."""
        if self._sweep_ns is not None and self._sweep_ns <= now_ns:
            for flow in [f for f in self.flows.values() if now_ns - f.last_ns > f.idle_ns]:
                self._remove(flow)
            self._sweep_ns = now_ns + SWEEP_NS if self.flows else None

    def reset(self) -> None:
        """Forget every flow."""
        for flow in list(self.flows.values()):
            self._remove(flow)
        self._sweep_ns = None
