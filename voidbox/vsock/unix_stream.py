"""A connection's end on the host: a connected Unix stream socket on the event loop."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from functools import partial

from voidbox.loop_api import Loop
from voidbox.vsock.link import Link
from voidbox.vsock.packet import VIRTIO_VSOCK_SHUTDOWN_RCV, VIRTIO_VSOCK_SHUTDOWN_SEND

IOV_MAX = 1024
# What the kernel may hold of the guest's data for the program; clipped to net.core.wmem_max.
SEND_BUFFER_BYTES = 1 << 20

_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


class UnixStream:
    """The HostStream of a Unix socket. Thread: loop.

    Facts it relies on: EPOLLHUP means that both directions are shut, and is reported whatever
    mask is registered, again and again. So a socket that hung up leaves the loop as soon as there
    is nothing to read from it, while one that waits only for that is registered with mask 0.

    Args:
        sock: connected and non-blocking; owned from here on.
        on_ready: called with the stream and the events.

    Attributes:
        has_hung_up: EPOLLHUP was reported; for whom on_ready calls to say.
    """

    def __init__(
        self, sock: socket.socket, loop: Loop, on_ready: Callable[[UnixStream, int], None]
    ) -> None:
        self.link: Link | None = None
        self._socket = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._on_ready = partial(on_ready, self)
        self._mask: int | None = None  # None: not registered
        self.has_hung_up = False
        self._shutdown = 0
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def recv_into(self, buffers: list[memoryview]) -> int | None:
        """Read into guest memory. File descriptors sent along are closed by the kernel."""
        try:
            return os.readv(self._fd, buffers[:IOV_MAX])
        except BlockingIOError:
            return None
        except OSError:  # ECONNRESET: the program closed without reading all it got
            return 0

    def send(self, buffers: list[memoryview]) -> int | None:
        """Send from guest memory."""
        try:
            return os.writev(self._fd, buffers[:IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError:
            return None

    def shutdown(self, flags: int) -> None:
        """Pass the guest's half-close on."""
        new = flags & ~self._shutdown
        self._shutdown |= flags
        with contextlib.suppress(OSError):
            if new & VIRTIO_VSOCK_SHUTDOWN_SEND:
                self._socket.shutdown(socket.SHUT_WR)
            if new & VIRTIO_VSOCK_SHUTDOWN_RCV:
                self._socket.shutdown(socket.SHUT_RD)

    def established(self, host_port: int) -> None:
        """Answer the program's CONNECT; the socket is empty, so the line fits."""
        with contextlib.suppress(OSError):
            self._socket.send(b"OK %d\n" % host_port, _SEND_FLAGS)

    def watch(self, readable: bool, writable: bool) -> None:
        """Register what is of interest, if it changed."""
        mask: int | None = (select.EPOLLIN if readable else 0) | (
            select.EPOLLOUT if writable else 0
        )
        if self.has_hung_up and mask == 0:
            mask = None
        if mask == self._mask or self._fd < 0:
            return
        if mask is None:
            self._loop.unwatch(self._fd)
        else:
            self._loop.watch(self._fd, mask, self._on_ready)
        self._mask = mask

    def close(self) -> None:
        """Leave the loop and close the socket. Idempotent."""
        if self._fd < 0:
            return
        if self._mask is not None:
            self._loop.unwatch(self._fd)
        self._mask = None
        self._fd = -1
        self._socket.close()
