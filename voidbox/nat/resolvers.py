"""The host's resolvers: sends the guest's queries to its name servers."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import partial

from voidbox.loop_api import Loop
from voidbox.nat.resolv_conf_file import NameServers
from voidbox.net.dns_message import ParseError, Splitter, frame

_REPLY_BYTES_MAX = 65535
_REPLIES_PER_PASS = 32
_TCP_MAX = 64  # connections at a time; a query beyond it goes to the next resolver


class HostResolvers:
    """See name_service.Resolvers. Thread: loop.

    Args:
        servers: where they are, IPv4 or IPv6.
        replied: takes a resolver's number and its message.
        failed: takes a resolver's number and the queries that did not get there, None for all.
    """

    def __init__(
        self,
        loop: Loop,
        servers: NameServers,
        replied: Callable[[int, bytes], None],
        failed: Callable[[int, list[int] | None], None],
    ) -> None:
        self._loop = loop
        self._servers = servers
        self._places = servers.places  # of the sockets that are open
        self._replied = replied
        self._failed = failed
        self._udp: dict[int, socket.socket] = {}  # by resolver
        self._tcp: dict[int, _TcpQuery] = {}  # by upstream identifier

    def send_udp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """See Resolvers."""
        self._leave_old_ones()
        try:
            sock = self._udp.get(server_idx) or self._open_udp(server_idx)
            sock.send(message)
        except BlockingIOError:
            pass  # lost, as datagrams may be: the time-out finds it
        except OSError:
            # Not from within the forwarder's own call.
            self._loop.call_soon(partial(self._failed, server_idx, [upstream_id]))

    def _leave_old_ones(self) -> None:
        """Of resolvers that are no longer the host's nothing is to come."""
        if self._servers.places is not self._places:
            self.close()
            self._places = self._servers.places

    def _open_udp(self, server_idx: int) -> socket.socket:
        address, port = self._places[server_idx]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((address, port))  # so that only the resolver's own answers come in
        except OSError:
            sock.close()
            raise
        self._udp[server_idx] = sock
        self._loop.watch(
            sock.fileno(), select.EPOLLIN, lambda ready: self._receive(server_idx, sock)
        )
        return sock

    def _receive(self, server_idx: int, sock: socket.socket) -> None:
        for _ in range(_REPLIES_PER_PASS):
            try:
                message = sock.recv(_REPLY_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:  # ECONNREFUSED: nobody serves there
                self._failed(server_idx, None)
                return
            self._replied(server_idx, message)

    def send_tcp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """See Resolvers."""
        self._leave_old_ones()
        old = self._tcp.pop(upstream_id, None)
        if old is not None:
            old.close()
        try:
            if len(self._tcp) >= _TCP_MAX:
                self._tcp.pop(next(iter(self._tcp))).close()
            self._tcp[upstream_id] = _TcpQuery(
                self._loop, self._places[server_idx], frame(message),
                partial(self._on_tcp_end, server_idx, upstream_id),
            )  # fmt: skip
        except OSError:
            self._loop.call_soon(partial(self._failed, server_idx, [upstream_id]))

    def _on_tcp_end(self, server_idx: int, upstream_id: int, message: bytes | None) -> None:
        self._tcp.pop(upstream_id).close()
        if message is None:
            self._failed(server_idx, [upstream_id])
        else:
            self._replied(server_idx, message)

    def close(self) -> None:
        """Close all sockets; queries open new ones. Idempotent.

        Thread: loop, or any once the loop is stopped.
        """
        for sock in self._udp.values():
            self._loop.unwatch(sock.fileno())
            sock.close()
        self._udp.clear()
        for query in self._tcp.values():
            query.close()
        self._tcp.clear()


class _TcpQuery:
    """One query over a connection of its own.

    Args:
        on_end: takes the reply, or None.
    """

    def __init__(
        self,
        loop: Loop,
        server: tuple[str, int],
        data: bytes,
        on_end: Callable[[bytes | None], None],
    ) -> None:
        self._loop = loop
        self._unsent = data
        self._on_end = on_end
        self._splitter = Splitter()
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(server)
        except BlockingIOError:
            pass
        except OSError:
            self._socket.close()
            raise
        loop.watch(self._socket.fileno(), select.EPOLLOUT, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        try:
            message = self._advance()
        except BlockingIOError:
            return
        except (OSError, ParseError):
            self._on_end(None)
            return
        if message is not None:
            self._on_end(message)

    def _advance(self) -> bytes | None:
        if self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
            if not self._unsent:
                self._loop.watch(self._socket.fileno(), select.EPOLLIN, self._on_ready)
            return None
        data = self._socket.recv(_REPLY_BYTES_MAX)
        if not data:
            raise ConnectionResetError
        return next(iter(list(self._splitter.feed(data))), None)

    def close(self) -> None:
        """Close the connection."""
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
