"""How a host's program is reached, for a guest that connects to it."""

from __future__ import annotations

import socket


def connect_unix(path: str) -> socket.socket:
    """Return a non-blocking socket that is connected to a Unix socket.

    Raises:
        OSError: nobody listens there, or its backlog is full.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
