"""The network at the machine's end: an Outside (see nat.outside) that asks the keeper."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import cast

from voidbox.loop_api import Loop
from voidbox.nat.forwards import Forward
from voidbox.nat.sockets import LOOPBACK
from voidbox.net.dns import Action, Reply
from voidbox.net.dns_message import QUERY_BYTES_MAX
from voidbox.net.name_service import NameForwarder
from voidbox.net.policy import Gate, Policy, PolicyStatistics
from voidbox.sandbox.keeper.channel import Channel
from voidbox.sandbox.keeper.network import DATAGRAM_BYTES_MAX, PEER, QUERY

_WAITING_MAX = 4096  # queries whose reply may still come
_PER_PASS = 32


class KeptNetwork:
    """The rules, names and sockets of one machine, from its keeper. Thread: loop.

    Args:
        channel: for questions.
        queries: the channel of DNS queries; non-blocking.
        policy: the rules, for what is of the guest's own network alone.
    """

    def __init__(self, channel: Channel, queries: socket.socket, policy: Policy) -> None:
        self._channel = channel
        self._queries = queries
        self._policy = policy
        self._loop: Loop | None = None

    def attach(self, loop: Loop, replied: Callable[[bytes], None]) -> tuple[Gate, NameForwarder]:
        """See Outside."""

        def receive(ready: int) -> None:
            for _ in range(_PER_PASS):
                try:
                    message = self._queries.recv(QUERY.size + DATAGRAM_BYTES_MAX)
                except BlockingIOError:
                    return
                except OSError:
                    message = b""
                if not message:
                    loop.unwatch(self._queries.fileno())
                    return
                replied(message)

        self._loop = loop
        loop.watch(self._queries.fileno(), select.EPOLLIN, receive)
        return _KeptGate(self._channel, self._policy), _KeptForwarder(self._queries)

    def detach(self) -> None:
        """See Outside."""
        if self._loop is not None and self._queries.fileno() >= 0:
            self._loop.unwatch(self._queries.fileno())

    def open_connected(
        self, kind: int, protocol: int, address: int, port: int
    ) -> socket.socket | int:
        """See Outside."""
        try:
            answer, fd = self._channel.ask(
                "connect", kind=kind, protocol=protocol, address=address, port=port
            )
        except OSError as error:
            return error.errno or errno.ECONNRESET
        if fd is None:
            return int(answer["errno"]) or errno.EIO
        is_guarded = answer.get("is_guarded") is True
        family = socket.AF_UNIX if is_guarded else socket.AF_INET
        return socket.socket(family, kind, protocol, fileno=fd)

    def listen(self, forward: Forward) -> tuple[socket.socket, int]:
        """See Outside."""
        answer, fd = self._channel.ask("listen", forward=str(forward))
        if fd is None:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        if forward.is_udp:
            pump = _PumpedSocket(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd))
            return cast(socket.socket, pump), int(answer["port"])
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        sock.setblocking(False)
        return sock, int(answer["port"])


class _KeptGate:
    """The policy, as the stack asks it."""

    def __init__(self, channel: Channel, policy: Policy) -> None:
        self._channel = channel
        self._policy = policy
        self.is_neighbour = policy.is_neighbour

    def target(self, protocol: str, address: int, port: int, now_ns: int) -> int | None:
        """See Policy. For TCP the keeper decides when it is asked to connect: once, not twice."""
        # LOOPBACK is how the gateway is asked for: not what a guest may call by that address.
        if protocol == "TCP" and address not in (self._policy.dns, LOOPBACK):
            return self._policy.host_address(address)
        try:
            answer, _ = self._channel.ask("target", protocol=protocol, address=address, port=port)
        except OSError:
            return None
        target = answer.get("address")
        return target if isinstance(target, int) else None

    def statistics(self) -> PolicyStatistics:
        """See Policy."""
        try:
            answer, _ = self._channel.ask("statistics")
        except OSError:
            return PolicyStatistics({}, 0, 0)
        return PolicyStatistics(answer["refused"], answer["pins"], answer["evicted"])


class _KeptForwarder:
    """Passes queries on, and remembers who asked."""

    def __init__(self, queries: socket.socket) -> None:
        self._queries = queries
        self._waiting: OrderedDict[int, Hashable] = OrderedDict()
        self._number = 0

    def query(
        self, source_key: Hashable, message: bytes, is_tcp: bool, now_ns: int
    ) -> list[Action]:
        """See Forwarder."""
        if len(message) > QUERY_BYTES_MAX:
            return []
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._waiting[self._number] = source_key
        if len(self._waiting) > _WAITING_MAX:
            self._waiting.popitem(last=False)
        with contextlib.suppress(OSError):  # full: lost, as datagrams may be; the guest asks again
            os.write(self._queries.fileno(), QUERY.pack(self._number, is_tcp) + message)
        return []

    def reply(self, server_idx: int, message: bytes, now_ns: int) -> list[Action]:
        """See Forwarder; `message` is what came from the keeper."""
        number, _ = QUERY.unpack_from(message)
        source_key = self._waiting.pop(number, None)
        return [Reply(source_key, message[QUERY.size :])] if source_key is not None else []

    def failed(self, server_idx: int, ids: Iterable[int] | None, now_ns: int) -> list[Action]:
        """See Forwarder."""
        return []

    def expire(self, now_ns: int) -> list[Action]:
        """See Forwarder: the keeper has the time-outs."""
        return []

    def next_deadline_ns(self) -> int | None:
        """See Forwarder."""
        return None


class _PumpedSocket:
    """A published UDP port as a socket that recvfrom and sendto suffice of."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.fileno, self.close = inner.fileno, inner.close
        inner.setblocking(False)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        """See socket.socket."""
        message = self._inner.recv(PEER.size + size)
        if len(message) < PEER.size:
            raise BlockingIOError(errno.EAGAIN, "the keeper is gone")
        raw, port = PEER.unpack_from(message)
        return message[PEER.size :], (socket.inet_ntoa(raw), port)

    def sendto(self, data: bytes, flags: int, peer: tuple[str, int]) -> int:
        """See socket.socket."""
        return self._inner.send(PEER.pack(socket.inet_aton(peer[0]), peer[1]) + data, flags)
