"""The agent's listeners, and what carries a connection's bytes: sockets and the serial line."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from functools import partial

from guest_agent import mounts, protocol
from guest_agent.activity import Activity
from guest_agent.commands import Attach, Exec, Kill, Processes, ProcessTable, Resize
from guest_agent.connection import Connection, Request, Secret
from guest_agent.dial import Dial
from guest_agent.file_write import FileWrite, Parts
from guest_agent.files import (
    FileLink,
    FileList,
    FileMkdir,
    FileRead,
    FileRemove,
    FileRename,
    FileStat,
)
from guest_agent.generation import Adopt, Generation, Quiesce, Release
from guest_agent.loop import READ, WRITE, Loop, Timer, log
from guest_agent.serial_link import OPEN, SerialLink
from guest_agent.system import Metrics, SetClock, Shutdown
from guest_agent.watch import FileWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from guest_agent.cgroups import Groups
    from guest_agent.identity import Identity

AGENT_VERSION = "1"
CAPABILITIES = (
    *("exec", "pty", "background", "files", "watch", "metrics", "clock", "shutdown"),
    *(protocol.CAN_RESUME, protocol.CAN_LINK, protocol.CAN_ADOPT, protocol.CAN_HOLES),
    *(protocol.CAN_KEEP, protocol.CAN_DIAL, protocol.CAN_DETAIL),
)
# Who only looks does not use the guest.
_UNCOUNTED = frozenset((protocol.METRICS, protocol.SET_CLOCK))
CONNECTIONS_MAX = 2048
_BACKLOG = 1024
_READ_BYTES = 256 << 10
_WRITE_BYTES = 256 << 10
_buffer = bytearray(_READ_BYTES)  # one for all: to allocate so much means to map it each time
_ACCEPTS_PER_PASS = 64
_ACCEPT_PAUSE_S = 0.1


class Agent:
    """Everything that serves clients.

    Args:
        secret: what a client must show.
        on_shutdown: called with True for a reboot.
        load_identity: returns what changes the guest itself, when it is first needed; None where
            the agent is a program of a machine that is not its own.
        groups: see ProcessTable.
    """

    def __init__(
        self,
        loop: Loop,
        secret: bytes,
        on_shutdown: Callable[[bool], None],
        load_identity: Callable[[], Identity] | None = None,
        groups: Groups | None = None,
    ) -> None:
        self._loop = loop
        self._secret = Secret(secret)
        self._connections: set[Connection] = set()
        table = ProcessTable(groups)
        generation = Generation(loop, table, load_identity, self._adopt)
        self._activity = Activity(lambda: self._is_busy(table))
        self._handlers: dict[int, Callable[[Connection, int], Request]] = {
            protocol.EXEC: partial(Exec, table),
            protocol.ATTACH: partial(Attach, table),
            protocol.PROCESSES: partial(Processes, table),
            protocol.KILL: partial(Kill, table),
            protocol.RESIZE: partial(Resize, table),
            protocol.FILE_READ: FileRead,
            protocol.FILE_WRITE: partial(FileWrite, Parts(loop)),
            protocol.FILE_LIST: FileList,
            protocol.FILE_STAT: FileStat,
            protocol.FILE_MKDIR: FileMkdir,
            protocol.FILE_REMOVE: FileRemove,
            protocol.FILE_RENAME: FileRename,
            protocol.FILE_WATCH: FileWatch,
            protocol.FILE_LINK: FileLink,
            protocol.METRICS: Metrics,
            protocol.SET_CLOCK: SetClock,
            protocol.SHUTDOWN: partial(Shutdown, on_shutdown),
            protocol.QUIESCE: partial(Quiesce, generation),
            protocol.RELEASE: partial(Release, generation),
            protocol.ADOPT: partial(Adopt, generation),
            protocol.DIAL: Dial,
        }
        for type in protocol.REQUESTS - _UNCOUNTED:
            self._handlers[type] = partial(self._use, self._handlers[type])

    def _use(
        self, make: Callable[[Connection, int], Request], connection: Connection, number: int
    ) -> Request:
        self._activity.use()
        return make(connection, number)

    def _is_busy(self, table: ProcessTable) -> bool:
        return any(connection.has_requests for connection in self._connections) or any(
            process.end is None for process in table
        )

    def connection(self, is_serial: bool = False) -> Connection:
        """Return a new client's connection."""
        connection = Connection(
            self._loop,
            self._handlers,
            self._secret,
            self._hello,
            is_serial,
            self._connections.discard,
        )
        self._connections.add(connection)
        return connection

    def _hello(self) -> dict[str, Any]:
        return {
            "version": AGENT_VERSION,
            "capabilities": [*CAPABILITIES, *mounts.capabilities()],
            "idle_s": self._activity.idle_s(),
        }

    def _adopt(self, adopter: Connection, secret: bytes) -> None:
        """Be another's guest: who came by the old secret has to leave."""
        self._secret.value = secret
        for connection in self._connections - {adopter}:
            connection.end()

    def serve_socket(self, listener: socket.socket) -> None:
        """Serve everybody who connects to a listening socket."""
        listener.listen(_BACKLOG)
        _Listener(self._loop, listener, self.connection)

    def serve_vsock(self) -> None:
        """Listen on vsock.

        Raises:
            OSError: this kernel has no vsock.
        """
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, protocol.AGENT_PORT))
        self.serve_socket(listener)

    def serve_serial(self, fd: int) -> None:
        """Serve the one client at the other end of a terminal line in raw mode."""
        _SerialCarrier(self._loop, fd, partial(self.connection, is_serial=True))


