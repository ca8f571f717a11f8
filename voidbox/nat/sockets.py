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
LOOPBACK = 0x7F00_0001  # what a port of the host stands for; ::1 if nobody listens there
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

    Args:
        port: of the loopback, where ::1 is to be tried too; 0 for any other place.

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
        is_connected: bool,
        port: int = 0,
    ) -> None:
        super().__init__(sock, loop, after)
        self.is_connected = is_connected
        self._port = port
        self._is_kept_alive = False
        if not is_connected:
            self._register(select.EPOLLOUT)

    def _handle(self, ready: int) -> None:
        if self.is_connected:
            is_gone = bool(ready & _GONE)
            self.owner.ready(
                readable=is_gone or bool(ready & select.EPOLLIN),
                writable=is_gone or bool(ready & select.EPOLLOUT),
            )
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED and self._port:
            error = self._turn_to_ipv6()
            if error == errno.EINPROGRESS:
                return
        self.is_connected = not error
        self._register(0)
        self.owner.connected(error)

    def _turn_to_ipv6(self) -> int:
        made = _connect_loopback6(socket.SOCK_STREAM, self._port)
        self._port = 0
        if isinstance(made, int):
            return made
        sock, error = made
        self._close()
        self._socket, self._fd, self._is_gone = sock, sock.fileno(), False
        if error:
            self._register(select.EPOLLOUT)
        return error

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
            return self._socket.sendmsg(buffers, (), _SEND_FLAGS)
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
        if self.is_connected:
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
    """Datagrams over a connected socket.

    Args:
        port: of the loopback, where ::1 is to be tried too; 0 for any other place.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        after: Callable[[], None],
        owner: DatagramOwner,
        port: int = 0,
    ) -> None:
        super().__init__(sock, loop, after)
        self._owner = owner
        self._port = port  # until somebody has answered

    def _handle(self, ready: int) -> None:
        self._register(0)  # until the owner has read everything
        self._owner.ready()

    def send(self, buffers: Sequence[memoryview | bytes]) -> int:
        """See Datagrams."""
        error = self._send(buffers)
        if self._port and not error:
            # On the loopback the answer that nobody is there is there at once.
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED and self._turn_to_ipv6():
            error = self._send(buffers)
        return error

    def _turn_to_ipv6(self) -> bool:
        """Where nobody is on 127.0.0.1: whether another one may be on ::1."""
        port, self._port = self._port, 0
        made = _connect_loopback6(socket.SOCK_DGRAM, port) if port else errno.ECONNREFUSED
        if isinstance(made, int):
            return False
        self._close()
        self._socket, _ = made
        self._fd, self._is_gone = self._socket.fileno(), False
        return True

    def _send(self, buffers: Sequence[memoryview | bytes]) -> int:
        try:
            self._socket.sendmsg(buffers, (), _SEND_FLAGS)
        except BlockingIOError:
            return 0  # a full queue loses datagrams, as on any network
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def recv_into(self, buffer: memoryview) -> int | None:
        """See Datagrams."""
        try:
            size = self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ECONNREFUSED and self._turn_to_ipv6():
                return None  # what was sent is lost, as datagrams may be
            return -(error.errno or errno.EIO)
        self._port = 0
        return size

    def watch(self, readable: bool) -> None:
        """See Datagrams."""
        self._register(select.EPOLLIN if readable else 0)

    def close(self) -> None:
        """See Datagrams."""
        self._close()


class HostSockets:
    """Makes sockets for the stack: its Host.

    Args:
        after: called when a socket has told its owner something.
    """

    def __init__(self, loop: Loop, after: Callable[[], None]) -> None:
        self._loop = loop
        self._after = after

    def connect_tcp(self, address: int, port: int, owner: StreamOwner) -> TcpSocket | int:
        """See Host."""
        try:
            if is_own(address):
                return errno.ECONNREFUSED
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return error.errno or errno.EMFILE
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error_number = _connect_stream(sock, (format_address(address), port))
        if error_number == errno.ECONNREFUSED and address == LOOPBACK:
            sock.close()
            made = _connect_loopback6(socket.SOCK_STREAM, port)
            if isinstance(made, int):
                return made
            sock, error_number = made
            port = 0
        if error_number not in (0, errno.EINPROGRESS):
            sock.close()
            return error_number
        is_connected = not error_number
        other_port = port if address == LOOPBACK else 0
        stream = TcpSocket(sock, self._loop, self._after, is_connected, other_port)
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
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            sock = socket.socket(socket.AF_INET, kind, protocol)
        except OSError as error:
            return error.errno or errno.EMFILE
        try:
            error_number = errno.EACCES if is_own(address) else _connect(sock, address, port)
        except OSError as error:
            error_number = error.errno or errno.EMFILE
        if error_number:
            sock.close()
            return error_number
        other_port = port if address == LOOPBACK else 0
        return DatagramSocket(sock, self._loop, self._after, owner, other_port)


def is_own(address: int) -> bool:
    """Whether an address is the host's own, loopback excepted: what listens there is not the world.

    The route to an own address has that address as its source, and connecting a datagram socket
    asks for a route and sends nothing.

    Raises:
        OSError: there is no descriptor left to ask with.
    """
    if address >> 24 == LOOPBACK >> 24:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        return not _connect(probe, address, 9) and probe.getsockname()[0] == format_address(address)


def _connect_stream(sock: socket.socket, place: tuple[str, int]) -> int:
    """Begin to connect; returns 0 if that was all, EINPROGRESS, or another errno."""
    try:
        error = sock.connect_ex(place)
        # On the loopback it has ended by now, but a call that found it under way does not tell.
        if error == errno.EINPROGRESS:
            error = sock.connect_ex(place)
        return errno.EINPROGRESS if error == errno.EALREADY else error
    except OSError as error:
        return error.errno or errno.EIO


def _connect_loopback6(kind: int, port: int) -> tuple[socket.socket, int] | int:
    """Connect to ::1.

    Returns:
        The socket, and 0 or EINPROGRESS; ECONNREFUSED if nobody is there either, or no IPv6.
    """
    try:
        sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    except OSError:
        return errno.ECONNREFUSED
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    error = _connect_stream(sock, ("::1", port))
    if error not in (0, errno.EINPROGRESS):
        sock.close()
        return errno.ECONNREFUSED
    return sock, error


def _connect(sock: socket.socket, address: int, port: int) -> int:
    try:
        return sock.connect_ex((format_address(address), port))
    except OSError as error:
        return error.errno or errno.EIO
