"""DIAL: a stream to what listens on a TCP port of the guest, its loopback included."""

from __future__ import annotations

import os
import socket
from collections import deque

from guest_agent import arguments
from guest_agent.connection import Request, RequestError
from guest_agent.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PORT_MAX = 0xFFFF
# Where a server that listens on "localhost" may be.
_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Dial(Request):
    """Connect to a port of the guest.

    Values: port. Answers: EVENT {connected: true}, then DATA as it comes; DATA from the client goes
    the other way, and its END closes that way. RESULT {} once the server has closed its side.
    Fails with ECONNREFUSED where nobody listens.
    """

    def start(self, values: dict[str, Any]) -> None:
        self._socket: socket.socket | None = None
        self._is_connected = False
        self._is_input_ended = False
        self._unwritten: deque[bytes] = deque()
        self._written = 0  # bytes of _unwritten[0]
        self._port = arguments.integer(values, "port", low=1)
        if self._port > _PORT_MAX:
            raise RequestError("EINVAL", f"no TCP port has the number {self._port}")
        self._addresses = iter(_ADDRESSES)
        self._connect(OSError(0, ""))

    def _connect(self, error: OSError) -> None:
        """Try the next address; with none left, fail as the first one did."""
        self._close_socket()
        family, address = next(self._addresses, (None, ""))
        if family is None:
            raise error
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as failure:  # a kernel without IPv6
            self._connect(error if error.errno else failure)
            return
        self._socket = sock
        try:
            sock.connect((address, self._port))
        except BlockingIOError:
            self.loop.watch(sock.fileno(), WRITE, self._on_connect)
        except OSError as failure:
            self._connect(error if error.errno else failure)
        else:
            self._begin()

    def _on_connect(self, ready: int) -> None:
        assert self._socket is not None
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if number:
                self._connect(OSError(number, os.strerror(number)))
            else:
                self._begin()
        except OSError as failure:  # nobody above us on the loop could answer
            self.fail_by(failure)

    def _begin(self) -> None:
        assert self._socket is not None
        self._is_connected = True
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.event({"connected": True})
        if not self.is_done:
            self._write()
            self._watch()

    def _watch(self) -> None:
        if self._socket is None or not self._is_connected:
            return
        events = (READ if self.room else 0) | (WRITE if self._unwritten else 0)
        if events:
            self.loop.watch(self._socket.fileno(), events, self._on_ready)
        else:
            self.loop.unwatch(self._socket.fileno())

    def _on_ready(self, ready: int) -> None:
        if ready & WRITE:
            self._write()
        if ready & ~WRITE and not self.is_done:
            self._read()
        self._watch()

    def _read(self) -> None:
        room = self.room
        if self._socket is None or not room:
            return
        try:
            data = self._socket.recv(room)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail_by(error)
            return
        if data:
            self.send(data)
        else:
            self.result({})

    def on_room(self) -> None:
        self._watch()

    def on_data(self, data: bytes) -> None:
        self._unwritten.append(data)
        self._write()
        self._watch()

    def on_end(self, values: dict[str, Any]) -> None:
        self._is_input_ended = True
        self._write()

    def _write(self) -> None:
        """Give the server what there is; who sends more than it takes gets no credit for it."""
        if self._socket is None or not self._is_connected:
            return
        try:
            while self._unwritten:
                data = self._unwritten[0]
                self._written += self._socket.send(memoryview(data)[self._written :])
                if self._written == len(data):
                    self._unwritten.popleft()
                    self._written = 0
                    self.used(data)
            if self._is_input_ended:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError as error:
            self._unwritten.clear()
            self.fail_by(error)

    def on_close(self) -> None:
        self._unwritten.clear()
        self._close_socket()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
