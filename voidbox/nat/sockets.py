"""The stack's sockets on the host: TCP, UDP and ping. Thread: loop."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

from voidbox.loop_api import Loop
from voidbox.net.addresses import format_address
from voidbox.net.host import RESET, DatagramOwner, StreamOwner

IOV_MAX = 1024
# How often a silent far end is asked, once the guest's end is silent too.
KEEP_ALIVE_S = 60
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_IN, _OUT, _GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
# struct linger { int l_onoff; int l_linger; };
_LINGER = struct.Struct("@ii")
LOOPBACK = 0x7F00_0001
TCP_SYN_SENT, TCP_CLOSE = 2, 7  # include/net/tcp_states.h
_ABORT = _LINGER.pack(1, 0)
# What an ICMP error about a datagram is to the next system call, which then does nothing else.
_OF_EARLIER_ONES = frozenset((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH))


class _Watched:
    """A socket on the loop, registered for what is of interest.

    Facts it relies on: EPOLLHUP and EPOLLERR are reported whatever mask is registered, again and
    again. So a socket that hung up leaves the loop when nothing is wanted of it, be that before or
    after: its owner has heard, and may take its time.
    """

    def __init__(self, sock: socket.socket, loop: Loop, after: Callable[[], None]) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._after = after
        self._mask: int | None = None  # None: not registered
        self._is_gone = False

    def _register(self, mask: int) -> None:
        wanted = None if self._is_gone and not mask else mask
        if wanted == self._mask or self._fd < 0:
            return
        self._mask = wanted
        if wanted is None:
            self._loop.unwatch(self._fd)
        else:
            self._loop.watch(self._fd, wanted, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        if ready & _GONE:
            self._is_gone = True
        self._handle(ready)
        if self._is_gone and not self._mask:
            self._register(0)
        self._after()

    def _handle(self, ready: int) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        if self._fd >= 0:
            if self._mask is not None:
                self._loop.unwatch(self._fd)
                self._mask = None
            self._fd = -1
            self._socket.close()


class TcpSocket(_Watched):
    """A Stream over a TCP socket.

    Args:
        open_again: for one that is not connected yet: returns another, or an errno, if it is
            refused; None for no other.

    Attributes:
        owner: whom it tells; set once, before anything can happen.
        is_connected: connect() has succeeded.
    """

    owner: StreamOwner

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        after: Callable[[], None],
        open_again: Callable[[], socket.socket | int] | None = None,
    ) -> None:
        super().__init__(sock, loop, after)
        try:
            self.is_connected = _state_of(sock) not in (TCP_SYN_SENT, TCP_CLOSE)
        except OSError:  # of AF_UNIX: it leads to whoever looks at what passes
            self.is_connected = True
        self._open_again = open_again
        self._is_kept_alive = False
        if not self.is_connected:
            self._register(select.EPOLLOUT)

    def _on_ready(self, ready: int) -> None:
        if ready == _IN and self.is_connected:  # as nearly always
            self.owner.ready(True, False)
            self._after()
        else:
            super()._on_ready(ready)

    def _handle(self, ready: int) -> None:
        if self.is_connected:
            is_gone = bool(ready & _GONE)
            self.owner.ready(
                readable=is_gone or bool(ready & _IN), writable=is_gone or bool(ready & _OUT)
            )
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED and self._open_again is not None:
            other, self._open_again = self._open_again(), None
            if not isinstance(other, int):
                self._close()
                self._socket, self._fd, self._is_gone = other, other.fileno(), False
                self._register(select.EPOLLOUT)
                return
        self.is_connected = not error
        self._register(0)
        self.owner.connected(error)

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        """See Stream."""
        try:
            return os.readv(self._fd, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX])
        except BlockingIOError:
            return None
        except OSError:
            return RESET

    def send(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """See Stream."""
        if len(buffers) > IOV_MAX:
            buffers = buffers[:IOV_MAX]
        try:
            return os.writev(self._fd, buffers)
        except BlockingIOError:
            return 0
        except OSError:
            return None

    def shutdown_write(self) -> None:
        """See Stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def watch(self, readable: bool, writable: bool) -> None:
        """See Stream."""
        mask = (_IN if readable else 0) | (_OUT if writable else 0)
        # One of which nothing was wanted yet need not be on the loop for that.
        if mask != (self._mask or 0) and self.is_connected:
            self._register(mask)

    def is_broken(self) -> bool:
        """See Stream."""
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def keep_alive(self) -> None:
        """See Stream."""
        if not self._is_kept_alive and self._fd >= 0:
            self._is_kept_alive = True
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                    self._socket.setsockopt(socket.IPPROTO_TCP, option, KEEP_ALIVE_S)

    def close(self, is_reset: bool) -> None:
        """See Stream."""
        if is_reset and self._fd >= 0:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._close()


class DatagramSocket(_Watched):
    """Datagrams over a connected socket."""

    def __init__(
        self, sock: socket.socket, loop: Loop, after: Callable[[], None], owner: DatagramOwner
    ) -> None:
        super().__init__(sock, loop, after)
        self._owner = owner

    def _handle(self, ready: int) -> None:
        self._register(0)  # until the owner has read everything
        self._owner.ready()

    def send(self, buffers: Sequence[memoryview | bytes]) -> int:
        """See Datagrams."""
        error = self._send(buffers)
        if error in _OF_EARLIER_ONES:
            self._send(buffers)
        return error

    def _send(self, buffers: Sequence[memoryview | bytes]) -> int:
        try:
            if any(buffers):
                os.writev(self._fd, buffers)
            else:  # writev(2) sends no empty datagram
                self._socket.send(b"", _SEND_FLAGS)
        except BlockingIOError:
            return 0  # a full queue loses datagrams, as on any network
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def recv_into(self, buffer: memoryview) -> int | None:
        """See Datagrams."""
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            return -(error.errno or errno.EIO)

    def watch(self, readable: bool) -> None:
        """See Datagrams."""
        self._register(select.EPOLLIN if readable else 0)

    def close(self) -> None:
        """See Datagrams."""
        self._close()


