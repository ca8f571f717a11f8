"""Published ports: host programs reach ports of the guest. Changeable while the machine runs."""

from __future__ import annotations

import contextlib
import errno
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError, HostError
from voidbox.loop_api import Loop, TimerHandle
from voidbox.named_tuple import NamedTuple
from voidbox.nat.sockets import HostSockets
from voidbox.net.addresses import parse_address
from voidbox.net.datagram_flows import DATAGRAM_BYTES_MAX
from voidbox.net.host import DatagramOwner

if TYPE_CHECKING:  # the keeper has none
    from voidbox.net.stack import Stack

_ACCEPTS_PER_PASS = 64
_ACCEPT_PAUSE_S = 0.1
_BACKLOG = 1024
_PEER_QUEUE_MAX = 64  # datagrams of one peer that wait for the guest
_PEER_QUEUE_BYTES_MAX = 256 << 10
_PATTERN = r"(?:([0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?"


class Forward(NamedTuple):
    """One published port.

    Attributes:
        host_ip: where the host listens; loopback unless said otherwise.
        host_port: there; 0 for any that is free.
        guest_port: in the guest.
        is_udp: UDP; else TCP.
    """

    host_ip: str
    host_port: int
    guest_port: int
    is_udp: bool

    def __str__(self) -> str:
        protocol = "/udp" if self.is_udp else ""
        return f"{self.host_ip}:{self.host_port}:{self.guest_port}{protocol}"


def parse_forward(text: str) -> Forward:
    """Parse [IP:]HOSTPORT:GUESTPORT[/udp].

    Raises:
        ConfigError: it is not that.
    """
    match = re.fullmatch(_PATTERN, text)
    host_ip = (match[1] if match else None) or "127.0.0.1"
    if (
        match is None
        or parse_address(host_ip) is None
        or int(match[2]) > 65535
        or not 0 < int(match[3]) <= 65535
    ):
        raise ConfigError(f"publish {text!r}: give [IP:]HOSTPORT:GUESTPORT[/udp], as in 8080:80")
    return Forward(host_ip, int(match[2]), int(match[3]), match[4] == "udp")


def listen(forward: Forward) -> tuple[socket.socket, int]:
    """Return a socket that is bound, and listens if it is TCP, and the host's port that it has.

    Raises:
        OSError: the host's port is taken, or not ours to take.
    """
    kind = socket.SOCK_DGRAM if forward.is_udp else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if not forward.is_udp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((forward.host_ip, forward.host_port))
        if not forward.is_udp:
            sock.listen(_BACKLOG)
        return sock, sock.getsockname()[1]
    except BaseException:
        sock.close()
        raise


def check_free(forward: Forward) -> None:
    """See that a port of the host can be had now.

    Raises:
        HostError: it is taken, or not ours to take.
    """
    try:
        listen(forward)[0].close()
    except OSError as error:
        raise refusal(forward, error) from error


def refusal(forward: Forward, error: OSError) -> HostError:
    """Return the error of a port that cannot be published."""
    reasons = {
        errno.EADDRINUSE: "another program has that port: choose another",
        errno.EACCES: "ports below 1024 need privileges: choose another",
        errno.EADDRNOTAVAIL: "that address is not this host's",
    }
    reason = reasons.get(error.errno or 0, error.strerror or "it failed")
    return HostError(f"cannot publish {forward}: {reason}", error.errno or 0)


