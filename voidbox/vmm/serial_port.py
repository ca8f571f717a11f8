"""A UART as a byte stream for a program of the host: one at a time."""

from __future__ import annotations

import select
import socket
from functools import partial

from voidbox.devices.serial import Serial
from voidbox.loop_api import Loop

_INPUT_BYTES = 4 << 10
_GATHER_S = 0.001
_SETTLE_S = 0.02


class SerialPort:
    """Moves bytes between a UART and a socket. Thread: loop, but for `connect`.

    Both directions are bounded: a program that does not read makes the transmitter busy, a guest
    that does not read is sent nothing more. Output that nobody is connected for is dropped.
    """

    def __init__(self, loop: Loop, serial: Serial) -> None:
        self._loop = loop
        self._serial = serial
        self._socket: socket.socket | None = None
        self._input = b""
        self._output = b""
        self._is_pump_due = False
        serial.on_output = lambda: loop.call_soon(self._pump_shortly)
        serial.on_input_room = lambda: loop.call_soon(self._feed)
        # A moment later: a starting driver empties the receiver; see Serial.
        serial.on_listening = lambda: loop.call_soon(self._feed_shortly)

    def connect(self) -> socket.socket:
        """Return the program's end of a new stream; the one before ends. Thread: any."""
        ours, theirs = socket.socketpair()
        self.adopt(ours)
        return theirs

    def adopt(self, sock: socket.socket) -> None:
        """Be the other end of a stream; the one before ends. Thread: any."""
        sock.setblocking(False)
        self._loop.call_soon(partial(self._take, sock))

    def _take(self, sock: socket.socket) -> None:
        self._drop()
        self._socket = sock
        self._watch()
        self._pump()

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._input = self._output = b""

    def _watch(self) -> None:
        if self._socket is not None:
            events = (0 if self._input else select.EPOLLIN) | (
                select.EPOLLOUT if self._output else 0
            )
            self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        sock = self._socket
        if sock is None:
            return
        if not self._input and ready & ~select.EPOLLOUT:
            try:
                self._input = sock.recv(_INPUT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._input = b""
            if not self._input:
                self._drop()
                return
            self._feed()
        elif ready & (select.EPOLLHUP | select.EPOLLERR):
            self._drop()  # the program is gone before the guest took all that it said
        if ready & select.EPOLLOUT:
            self._pump()

    def _feed_shortly(self) -> None:
        self._loop.call_later(_SETTLE_S, self._feed)

    def _feed(self) -> None:
        if self._input:
            self._input = self._input[self._serial.receive(self._input) :]
        self._watch()

    def _pump_shortly(self) -> None:
        """Let a burst gather: a wake-up per byte would cost the guest more than the byte itself."""
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_later(_GATHER_S, self._pump)

    def _pump(self) -> None:
        """Hand the guest's output on.

        Taken once a pass: a guest that writes without end must not keep the loop here, and the
        next byte after a take calls on_output again.
        """
        self._is_pump_due = False
        self._send()
        if not self._output:
            self._output = self._serial.take_output()
            self._send()
        self._watch()

    def _send(self) -> None:
        """Send what was taken; what the program does not take now waits."""
        if self._socket is None:
            self._output = b""
        elif self._output:
            try:
                self._output = self._output[self._socket.send(self._output) :]
            except BlockingIOError:
                pass
            except OSError:
                self._drop()

    def close(self) -> None:
        """End the stream. Idempotent. Thread: loop, or any once the loop is stopped."""
        self._drop()
