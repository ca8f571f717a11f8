"""The second serial port's stream."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from voidbox.vmm.serial_port import SerialPort

ROUNDS_MAX = 1000


class FakeLoop:
    """Runs calls at once, timers never."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        pass

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        pass

    def unwatch(self, fd: int) -> None:
        pass


class FakeSerial:
    """A guest that has always written more; its reader is as fast."""

    def __init__(self) -> None:
        self.taken = 0
        self.reader: socket.socket | None = None

    def take_output(self) -> bytes:
        self.taken += 1
        assert self.taken < ROUNDS_MAX, "the loop does nothing else any more"
        if self.reader is not None and self.taken > 1:
            self.reader.recv(4096)
        return b"x"


def test_a_guest_that_writes_without_end_leaves_the_loop_time_for_others() -> None:
    serial: Any = FakeSerial()
    loop: Any = FakeLoop()
    port = SerialPort(loop, serial)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    serial.reader = theirs
    port._take(ours)
    assert theirs.recv(10)
    port.close()
    theirs.close()
