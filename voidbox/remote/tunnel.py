"""A socket whose other end is a guest's agent, by way of a server's WebSocket."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator

from voidbox.errors import AgentError, ConfigError
from voidbox.remote.server import BASE, Server

try:
    from wsproto import WSConnection
    from wsproto.connection import ConnectionType
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Event,
        Ping,
        RejectConnection,
        RejectData,
        Request,
    )
    from wsproto.utilities import ProtocolError
except ImportError as error:
    raise ConfigError(
        f"the package {error.name} is missing: pip install 'voidbox-kvm[remote]'"
    ) from error

_READ_BYTES = 64 << 10
_BUFFER_BYTES_MAX = 256 << 10  # each way; who sends more waits
_ANSWER_BYTES_MAX = 16 << 10  # of why a server refuses
_PING_S = 30.0  # what stands between may forget connections that are silent for long
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def connect(server: Server, path: str, timeout_s: float) -> socket.socket:
    """Return a socket to what the server has at a path below /voidbox/v1.

    Raises:
        OSError: the server cannot be reached, or cannot reach the guest; it says why.
    """
    sock = server.dial(timeout_s)
    try:
        websocket = _open(server, sock, path, timeout_s)
        ours, theirs = socket.socketpair()
    except AgentError as error:
        sock.close()
        raise ConnectionRefusedError(str(error)) from error
    except BaseException:
        sock.close()
        raise
    pump = _Pump(sock, ours, websocket)
    threading.Thread(target=pump.run, name="voidbox-tunnel", daemon=True).start()
    return theirs


def _open(server: Server, sock: socket.socket, path: str, timeout_s: float) -> WSConnection:
    """Return the WebSocket, once the server has accepted it; RFC 6455 §4.1."""
    address = server.address
    deadline = time.monotonic() + timeout_s
    websocket = WSConnection(ConnectionType.CLIENT)
    request = Request(
        host=address.url.partition("://")[2].partition("/")[0],
        target=f"{address.prefix}{BASE}{path}",
        extra_headers=[(name.encode(), value.encode()) for name, value in server.headers.items()],
    )
    sock.settimeout(timeout_s)
    sock.sendall(websocket.send(request))
    status, body = 0, b""
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(_READ_BYTES)
        if not data:
            raise AgentError(_why(status, body) if status else "the server closed the connection")
        for event in _events(websocket, data):
            if isinstance(event, AcceptConnection):
                return websocket
            if isinstance(event, RejectConnection):
                status = event.status_code
            if isinstance(event, RejectData):
                body += bytes(event.data)
            is_over = isinstance(event, RejectData) and event.body_finished
            if is_over or len(body) > _ANSWER_BYTES_MAX:
                raise AgentError(_why(status, body))


def _events(websocket: WSConnection, data: bytes) -> Iterator[Event]:
    """Yield what comes of the server's bytes.

    Raises:
        AgentError: it breaks the protocol.
    """
    try:
        websocket.receive_data(data)
        yield from websocket.events()
    except ProtocolError as error:
        raise AgentError(f"the server speaks no WebSocket: {error}") from error


def _why(status: int, body: bytes) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["message"])
    return f"the server refuses the connection: {status}"


class _Pump:
    """Moves bytes between both, until either ends. Thread: its own."""

    def __init__(
        self, server: socket.socket, local: socket.socket, websocket: WSConnection
    ) -> None:
        self._server = server
        self._local = local
        self._websocket = websocket
        self._to_server = bytearray()
        self._to_local = bytearray()
        self._is_over = False
        self._take(websocket.events())  # what came behind the answer

    def run(self) -> None:
        self._server.setblocking(False)
        self._local.setblocking(False)
        try:
            while not self._is_over:
                self._step()
        except (OSError, AgentError, ProtocolError):
            pass  # whoever uses the other end sees that it is over
        finally:
            self._local.close()
            with contextlib.suppress(OSError, ProtocolError):  # or it was the server that closed
                self._server.send(self._websocket.send(CloseConnection(code=1000)))
            self._server.close()

    def _step(self) -> None:
        may_read = len(self._to_local) < _BUFFER_BYTES_MAX
        is_pending = may_read and isinstance(self._server, ssl.SSLSocket) and self._server.pending()
        poll = select.poll()
        poll.register(
            self._server,
            (select.POLLIN if may_read else 0) | (select.POLLOUT if self._to_server else 0),
        )
        wants = select.POLLIN if len(self._to_server) < _BUFFER_BYTES_MAX else 0
        poll.register(self._local, wants | (select.POLLOUT if self._to_local else 0))
        ready = poll.poll(0 if is_pending else _PING_S * 1000)
        if not ready and not is_pending:
            self._to_server += self._websocket.send(Ping())
            return
        for fd, _ in ready:
            if fd == self._local.fileno():
                self._move_local()
        self._move_server(may_read)

    def _move_local(self) -> None:
        with contextlib.suppress(*_AGAIN):
            if self._to_local:
                del self._to_local[: self._local.send(self._to_local)]
        if len(self._to_server) < _BUFFER_BYTES_MAX:
            with contextlib.suppress(*_AGAIN):
                data = self._local.recv(_READ_BYTES)
                self._is_over |= not data
                if data:
                    self._to_server += self._websocket.send(BytesMessage(data))

    def _move_server(self, may_read: bool) -> None:
        with contextlib.suppress(*_AGAIN):
            if self._to_server:
                del self._to_server[: self._server.send(self._to_server)]
        if may_read:
            with contextlib.suppress(*_AGAIN):
                data = self._server.recv(_READ_BYTES)
                self._is_over |= not data
                if data:
                    self._take(_events(self._websocket, data))

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, CloseConnection):
                self._is_over = True
            elif isinstance(event, Ping):
                self._to_server += self._websocket.send(event.response())
            elif isinstance(event, BytesMessage):
                self._to_local += event.data
        if self._is_over and self._to_local:
            with contextlib.suppress(OSError):  # the last bytes, as far as they are taken
                self._local.send(self._to_local)
