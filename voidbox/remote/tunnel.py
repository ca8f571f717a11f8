"""A socket whose other end is a guest's agent, by way of a server's WebSocket."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time

from voidbox.errors import AgentError
from voidbox.remote.server import BASE, Server
from voidbox.remote.websocket import Frames, Opcode, Opening, Refused, encode

_READ_BYTES = 64 << 10
_BUFFER_BYTES_MAX = 256 << 10  # each way; who sends more waits
_PING_S = 30.0  # what stands between may forget connections that are silent for long
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def connect(server: Server, path: str, timeout_s: float) -> socket.socket:
    """Return a socket to what the server has at a path below /voidbox/v1.

    Raises:
        OSError: the server cannot be reached, or cannot reach the guest; it says why.
    """
    sock = server.dial(timeout_s)
    try:
        rest = _open(server, sock, path, timeout_s)
        ours, theirs = socket.socketpair()
    except AgentError as error:
        sock.close()
        raise ConnectionRefusedError(_why(error)) from error
    except BaseException:
        sock.close()
        raise
    pump = _Pump(sock, ours, rest)
    threading.Thread(target=pump.run, name="voidbox-tunnel", daemon=True).start()
    return theirs


def _open(server: Server, sock: socket.socket, path: str, timeout_s: float) -> bytes:
    """Have the WebSocket opened; return what came behind the answer."""
    address, opening = server.address, Opening()
    deadline = time.monotonic() + timeout_s
    host = address.url.partition("://")[2].partition("/")[0]
    sock.settimeout(timeout_s)
    sock.sendall(opening.request(host, f"{address.prefix}{BASE}{path}", server.headers))
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(_READ_BYTES)
        if not data:
            raise AgentError("the server closed the connection")
        rest = opening.feed(data)
        if rest is not None:
            return rest


def _why(error: AgentError) -> str:
    if isinstance(error, Refused):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(json.loads(error.body)["message"])
    return str(error)


class _Pump:
    """Moves bytes between both, until either ends. Thread: its own."""

    def __init__(self, server: socket.socket, local: socket.socket, rest: bytes) -> None:
        self._server = server
        self._local = local
        self._frames = Frames()
        self._to_server = bytearray()
        self._to_local = bytearray()
        self._is_over = False
        self._take(rest)

    def run(self) -> None:
        self._server.setblocking(False)
        self._local.setblocking(False)
        try:
            while not self._is_over:
                self._step()
        except (OSError, AgentError):
            pass  # whoever uses the other end sees that it is over
        finally:
            self._local.close()
            with contextlib.suppress(OSError):
                self._server.send(encode(Opcode.CLOSE, b""))
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
            self._to_server += encode(Opcode.PING, b"")
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
                    self._to_server += encode(Opcode.BINARY, data)

    def _move_server(self, may_read: bool) -> None:
        with contextlib.suppress(*_AGAIN):
            if self._to_server:
                del self._to_server[: self._server.send(self._to_server)]
        if may_read:
            with contextlib.suppress(*_AGAIN):
                data = self._server.recv(_READ_BYTES)
                self._is_over |= not data
                self._take(data)

    def _take(self, data: bytes) -> None:
        for opcode, payload in self._frames.feed(data):
            if opcode is Opcode.CLOSE:
                self._is_over = True
            elif opcode is Opcode.PING:
                self._to_server += encode(Opcode.PONG, payload)
            elif opcode in (Opcode.BINARY, Opcode.CONTINUATION):
                self._to_local += payload
        if self._is_over and self._to_local:
            with contextlib.suppress(OSError):  # the last bytes, as far as they are taken
                self._local.send(self._to_local)