# Takes a kind, SOCK_STREAM or SOCK_DGRAM, a protocol, an address and a port; see open_connected.
OpenConnected = Callable[[int, int, int, int], socket.socket | int]


class HostSockets:
    """Makes sockets for the stack: its Host.

    Args:
        after: called when a socket has told its owner something.
        open_socket: makes them; this process by default.
    """

    def __init__(
        self, loop: Loop, after: Callable[[], None], open_socket: OpenConnected | None = None
    ) -> None:
        self._loop = loop
        self._after = after
        self._open = open_socket or open_connected

    def connect_tcp(self, address: int, port: int, owner: StreamOwner) -> TcpSocket | int:
        """See Host."""
        sock = self._open(socket.SOCK_STREAM, 0, address, port)
        if isinstance(sock, int):
            return sock
        # Refused after all: on the loopback there is another to try.
        again = partial(self._open, socket.SOCK_STREAM, 0, address, port)
        stream = TcpSocket(sock, self._loop, self._after, again if address == LOOPBACK else None)
        stream.owner = owner
        return stream

    def accepted(self, sock: socket.socket) -> TcpSocket:
        """Make a Stream of a connection that a listener took; its owner is to be set."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return TcpSocket(sock, self._loop, self._after)

    def open_udp(self, address: int, port: int, owner: DatagramOwner) -> DatagramSocket | int:
        """See Host."""
        return self._open_datagrams(0, address, port, owner)

    def open_ping(self, address: int, owner: DatagramOwner) -> DatagramSocket | int:
        """See Host; EACCES where net.ipv4.ping_group_range does not have us."""
        return self._open_datagrams(socket.IPPROTO_ICMP, address, 0, owner)

    def _open_datagrams(
        self, protocol: int, address: int, port: int, owner: DatagramOwner
    ) -> DatagramSocket | int:
        sock = self._open(socket.SOCK_DGRAM, protocol, address, port)
        if isinstance(sock, int):
            return sock
        return DatagramSocket(sock, self._loop, self._after, owner)


def open_connected(kind: int, protocol: int, address: int, port: int) -> socket.socket | int:
    """Return a socket that is connected, or for TCP is being so; an errno in place of one.

    Never blocks. Nothing is sent to the host's own addresses, loopback excepted. LOOPBACK is the
    host's 127.0.0.1, and where nobody serves that port there, its ::1.
    """
    try:
        if is_own(address):
            return errno.ECONNREFUSED if kind == socket.SOCK_STREAM else errno.EACCES
        if address == LOOPBACK and kind == socket.SOCK_DGRAM and _serves_ipv6_alone(port):
            return _open_connected(socket.AF_INET6, kind, protocol, ("::1", port))
    except OSError as error:
        return error.errno or errno.EMFILE
    place = (format_address(address), port)
    made = _open_connected(socket.AF_INET, kind, protocol, place)
    if address == LOOPBACK and made == errno.ECONNREFUSED and kind == socket.SOCK_STREAM:
        other = _open_connected(socket.AF_INET6, kind, protocol, ("::1", port))
        return made if isinstance(other, int) else other
    return made


def _open_connected(
    family: int, kind: int, protocol: int, place: tuple[str, int]
) -> socket.socket | int:
    is_tcp = kind == socket.SOCK_STREAM
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        return error.errno or errno.EMFILE
    if is_tcp:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    error_number = _connect(sock, place)
    if is_tcp and error_number == errno.EINPROGRESS:
        # On the loopback it has ended by now, though connect(2) did not wait to see it.
        is_over = _state_of(sock) == TCP_CLOSE
        error_number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if is_over else 0
    if error_number:
        sock.close()
        return error_number
    return sock


def _state_of(sock: socket.socket) -> int:
    """Return the first byte of struct tcp_info: where a TCP connection is in its life."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _serves_ipv6_alone(port: int) -> bool:
    """Whether a program has a UDP port of ::1, and none that of 127.0.0.1.

    A datagram that is sent to nobody would be lost before that is known.
    """
    if {f"0100007F:{port:04X}", f"00000000:{port:04X}"} & _local_places("/proc/net/udp"):
        return False
    return f"{'0' * 24}01000000:{port:04X}" in _local_places("/proc/net/udp6")


def _local_places(path: str) -> set[str]:
    try:
        with open(path, encoding="ascii") as file:
            return {line.split()[1] for line in file}
    except OSError:  # no IPv6, or no /proc
        return set()


def is_own(address: int) -> bool:
    """Whether an address is the host's own, loopback excepted: what listens there is not the world.

    The route to an own address has that address as its source, and connecting a datagram socket
    asks for a route and sends nothing.

    Raises:
        OSError: there is no descriptor left to ask with.
    """
    if address >> 24 == LOOPBACK >> 24:
        return False
    text = format_address(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        return not _connect(probe, (text, 9)) and probe.getsockname()[0] == text


def _connect(sock: socket.socket, place: tuple[str, int]) -> int:
    try:
        return sock.connect_ex(place)
    except OSError as error:
        return error.errno or errno.EIO
