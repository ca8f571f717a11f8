"""The network at the keeper's end: its rules, its names, and all sockets that the guest's need.

The machine's process is not believed. It asks for an address as the guest does, or rather as the
rules have it: whether it may be reached is decided here, by names that this process has resolved.
What it gets is a socket that is connected; it cannot connect it to anything else, since its filter
has no connect(2), nor sendto(2) with an address.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from voidbox.errors import ConfigError
from voidbox.event_loop import EventLoop
from voidbox.loop_api import TimerHandle
from voidbox.nat import forwards
from voidbox.nat.config import NatConfig, host_servers, make_forwarder
from voidbox.nat.limited_log import LimitedLog
from voidbox.nat.resolvers import HostResolvers
from voidbox.nat.sockets import open_connected
from voidbox.net.dns import GATEWAY_NAMES, Action, Reply, SendTcp, SendUdp
from voidbox.net.dns_message import QUERY_BYTES_MAX

if TYPE_CHECKING:  # few sandboxes have one
    from voidbox.secrets.guard import Guard

# A query to the keeper: who asks, by a number that its reply brings back; and whether by TCP.
QUERY = struct.Struct("=IB")
# A datagram of a published UDP port: its peer's address and port.
PEER = struct.Struct("!4sH")
DATAGRAM_BYTES_MAX = 65535
_LOOPBACK = 0x7F00_0001
_PUBLISHED_MAX = 1024
_PEERS_MAX = 4096
_PER_PASS = 32
_PROTOCOLS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM, "ICMP": socket.SOCK_DGRAM}

Answer = tuple[dict[str, object], socket.socket | None]


class NetworkKeeper:
    """One sandbox's. Thread: loop.

    Args:
        queries: the channel of DNS queries, whose replies come in their own time.
        log: takes a line about what was refused.
        guard: looks at the connections to guarded hosts; None: there are none.
    Raises:
        ConfigError: a rule is wrong.
    """

    def __init__(
        self,
        config: NatConfig,
        loop: EventLoop,
        queries: socket.socket,
        log: Callable[[str], None],
        guard: Guard | None = None,
    ) -> None:
        self._loop = loop
        self._queries = queries
        self._policy = config.make_policy()
        limited = LimitedLog(loop, log)
        self._policy.on_refused = lambda text: limited.add(f"refused {text}")
        self._guard = guard
        if guard is not None:
            self._policy.on_pinned = guard.note
            self._policy.hides_services = guard.is_host
            for name in GATEWAY_NAMES:  # which nobody resolves
                guard.note(name, [self._policy.gateway])
        servers = host_servers(config)
        self._resolvers = HostResolvers(loop, servers, self._replied, self._failed)
        self._forwarder = make_forwarder(self._policy, servers)
        self._timer: TimerHandle | None = None
        self._pumps: list[_Pump] = []
        self._publishable = set(config.publish)
        queries.setblocking(False)
        loop.watch(queries.fileno(), select.EPOLLIN, lambda ready: self._take_queries())

    def answer(self, op: str, values: dict[str, Any]) -> Answer:
        """Answer a question; returns a socket to hand over, which is closed here afterwards."""
        try:
            if op == "target":
                return self._target(values), None
            if op == "connect":
                return self._connect(values)
            if op == "listen":
                return self._listen(values)
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError):
            return {"errno": errno.EINVAL}, None
        if op == "statistics":
            found = self._policy.statistics()
            return {
                "refused": found.refused,
                "pins": found.pins,
                "evicted": found.pins_evicted,
            }, None
        return {"errno": errno.ENOSYS}, None

    def allow(self, forward: forwards.Forward, is_allowed: bool) -> None:
        """Have a port be published if it is asked for, or not any more. Thread: any."""
        if is_allowed:
            self._publishable.add(forward)
        else:
            self._publishable.discard(forward)

    def close(self) -> None:
        """Close every socket. Idempotent. Thread: loop, or any once the loop is stopped."""
        self._loop.unwatch(self._queries.fileno())
        self._resolvers.close()
        for pump in self._pumps:
            pump.close()

    # Addresses.

    def _target(self, values: dict[str, Any]) -> dict[str, object]:
        protocol = values["protocol"]
        if protocol not in _PROTOCOLS:
            raise ValueError(protocol)
        address, port = _address(values)
        target = self._policy.target(protocol, address, port, time.monotonic_ns())
        return {"address": target}

    def _connect(self, values: dict[str, Any]) -> Answer:
        """Connect to an address of the host, if one that the guest may reach leads there."""
        address, port = _address(values)
        kind, protocol = values["kind"], values["protocol"]
        name = {
            (socket.SOCK_STREAM, 0): "TCP",
            (socket.SOCK_DGRAM, 0): "UDP",
            (socket.SOCK_DGRAM, socket.IPPROTO_ICMP): "ICMP",
        }.get((kind, protocol))
        if name is None:
            return {"errno": errno.EPROTONOSUPPORT}, None
        asked = self._policy.gateway if address == _LOOPBACK else address
        if self._policy.target(name, asked, port, time.monotonic_ns()) != address:
            return {"errno": errno.EACCES}, None
        guard = self._guard
        if guard is not None and name == "UDP" and guard.refuses_datagrams(asked, port):
            return {"errno": errno.EACCES}, None
        sock = open_connected(kind, protocol, address, port)
        if isinstance(sock, int):
            return {"errno": sock}, None
        if guard is not None and name == "TCP" and guard.takes(asked, port):
            return self._look_at(guard, sock, port)
        return {"errno": 0}, sock

    def _look_at(self, guard: Guard, far: socket.socket, port: int) -> Answer:
        """Put the guard between a connection and the guest."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            far.close()
            return {"errno": error.errno or errno.EMFILE}, None
        theirs.setblocking(False)
        guard.serve(ours, far, port)
        return {"errno": 0, "is_guarded": True}, theirs

    # Published ports.

    def _listen(self, values: dict[str, Any]) -> Answer:
        forward = forwards.parse_forward(values["forward"])
        if forward not in self._publishable:
            return {"errno": errno.EACCES}, None
        self._pumps = [pump for pump in self._pumps if not pump.is_closed]
        if len(self._pumps) >= _PUBLISHED_MAX:
            return {"errno": errno.EMFILE}, None
        try:
            sock, port = forwards.listen(forward)
            if forward.is_udp:
                pump = _Pump(self._loop, sock)
                self._pumps.append(pump)
                sock = pump.take_other_end()
        except OSError as error:
            return {"errno": error.errno or errno.EIO}, None
        return {"errno": 0, "port": port}, sock

    # Names.

    def _take_queries(self) -> None:
        for _ in range(_PER_PASS):
            try:
                message = self._queries.recv(QUERY.size + QUERY_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:  # the other end is gone, and so will we be
                self._loop.unwatch(self._queries.fileno())
                return
            if len(message) > QUERY.size:
                key, is_tcp = QUERY.unpack_from(message)
                query = message[QUERY.size :]
                self._perform(self._forwarder.query(key, query, bool(is_tcp), time.monotonic_ns()))

    def _replied(self, server_idx: int, message: bytes) -> None:
        self._perform(self._forwarder.reply(server_idx, message, time.monotonic_ns()))

    def _failed(self, server_idx: int, ids: list[int] | None) -> None:
        self._perform(self._forwarder.failed(server_idx, ids, time.monotonic_ns()))

    def _on_time(self) -> None:
        self._timer = None
        self._perform(self._forwarder.expire(time.monotonic_ns()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply) and isinstance(action.source_key, int):
                with contextlib.suppress(OSError):  # full: lost, as datagrams may be
                    self._queries.send(QUERY.pack(action.source_key, 0) + action.message)
            elif isinstance(action, SendUdp):
                self._resolvers.send_udp(action.server_idx, action.upstream_id, action.message)
            elif isinstance(action, SendTcp):
                self._resolvers.send_tcp(action.server_idx, action.upstream_id, action.message)
        deadline_ns = self._forwarder.next_deadline_ns()
        if self._timer is None and deadline_ns is not None:
            delay_s = max(0, deadline_ns - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._on_time)


class _Pump:
    """A published UDP port: its datagrams go to the machine with their peers' addresses, and back.

    Only who has sent something gets something.
    """

    def __init__(self, loop: EventLoop, sock: socket.socket) -> None:
        self.is_closed = False
        self._loop = loop
        self._socket = sock
        self._inner, self._other = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        self._peers: OrderedDict[tuple[str, int], None] = OrderedDict()
        loop.watch(sock.fileno(), select.EPOLLIN, lambda ready: self._inward())
        loop.watch(self._inner.fileno(), select.EPOLLIN, lambda ready: self._outward())

    def take_other_end(self) -> socket.socket:
        """Return the machine's end."""
        return self._other

    def _inward(self) -> None:
        for _ in range(_PER_PASS):
            try:
                data, peer = self._socket.recvfrom(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about something that was sent
            self._peers[peer] = None
            self._peers.move_to_end(peer)
            if len(self._peers) > _PEERS_MAX:
                self._peers.popitem(last=False)
            with contextlib.suppress(OSError):  # full: lost, as datagrams may be
                self._inner.send(PEER.pack(socket.inet_aton(peer[0]), peer[1]) + data)

    def _outward(self) -> None:
        for _ in range(_PER_PASS):
            try:
                message = self._inner.recv(PEER.size + DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.close()
                return
            if len(message) >= PEER.size:
                raw, port = PEER.unpack_from(message)
                peer = (socket.inet_ntoa(raw), port)
                if peer in self._peers:
                    with contextlib.suppress(OSError):
                        self._socket.sendto(message[PEER.size :], peer)

    def close(self) -> None:
        """Publish it no longer. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        for sock in (self._socket, self._inner):
            self._loop.unwatch(sock.fileno())
            sock.close()


def _address(values: dict[str, Any]) -> tuple[int, int]:
    address, port = values["address"], values["port"]
    if not (0 <= address < 1 << 32 and 0 <= port < 1 << 16):
        raise ValueError(values)
    return address, port
