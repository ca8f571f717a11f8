"""Serves the control socket of a sandbox's process; see control.

Only processes of the same user (and root's) are served. Whoever is silent, slow or talks nonsense
costs a thread, and is sent away when others need its place. Who finds no place waits for one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping

from voidbox.errors import ConfigError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.control import BECOMES, REQUEST_BYTES_MAX, describe_error, encode
from voidbox.vsock.unix_listener import UnixListener

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 32
_LINE_S = 30.0  # for a whole request to come, from the one before
_SEND_S = 10.0
_SILENCE_S = 1.0  # from here on one has to leave when others need the place
_ACCEPT_PAUSE_S = 0.1  # after running out of descriptors, or of places
_RECV_BYTES = 64 << 10

# struct ucred { pid_t pid; uid_t uid; gid_t gid; };
_UCRED = struct.Struct("@iII")
assert _UCRED.size == 12


class Later(NamedTuple):
    """An answer that is to come.

    Attributes:
        ready_fd: readable once it is there; stays the handler's.
        answer: what it is then.
    """

    ready_fd: int
    answer: Callable[[], dict[str, object]]


class Becomes(NamedTuple):
    """An answer after which the connection is something else, and no more of ours.

    Attributes:
        take: takes the connection, once the answer is sent.
    """

    values: dict[str, object]
    take: Callable[[socket.socket], None]


Answer = dict[str, object] | Later | Becomes
Handler = Callable[[dict[str, object]], Answer]


class ControlServer:
    """Serves a sandbox's control socket. Thread: any; each connection has one of its own.

    Args:
        path: the socket to listen on.
        handlers: by the op's name; called on any thread, several at once. A VoidboxError of theirs
            goes to the client.
    Raises:
        ConfigError, HostError: the socket cannot be made.
    """

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._served_uids = {os.geteuid(), 0}
        self._lock = threading.Lock()  # covers _connections
        self._connections: list[_Connection] = []
        self._listener = UnixListener(path)
        self._closing_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="voidbox-control")

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def hide(self) -> None:
        """Remove the socket's name: nobody else connects. Idempotent."""
        with contextlib.suppress(OSError):
            os.unlink(self._listener.path)

    def close(self) -> None:
        """Remove the socket and end every connection, after answers that are ready. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        os.eventfd_write(self._closing_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.join()
        os.close(self._closing_fd)

    def _accept(self) -> None:
        listener, closing_fd = self._listener.socket, self._closing_fd
        while not _wait_readable(listener.fileno(), closing_fd, None):
            try:
                sock = listener.accept()[0] if self._has_room() else None
            except BlockingIOError:
                continue
            except OSError:
                sock = None
            if sock is None:  # the listener stays ready
                _wait_readable(closing_fd, closing_fd, _ACCEPT_PAUSE_S)
                continue
            if _peer_uid(sock) in self._served_uids:
                self._take(sock)
            else:
                sock.close()

    def _take(self, sock: socket.socket) -> None:
        connection = _Connection(sock, self._closing_fd, self._answer, self._forget)
        with self._lock:
            self._connections.append(connection)
        try:
            connection.start()
        except RuntimeError:
            self._forget(connection)
            connection.refuse("the host gives no thread: end other processes")

    def _has_room(self) -> bool:
        """Whether there is a place; else who has been silent for long has to leave."""
        with self._lock:
            if len(self._connections) < CONNECTIONS_MAX:
                return True
            silent = [(one.silent_s(), index) for index, one in enumerate(self._connections)]
            longest_s, index = max(silent)
            if longest_s >= _SILENCE_S:
                self._connections[index].hang_up()
            return False

    def _forget(self, connection: _Connection) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._connections.remove(connection)

    def _answer(self, line: bytes) -> Answer:
        try:
            return self._handle(line)
        except VoidboxError as error:
            return describe_error(error)
        except Exception as error:  # a fault of ours: told to both sides
            log.exception("the request %.200r failed", line)
            return {"ok": False, "error": f"voidbox failed: {error!r}", "kind": "host"}

    def _handle(self, line: bytes) -> Answer:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            raise ConfigError('a request is a JSON object with an "op", on one line')
        handler = self._handlers.get(request["op"])
        if handler is None:
            known = ", ".join(self._handlers)
            raise ConfigError(f"no op {request['op'][:40]!r}; there are {known}")
        return handler(request)


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid


class _Connection:
    """One client, on its own thread."""

    def __init__(
        self,
        sock: socket.socket,
        closing_fd: int,
        answer: Callable[[bytes], Answer],
        on_end: Callable[[_Connection], None],
    ) -> None:
        self._silent_since: float | None = time.monotonic()  # None while it waits for us
        self._socket = sock
        self._closing_fd = closing_fd
        self._answer = answer
        self._on_end = on_end
        self._received = b""
        self._is_given_away = False
        self._thread = threading.Thread(target=self._serve, name="voidbox-control-client")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def silent_s(self) -> float:
        """Return for how long it has asked nothing; 0 while it waits for an answer."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def refuse(self, message: str) -> None:
        """Send an error instead of serving it. Never blocks."""
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            self._socket.send(encode({"ok": False, "error": message, "kind": "host"}))
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._socket.settimeout(_SEND_S)
            while not self._is_given_away and (line := self._read_line()) is not None:
                self._silent_since = None
                self._send(self._answer(line))
                self._silent_since = time.monotonic()
        except OSError:
            pass  # it left, or does not read
        finally:
            self._on_end(self)
            if not self._is_given_away:
                self._socket.close()

    def _read_line(self) -> bytes | None:
        """Return the next line; None at the end, of the client, its time or the server."""
        deadline = time.monotonic() + _LINE_S
        while b"\n" not in self._received:
            if len(self._received) > REQUEST_BYTES_MAX:
                problem = f"a request is at most {REQUEST_BYTES_MAX} bytes long"
                self._send({"ok": False, "error": problem, "kind": "config"})
                return None
            left_s = max(0.0, deadline - time.monotonic())
            if _wait_readable(self._socket.fileno(), self._closing_fd, left_s) or not left_s:
                return None
            data = self._socket.recv(_RECV_BYTES)
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _send(self, answer: Answer) -> None:
        if isinstance(answer, Later):
            if not self._wait_ready(answer.ready_fd):
                raise ConnectionResetError
            answer = answer.answer()
        if isinstance(answer, Becomes):
            self._socket.sendall(encode({"ok": True, BECOMES: True, **answer.values}))
            self._is_given_away = True
            answer.take(self._socket)
        else:
            self._socket.sendall(encode({"ok": True, **answer}))

    def _wait_ready(self, ready_fd: int) -> bool:
        """Wait; False if the client leaves, or the server ends, before."""
        poll = select.poll()
        poll.register(ready_fd, select.POLLIN)
        poll.register(self._closing_fd, select.POLLIN)
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return ready_fd in {fd for fd, _ in poll.poll()}


def _wait_readable(fd: int, closing_fd: int, timeout_s: float | None) -> bool:
    """Wait for either; whether the server closes."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(closing_fd, select.POLLIN)
    ready = poll.poll(None if timeout_s is None else timeout_s * 1000)
    return closing_fd in {fd for fd, _ in ready}
