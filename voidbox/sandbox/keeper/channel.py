"""How a worker asks its keeper: one message a request, one an answer.

A message is JSON in one packet of a SOCK_SEQPACKET pair; a descriptor may come with an answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import socket
import threading
from array import array
from typing import Any

_ONE_FD = socket.CMSG_LEN(4)
# The answer that each connection of the guest waits for: known without taking it apart.
_DONE, _DONE_MESSAGE = {"errno": 0}, b'{"errno": 0}'
MESSAGE_BYTES_MAX = 160 << 10  # less than a socket's default buffer, or it would not be taken


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Inbox:
    """Where messages come in: one buffer for all, as a new one of this size costs a map each.

    It takes no more memory than the longest that came. Thread: one at a time.
    """

    def __init__(self, sock: socket.socket, size_bytes: int) -> None:
        self._socket = sock
        self._buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def receive(self) -> tuple[bytes, list[int]]:
        """Return the next message, b"" at the end, and the descriptors that came with it.

        Raises:
            OSError: as recvmsg(2); BlockingIOError if there is none, and the socket does not wait.
        """
        count, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ONE_FD)
        message = self._buffer[:count]
        if not ancillary:
            return message, []
        fds = array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return message, fds.tolist()


class Channel:
    """The asking end. Thread: any; one question at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._inbox = Inbox(sock, MESSAGE_BYTES_MAX)

    def ask(self, op: str, **values: object) -> tuple[dict[str, Any], int | None]:
        """Ask; return the answer, and the descriptor that came with it, which is the caller's.

        Raises:
            OSError: ECONNRESET: the keeper is gone.
        """
        message = json.dumps({"op": op, **values}).encode()
        with self._lock:
            os.write(self._socket.fileno(), message)
            data, fds = self._inbox.receive()
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the sandbox's keeper is gone")
        answer = _DONE.copy() if data == _DONE_MESSAGE else json.loads(data.decode())
        return answer, fds[0] if fds else None

    def hand_over(self, op: str, fd: int) -> None:
        """Give the keeper a descriptor; raises OSError."""
        socket.send_fds(self._socket, [json.dumps({"op": op}).encode()], [fd])

    def close(self) -> None:
        """Close it. Idempotent."""
        self._socket.close()


def send_answer(sock: socket.socket, values: dict[str, object], fd: int | None = None) -> None:
    """Answer, at the keeper's end. An asker that is gone, or reads nothing, hears nothing."""
    message = _DONE_MESSAGE if values == _DONE else json.dumps(values).encode()
    with contextlib.suppress(OSError):
        if fd is None:
            sock.send(message)
        else:
            socket.send_fds(sock, [message], [fd])


def parse(data: bytes) -> dict[str, Any]:
    """Return a question; {} for what is none: the asker may be anybody's by now."""
    try:
        values = json.loads(data.decode())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
