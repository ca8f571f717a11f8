"""The host's end of the guest's console: bounded both ways, with the tail kept for post-mortems."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Protocol

from voidbox.event_loop import EventLoop

TAIL_BYTES = 16 << 10
_GATHER_S = 0.001
_SETTLE_S = 0.02
_TAIL_LINES_SHOWN = 20


class Output(Protocol):
    """Where console output goes. Thread: loop."""

    def write(self, data: bytes) -> bool:
        """Take all of `data`; False if no more is wanted until `resume` is called."""

    def set_resume(self, resume: Callable[[], None]) -> None:
        """Hand over what to call when more is wanted again."""


class Line(Protocol):
    """What a console is at the end of: a UART, or a stream to one. Thread: any.

    Attributes:
        on_output: called when there is output again after there was none.
        on_input_room: called when more can be received again.
        on_listening: called when the guest begins to take input.
    """

    on_output: Callable[[], None]
    on_input_room: Callable[[], None]
    on_listening: Callable[[], None]

    def take_output(self) -> bytes:
        """Return what the guest has written since."""
        ...

    def receive(self, data: bytes) -> int:
        """Take input; return how much of it."""
        ...


class Console:
    """Moves bytes between a UART and the host. Thread: loop, where nothing else is said."""

    def __init__(self, loop: EventLoop, serial: Line) -> None:
        self._loop = loop
        self._serial = serial
        self._outputs: list[Output] = []
        self._waiting_for: set[Output] = set()
        self._tail = bytearray()
        self._input = bytearray()
        self._on_flushed: list[Callable[[], None]] = []
        self.on_input_empty: Callable[[], None] = lambda: None
        serial.on_output = lambda: loop.call_soon(self._pump_shortly)
        serial.on_input_room = lambda: loop.call_soon(self._feed)
        serial.on_listening = lambda: loop.call_soon(self._feed_shortly)

    def attach(self, output: Output) -> None:
        """Send all output from now on to `output` too. Before the machine's start."""

        def resume() -> None:
            self._waiting_for.discard(output)
            self._pump()

        output.set_resume(resume)
        self._outputs.append(output)

    def send(self, data: bytes) -> None:
        """Type `data` into the guest's console. Thread: any; keeps the order of one thread."""
        self._loop.call_soon(lambda: self._queue_input(data))

    @property
    def input_bytes(self) -> int:
        """How much of what was typed the guest has not taken. Thread: loop."""
        return len(self._input)

    def text(self) -> str:
        """Return the last TAIL_BYTES of output as printable lines. Thread: any."""
        lines = bytes(self._tail).decode("utf-8", "replace").split("\n")
        clean = ("".join(c for c in line if c.isprintable() or c == "\t") for line in lines)
        return "\n".join(line for line in clean if line)

    def tail(self) -> str:
        """Return the last lines of output, as many as an error message bears. Thread: any."""
        return "\n".join(self.text().splitlines()[-_TAIL_LINES_SHOWN:])

    def flush(self, on_done: Callable[[], None]) -> None:
        """Call `on_done` once every output has taken everything. The guest must have ended."""
        self._on_flushed.append(on_done)
        self._pump()

    def _pump_shortly(self) -> None:
        """Let a burst gather: a wake-up per byte would cost the guest more than the byte itself."""
        self._loop.call_later(_GATHER_S, self._pump)

    def _feed_shortly(self) -> None:
        """Feed once the guest's driver has settled; see Serial."""
        self._loop.call_later(_SETTLE_S, self._feed)

    def _pump(self) -> None:
        # While one output is slow nothing is taken, the UART fills, and the guest waits.
        while not self._waiting_for:
            data = self._serial.take_output()
            if not data:
                callbacks, self._on_flushed = self._on_flushed, []
                for callback in callbacks:
                    callback()
                return
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            self._waiting_for = {output for output in self._outputs if not output.write(data)}

    def _queue_input(self, data: bytes) -> None:
        self._input += data
        self._feed()

    def _feed(self) -> None:
        if self._input:
            accepted = self._serial.receive(bytes(self._input))
            del self._input[:accepted]
        if not self._input:
            self.on_input_empty()


class FdOutput:
    """Writes to a descriptor that is in non-blocking mode or never blocks. Thread: loop.

    Args:
        on_broken: called once when it cannot be written; from then on all output is dropped.
    """

    def __init__(self, loop: EventLoop, fd: int, on_broken: Callable[[OSError], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_broken = on_broken
        self._pending = b""
        self._broken = False
        self._resume: Callable[[], None] = lambda: None

    def set_resume(self, resume: Callable[[], None]) -> None:
        """See Output."""
        self._resume = resume

    def write(self, data: bytes) -> bool:
        """See Output."""
        self._pending += data
        while self._pending and not self._broken:
            try:
                written = os.write(self._fd, self._pending)
            except BlockingIOError:
                self._loop.watch(self._fd, select.EPOLLOUT, self._on_writable)
                return False
            except OSError as error:
                self._broken = True
                self._loop.unwatch(self._fd)
                self._on_broken(error)
                break
            self._pending = self._pending[written:]
        self._pending = b""
        return True

    def _on_writable(self, ready: int) -> None:
        self._loop.unwatch(self._fd)
        if self.write(b""):
            self._resume()


class CallbackOutput:
    """Hands output to a callable, as a program that embeds a machine wants it. Thread: loop."""

    def __init__(self, callback: Callable[[bytes], None]) -> None:
        self._callback = callback

    def set_resume(self, resume: Callable[[], None]) -> None:
        """See Output; a callable always takes everything."""

    def write(self, data: bytes) -> bool:
        """See Output."""
        self._callback(data)
        return True


def wait_flushed(loop: EventLoop, console: Console, timeout_s: float | None) -> bool:
    """Wait until all console output has been taken. Thread: any but the loop."""
    done = threading.Event()
    loop.call_soon(lambda: console.flush(done.set))
    return done.wait(timeout_s)
