"""This process's standard streams, joined to a command in the guest."""

from __future__ import annotations

import os
import select
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from voidbox.agent import protocol
from voidbox.agent.client import RemoteProcess

_READ_BYTES = 64 << 10
_TARGETS = {protocol.STDOUT: 1, protocol.STDERR: 2}


def is_open(fd: int) -> bool:
    """Whether a descriptor is open at all."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def write_all(fd: int, data: bytes) -> None:
    """Write everything, waiting for a slow reader even where others have made `fd` non-blocking.

    Raises:
        OSError: the reader is gone, or the disk is full.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def copy_output(process: RemoteProcess) -> None:
    """Copy a command's output here until it ends.

    Raises:
        OSError: it cannot be written.
    """
    for stream, data in process.output():
        write_all(_TARGETS.get(stream, 1), data)


class InputThread:
    """Copies standard input to a command. What the command does not take stays where it was."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="voidbox-stdin")
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()  # select(2) takes no descriptor from 1024 on
        poll.register(0, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            if any(fd == self._stop_read for fd, _ in poll.poll()):
                return
            try:
                data = os.read(0, _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # a terminal that hung up
                data = b""
            if not data:
                self._process.end_input()
                return
            self._process.write(data)

    def close(self) -> None:
        """End the thread, once the command has ended. Idempotent."""
        if self._stop_write >= 0:
            os.close(self._stop_write)
            self._thread.join()
            os.close(self._stop_read)
            self._stop_write = -1

    def __enter__(self) -> InputThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def window_size() -> tuple[int, int]:
    """Return the rows and columns of the terminal on standard input; 24 and 80 if it has none."""
    columns, rows = os.get_terminal_size(0)
    return (rows, columns) if rows and columns else (24, 80)


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Pass every key on as it is typed, for a while."""
    saved = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        with suppress(termios.error):  # it has hung up
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
