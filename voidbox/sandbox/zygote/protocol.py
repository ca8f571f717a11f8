"""What goes between a program and its zygote: messages of a SOCK_SEQPACKET pair.

    program ──► {"argv": […], "env": {…}}      with three or four descriptors: the pair's end that
                                               answers, the log, the status pipe, the parent's pipe
    zygote ──►  {"pid": N} and a pidfd, or {"errno": N}        to the first of them

Each start has a pair of its own for the answer, so that any thread may ask.
"""

from __future__ import annotations

import json
import socket
from typing import Any

MESSAGE_BYTES_MAX = 128 << 10  # an environment may be long
FDS_MAX = 4


def send(sock: socket.socket, values: dict[str, Any], fds: list[int]) -> None:
    """Send one message. Raises OSError: the other end is gone, or it is too long (EMSGSIZE)."""
    socket.send_fds(sock, [json.dumps(values).encode()], fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and its descriptors; None when the other end is gone."""
    data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES_MAX, FDS_MAX)
    return (json.loads(data) if data else None), list(fds)