class Forwards:
    """All published ports of one guest. Thread: loop.

    Args:
        after: called when something was done that the guest must be told.
        listen_on: makes the sockets; see listen().
    """

    def __init__(
        self,
        loop: Loop,
        stack: Stack,
        sockets: HostSockets,
        after: Callable[[], None],
        listen_on: Callable[[Forward], tuple[socket.socket, int]] | None = None,
    ) -> None:
        self._loop = loop
        self._stack = stack
        self._sockets = sockets
        self._after = after
        self._listen = listen_on or listen
        self._open: dict[Forward, _TcpForward | _UdpForward] = {}

    def add(self, forward: Forward) -> Forward:
        """Publish a port; returns it with the host's port that it got.

        Raises:
            HostError: the host's port is taken, or not ours to take.
        """
        try:
            sock, host_port = self._listen(forward)
        except OSError as error:
            raise refusal(forward, error) from error
        forward = forward._replace(host_port=host_port)
        if forward.is_udp:
            self._open[forward] = _UdpForward(self._loop, sock, forward, self._stack, self._after)
        else:
            self._open[forward] = _TcpForward(
                self._loop, sock, forward, self._stack, self._sockets, self._after
            )
        return forward

    def remove(self, forward: Forward) -> bool:
        """Publish it no longer; False if it was not. Connections that exist go on."""
        found = self._open.pop(forward, None)
        if found is not None:
            found.close()
        return found is not None

    def list(self) -> list[Forward]:
        """Return what is published."""
        return list(self._open)

    def close(self) -> None:
        """Publish nothing more. Idempotent."""
        while self._open:
            self._open.popitem()[1].close()


class _TcpForward:
    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        forward: Forward,
        stack: Stack,
        sockets: HostSockets,
        after: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._forward = forward
        self._stack = stack
        self._sockets = sockets
        self._after = after
        self._pause: TimerHandle | None = None
        self._resume()

    def _resume(self) -> None:
        self._pause = None
        self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, ready: int) -> None:
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                # Out of descriptors: the listener stays ready, so look away for a moment.
                self._loop.unwatch(self._listener.fileno())
                self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                break
            stream = self._sockets.accepted(sock)
            now_ns = time.monotonic_ns()
            flow = self._stack.open_to_guest(self._forward.guest_port, stream, now_ns)
            if flow is None:
                stream.close(is_reset=True)
            else:
                stream.owner = flow
        self._after()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.unwatch(self._listener.fileno())
        self._listener.close()


class _UdpForward:
    """Each peer gets a port of the gateway, by which the guest answers it."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        forward: Forward,
        stack: Stack,
        after: Callable[[], None],
    ) -> None:
        self._loop = loop
        self.socket = sock
        self._forward = forward
        self._stack = stack
        self._after = after
        self._peers: dict[tuple[str, int], _Peer] = {}
        loop.watch(sock.fileno(), select.EPOLLIN, self._receive)

    def _receive(self, ready: int) -> None:
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                data, address = self.socket.recvfrom(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error about something that was sent
            peer = self._peers.get(address)
            if peer is None:
                peer = _Peer(self, address)
                peer.owner = self._stack.open_datagrams_to_guest(
                    self._forward.guest_port, peer, time.monotonic_ns()
                )
                self._peers[address] = peer
            peer.deliver(data)
        self._after()

    def forget(self, address: tuple[str, int]) -> None:
        self._peers.pop(address, None)

    def close(self) -> None:
        self._loop.unwatch(self.socket.fileno())
        self.socket.close()


class _Peer:
    """The Datagrams of one peer of a published UDP port."""

    owner: DatagramOwner

    def __init__(self, forward: _UdpForward, address: tuple[str, int]) -> None:
        self._forward = forward
        self._address = address
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0

    def deliver(self, data: bytes) -> None:
        self._queue.append(data)
        self._queue_bytes += len(data)
        while len(self._queue) > _PEER_QUEUE_MAX or self._queue_bytes > _PEER_QUEUE_BYTES_MAX:
            self._queue_bytes -= len(self._queue.popleft())  # the oldest go first
        self.owner.ready()

    def send(self, buffers: Sequence[memoryview | bytes]) -> int:
        with contextlib.suppress(OSError):  # lost, as datagrams may be
            self._forward.socket.sendto(b"".join(buffers), socket.MSG_DONTWAIT, self._address)
        return 0

    def recv_into(self, buffer: memoryview) -> int | None:
        if not self._queue:
            return None
        data = self._queue.popleft()
        self._queue_bytes -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def watch(self, readable: bool) -> None:
        pass

    def close(self) -> None:
        self._forward.forget(self._address)
