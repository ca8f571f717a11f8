"""A console's line whose other end is in another process: a stream."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from voidbox.event_loop import EventLoop

_READ_BYTES = 64 << 10


class SocketLine:
    """A Line (see vmm.console). Thread: loop, where nothing else is said.

    Nobody reads while an output is slow: then the guest waits, as at a UART.

    Attributes:
        ended: set when nothing more will come.
    """

    def __init__(self, loop: EventLoop, sock: socket.socket) -> None:
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        self.on_output = self.on_input_room = self.on_listening = nothing
        self.ended = threading.Event()
        self._loop = loop
        self._input = sock
        self._output = sock.dup()  # both directions are watched by themselves
        sock.setblocking(False)
        loop.call_soon(self._wait_for_output)

    def take_output(self) -> bytes:
        """See Line."""
        if self.ended.is_set():
            return b""
        try:
            data = self._output.recv(_READ_BYTES)
        except BlockingIOError:
            self._wait_for_output()
            return b""
        except OSError:
            data = b""
        if not data:
            self.ended.set()
        return data

    def _wait_for_output(self) -> None:
        if self._output.fileno() >= 0:
            self._loop.watch(self._output.fileno(), select.EPOLLIN, self._readable)

    def _readable(self, ready: int) -> None:
        self._loop.unwatch(self._output.fileno())
        self.on_output()

    def receive(self, data: bytes) -> int:
        """See Line."""
        try:
            return self._input.send(data)
        except BlockingIOError:
            self._loop.watch(self._input.fileno(), select.EPOLLOUT, self._writable)
            return 0
        except OSError:
            return len(data)  # nobody takes it any more

    def _writable(self, ready: int) -> None:
        self._loop.unwatch(self._input.fileno())
        self.on_input_room()

    def close(self) -> None:
        """Hang up. Idempotent. Once the loop is stopped."""
        for sock in (self._input, self._output):
            if sock.fileno() >= 0:
                self._loop.unwatch(sock.fileno())
                sock.close()
