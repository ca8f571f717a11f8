"""How to reach a guest's ports."""

from __future__ import annotations

import re
import socket
import time
from typing import Protocol

_OK_LINE = re.compile(rb"OK [0-9]{1,10}\n")
_OK_LINE_BYTES_MAX = 14


class Endpoint(Protocol):
    """A guest, as far as its agent's client must know it. Thread: any.

    Attributes:
        cid: the guest's vsock address, for messages.
    """

    cid: int

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a vsock port of the guest.

        Raises:
            OSError: nobody listens there, or nobody does yet.
        """
        ...

    def connect_serial(self) -> socket.socket | None:
        """Return a stream to the guest's second serial port, or None if it has none."""
        ...

    def has_ended(self, timeout_s: float) -> bool:
        """Wait so long for the guest's end; whether it has come."""
        ...

    def explain_end(self) -> str:
        """Return how the guest ended, with its console's last lines; "" if it runs, as it seems.

        Raises:
            AgentError: what is to be raised in place of an error that has this story.
        """
        ...


def await_ok(sock: socket.socket, timeout_s: float) -> None:
    """Read the line that answers CONNECT, and nothing after it.

    Raises:
        OSError: the guest refused, or did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        byte = sock.recv(1)
        if not byte or len(line) > _OK_LINE_BYTES_MAX:
            raise ConnectionRefusedError("the guest refused the connection")
        line += byte
    if not _OK_LINE.fullmatch(line):
        raise ConnectionRefusedError(f"no answer to CONNECT: {line!r}")
    sock.settimeout(None)


def connect_vhost(cid: int, port: int, timeout_s: float) -> socket.socket:
    """Connect to a guest whose vsock the host's kernel carries.

    Raises:
        OSError: nobody listens there, or nobody does yet.
    """
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect((cid, port))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


class UnixEndpoint:
    """A guest of another process, through the Unix socket of its vsock device."""

    def __init__(self, path: str, cid: int = 3) -> None:
        self.cid = cid
        self._path = path

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """See Endpoint."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(self._path)
            sock.sendall(b"CONNECT %d\n" % port)
            await_ok(sock, timeout_s)
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_serial(self) -> socket.socket | None:
        """See Endpoint."""
        return None

    def has_ended(self, timeout_s: float) -> bool:
        """See Endpoint: unknown here."""
        time.sleep(timeout_s)
        return False

    def explain_end(self) -> str:
        """See Endpoint: unknown here."""
        return ""