class _Listener:
    def __init__(
        self, loop: Loop, listener: socket.socket, connect: Callable[[], Connection]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._connect = connect
        self._carriers: set[_SocketCarrier] = set()
        listener.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        self._loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, ready: int) -> None:
        for _ in range(_ACCEPTS_PER_PASS):
            if len(self._carriers) >= CONNECTIONS_MAX:
                self._pause()
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors: it stays ready, so look away a while
                log(f"cannot take a connection: {error.strerror}")
                self._pause()
                return
            sock.setblocking(False)
            self._carriers.add(
                _SocketCarrier(self._loop, sock, self._connect(), self._carriers.discard)
            )

    def _pause(self) -> None:
        self._loop.unwatch(self._listener.fileno())
        self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)


class _SocketCarrier:
    """Carries a connection's bytes over a socket."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        connection: Connection,
        on_close: Callable[[_SocketCarrier], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._connection = connection
        self._on_close = on_close
        self._is_blocked = False
        self._is_open = True
        connection.on_outgoing = self._flush
        loop.watch(sock.fileno(), READ, self._on_ready)
        loop.call_later(protocol.HANDSHAKE_S, self._check_handshake)

    def _check_handshake(self) -> None:
        if not self._connection.is_authenticated:
            self._close()

    def _on_ready(self, ready: int) -> None:
        if ready & WRITE:
            self._is_blocked = False
            self._loop.watch(self._socket.fileno(), READ, self._on_ready)
            self._flush()
            self._connection.resume()
        if ready & ~WRITE and self._is_open:
            try:
                count = self._socket.recv_into(_buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if count:
                self._connection.receive(bytes(memoryview(_buffer)[:count]))
            else:
                self._close()

    def _flush(self) -> None:
        while self._is_open and not self._is_blocked and self._connection.has_outgoing:
            data = self._connection.take_outgoing(_WRITE_BYTES)
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close()
                return
            if sent < len(data):
                self._connection.undo(data[sent:])
                self._is_blocked = True
                self._loop.watch(self._socket.fileno(), READ | WRITE, self._on_ready)
        if self._connection.is_ended and not self._connection.has_outgoing:
            self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._on_close(self)
            self._connection.close()


class _SerialCarrier:
    """Carries one connection at a time over a line, each in a session of the serial link."""

    def __init__(self, loop: Loop, fd: int, connect: Callable[[], Connection]) -> None:
        self._loop = loop
        self._fd = fd
        self._connect = connect
        self._link = SerialLink()
        self._generation = 0
        self._connection: Connection | None = None
        self._unwritten = b""
        self._timer: Timer | None = None
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        if ready & ~WRITE:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                data = b""
            except OSError as error:
                log(f"the serial line is gone: {error.strerror}")
                self._loop.unwatch(self._fd)
                return
            self._link.feed(data, time.monotonic_ns())
            self._follow_session()
        self._go_on()

    def _go_on(self) -> None:
        """Write what is due, then let requests that ran out of room add to it.

        Not in _pump: a request that is just sending would be called in the middle of that.
        """
        self._pump()
        self._follow_session()  # the line may have been given up
        if self._connection is not None and self._link.room:
            self._connection.resume()

    def _follow_session(self) -> None:
        """Hand on what came; a new session is a new client, and the old one is gone."""
        link = self._link
        is_new = link.generation != self._generation
        if self._connection is not None and (is_new or link.state != OPEN):
            self._connection.close()
            self._connection = None
        if is_new and link.state == OPEN:
            self._generation = link.generation
            self._connection = self._connect()
            self._connection.on_outgoing = self._pump
        data = link.receive()
        if data and self._connection is not None:
            self._connection.receive(data)

    def _pump(self) -> None:
        """Write what is due now, and come back when the line or the clock asks for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, connection = self._link, self._connection
        if connection is not None:
            while connection.has_outgoing and link.room:
                link.send(connection.take_outgoing(link.room))
        if not self._unwritten:
            self._unwritten = link.to_write(time.monotonic_ns())
        self._write()
        if connection is not None and connection.is_ended:
            self._end(connection)
        deadline_ns = link.deadline_ns
        if deadline_ns is not None:
            delay = max(0, deadline_ns - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay, self._go_on)

    def _end(self, connection: Connection) -> None:
        """The client broke the protocol: once it has been told why, end the session."""
        connection.close()
        if not connection.has_outgoing and self._link.is_idle:
            self._connection = None
            self._link.close()
            self._unwritten += self._link.to_write(time.monotonic_ns())
            self._write()

    def _write(self) -> None:
        if self._unwritten:
            with contextlib.suppress(BlockingIOError):
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten) :]
        self._loop.watch(self._fd, READ | WRITE if self._unwritten else READ, self._on_ready)
