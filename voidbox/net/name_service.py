"""The guest's DNS server: its two ports, joined to the forwarder and to the host's resolvers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from voidbox.net.dns import Action, Reply, SendTcp, SendUdp
from voidbox.net.dns_message import QUERY_BYTES_MAX, ParseError, Splitter, frame
from voidbox.net.host import RESET, StreamOwner

DNS_PORT = 53
# Replies that the guest does not read, on one connection; then its queries wait.
_UNREAD_BYTES_MAX = 256 << 10


class Resolvers(Protocol):
    """The host's name servers. What they answer comes in by NameService.replied and failed."""

    def send_udp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """Send a query."""
        ...

    def send_tcp(self, server_idx: int, upstream_id: int, message: bytes) -> None:
        """Send a query over TCP."""
        ...


class NameForwarder(Protocol):
    """What decides about queries and replies, here or in another process; see dns.Forwarder."""

    def query(
        self, source_key: Hashable, message: bytes, is_tcp: bool, now_ns: int
    ) -> list[Action]: ...
    def reply(self, server_idx: int, message: bytes, now_ns: int) -> list[Action]: ...
    def failed(self, server_idx: int, ids: Iterable[int] | None, now_ns: int) -> list[Action]: ...
    def expire(self, now_ns: int) -> list[Action]: ...
    def next_deadline_ns(self) -> int | None: ...


class NameService:
    """Thread: loop.

    Attributes:
        send_datagram: set by the stack: sends a message to a UDP port of the guest.
        on_query: set by the stack: next_deadline_ns() may have become earlier.
    """

    def __init__(self, forwarder: NameForwarder, resolvers: Resolvers) -> None:
        self.send_datagram: Callable[[int, bytes], None] = lambda port, message: None
        self.on_query: Callable[[], None] = lambda: None
        self._forwarder = forwarder
        self._resolvers = resolvers
        self._now_ns = 0

    # From the guest.

    def query(self, guest_port: int, message: bytes, now_ns: int) -> None:
        """Take a query that came by UDP."""
        self._now_ns = now_ns
        self._perform(self._forwarder.query(guest_port, message, False, now_ns))
        self.on_query()

    def accept(self, owner: StreamOwner, now_ns: int) -> NameStream:
        """Serve a TCP connection of the guest."""
        self._now_ns = now_ns
        return NameStream(self, owner)

    def query_by_stream(self, stream: NameStream, message: bytes) -> None:
        """Take a query that came by TCP."""
        self._perform(self._forwarder.query(stream, message, True, self._now_ns))
        self.on_query()

    # From the resolvers.

    def replied(self, server_idx: int, message: bytes, now_ns: int) -> None:
        """A resolver has answered."""
        self._now_ns = now_ns
        self._perform(self._forwarder.reply(server_idx, message, now_ns))

    def failed(self, server_idx: int, ids: Iterable[int] | None, now_ns: int) -> None:
        """Queries did not get to a resolver; None for all that it has."""
        self._now_ns = now_ns
        self._perform(self._forwarder.failed(server_idx, ids, now_ns))

    def next_deadline_ns(self) -> int | None:
        """When on_time() is to be called next."""
        return self._forwarder.next_deadline_ns()

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
        self._now_ns = now_ns
        self._perform(self._forwarder.expire(now_ns))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                if isinstance(action.source_key, NameStream):
                    action.source_key.answer(action.message)
                elif isinstance(action.source_key, int):
                    self.send_datagram(action.source_key, action.message)
            elif isinstance(action, SendUdp):
                self._resolvers.send_udp(action.server_idx, action.upstream_id, action.message)
            elif isinstance(action, SendTcp):
                self._resolvers.send_tcp(action.server_idx, action.upstream_id, action.message)


class NameStream:
    """One TCP connection of the guest to its DNS server: a Stream without a socket."""

    is_connected = True

    def __init__(self, service: NameService, owner: StreamOwner) -> None:
        self._service = service
        self._owner = owner
        self._splitter = Splitter(QUERY_BYTES_MAX)
        self._unread = bytearray()
        self._asked = self._answered = 0
        self._has_ended = False
        self._is_broken = False

    def send(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """See Stream: bytes of the guest."""
        if self._is_broken or len(self._unread) > _UNREAD_BYTES_MAX:
            return None
        data = b"".join(buffers)
        try:
            for message in self._splitter.feed(data):
                self._asked += 1
                self._service.query_by_stream(self, message)
        except ParseError:
            self._is_broken = True
            return None
        return len(data)

    def answer(self, message: bytes) -> None:
        """Send a message to the guest."""
        self._answered += 1
        self._unread += frame(message)
        self._owner.ready(readable=True, writable=False)

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        """See Stream: bytes for the guest."""
        if self._is_broken:
            return RESET
        if not self._unread:
            return 0 if self._has_ended and self._asked == self._answered else None
        done = 0
        for buffer in buffers:
            part = self._unread[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        del self._unread[:done]
        return done

    def shutdown_write(self) -> None:
        """See Stream."""
        self._has_ended = True
        self._owner.ready(readable=True, writable=False)

    def watch(self, readable: bool, writable: bool) -> None:
        """See Stream: the owner is told at once."""

    def is_broken(self) -> bool:
        """See Stream."""
        return self._is_broken

    def keep_alive(self) -> None:
        """See Stream: there is no far end."""

    def close(self, is_reset: bool) -> None:
        """See Stream: late answers go nowhere."""
        self._owner = _Nobody()


class _Nobody:
    def connected(self, error: int) -> None:
        pass

    def ready(self, readable: bool, writable: bool) -> None:
        pass
