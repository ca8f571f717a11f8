"""The stack's sockets on the host: TCP, UDP and ping. Thread: loop."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence

from voidbox.loop_api import Loop
from voidbox.net.addresses import format_address
from voidbox.net.host import RESET, DatagramOwner, StreamOwner

IOV_MAX = 1024
# How often a silent far end is asked, once the guest's end is silent too.
KEEP_ALIVE_S = 60
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_GONE = select.EPOLLHUP | select.EPOLLERR
# struct linger { int l_onoff; int l_linger; };
_LINGER = struct.Struct("@ii")
_LOOPBACK_NETWORK = 127
_ABORT = _LINGER.pack(1, 0)


class _Watched:
    """A socket on the loop, registered for what is of interest.

    Facts it relies on: EPOLLHUP and EPOLLERR are reported whatever mask is registered, again and
    again. So a socket that hung up leaves the loop when nothing is wanted of it.
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

    Attributes:
        owner: whom it tells; set once, before anything can happen.
    """

    owner: StreamOwner

    def __init__(
        self, sock: socket.socket, loop: Loop, after: Callable[[], None], is_connected: bool
    ) -> None:
        super().__init__(sock, loop, after)
        self._is_connected = is_connected
        self._is_kept_alive = False
        if not is_connected:
            self._register(select.EPOLLOUT)

    def _handle(self, ready: int) -> None:
        if self._is_connected:
            is_gone = bool(ready & _GONE)
            self.owner.ready(
                readable=is_gone or bool(ready & select.EPOLLIN),
                writable=is_gone or bool(ready & select.EPOLLOUT),
            )
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._is_connected = not error
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
        if self._is_connected:
            mask = select.EPOLLIN if readable else 0
            self._register(mask | select.EPOLLOUT if writable else mask)

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
        stream = TcpSocket(sock, self._loop, self._after, is_connected=False)
        stream.owner = owner
        return stream

    def accepted(self, sock: socket.socket) -> TcpSocket:
        """Make a Stream of a connection that a listener took; its owner is to be set."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return TcpSocket(sock, self._loop, self._after, is_connected=True)

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

    Never blocks. Nothing is sent to the host's own addresses, loopback excepted.
    """
    is_tcp = kind == socket.SOCK_STREAM
    try:
        if is_own(address):
            return errno.ECONNREFUSED if is_tcp else errno.EACCES
        sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        return error.errno or errno.EMFILE
    if is_tcp:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    error_number = _connect(sock, address, port)
    if error_number and not (is_tcp and error_number == errno.EINPROGRESS):
        sock.close()
        return error_number
    return sock


def is_own(address: int) -> bool:
    """Whether an address is the host's own, loopback excepted: what listens there is not the world.

    The route to an own address has that address as its source, and connecting a datagram socket
    asks for a route and sends nothing.

    Raises:
        OSError: there is no descriptor left to ask with.
    """
    if address >> 24 == _LOOPBACK_NETWORK:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        return not _connect(probe, address, 9) and probe.getsockname()[0] == format_address(address)


def _connect(sock: socket.socket, address: int, port: int) -> int:
    try:
        return sock.connect_ex((format_address(address), port))
    except OSError as error:
        return error.errno or errno.EIO
