"""The user's terminal as the guest's console: raw mode, escape keys, output that never blocks."""

from __future__ import annotations

import os
import select
import stat
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any

from voidbox.errors import ConfigError
from voidbox.event_loop import EventLoop
from voidbox.vmm.console import Console, FdOutput

ESCAPE = b"\x01"  # Ctrl-A
_READ_BYTES = 4096


class EscapeFilter:
    """Finds Ctrl-A sequences in typed bytes: `x` quits, a second Ctrl-A sends one."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return (what goes to the guest, whether to quit)."""
        out = bytearray()
        for value in data:
            byte = bytes([value])
            if self._escaped:
                self._escaped = False
                if byte in b"xX":
                    return bytes(out), True
                out += byte if byte == ESCAPE else ESCAPE + byte
            elif byte == ESCAPE:
                self._escaped = True
            else:
                out += byte
        return bytes(out), False


def open_unblocking(fd: int) -> int:
    """Return a descriptor for the same file that never blocks the loop; the caller closes it.

    A terminal or pipe is opened anew, so that non-blocking mode stays ours and does not reach
    the shell that shares it. What cannot be opened again is duplicated: regular files, which do
    not block, and sockets.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            pass
    duplicate = os.dup(fd)
    if stat.S_ISSOCK(mode):
        os.set_blocking(duplicate, False)
    return duplicate


class Terminal:
    """Joins stdin and stdout to a console. Thread: made by the caller, then the loop's.

    Use as a context manager around the machine's whole life: the terminal's mode is restored on
    the way out, whatever happens.

    Args:
        on_quit: called when the user types Ctrl-A x.
        on_broken: called when stdout's reader is gone.
    """

    def __init__(
        self,
        loop: EventLoop,
        console: Console,
        on_quit: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._console = console
        self._on_quit = on_quit
        self._in_fd = sys.stdin.fileno() if sys.stdin is not None else -1
        if sys.stdout is None:
            raise ConfigError("standard output is closed: send it to /dev/null instead")
        self._out_fd = open_unblocking(sys.stdout.fileno())
        self._saved_mode: list[Any] | None = None
        self._escapes = EscapeFilter()
        self._is_tty = self._in_fd >= 0 and os.isatty(self._in_fd)
        console.attach(FdOutput(loop, self._out_fd, on_broken))
        console.on_input_empty = self._read_more

    def __enter__(self) -> Terminal:
        if self._is_tty:
            self._saved_mode = termios.tcgetattr(self._in_fd)
            tty.setraw(self._in_fd, termios.TCSANOW)
        self._loop.call_soon(self._read_more)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved_mode is not None:
            termios.tcsetattr(self._in_fd, termios.TCSANOW, self._saved_mode)
            self._saved_mode = None
        if self._out_fd >= 0:
            os.close(self._out_fd)
            self._out_fd = -1

    def _read_more(self) -> None:
        """Ask for input; called again whenever the guest has taken what was read."""
        if self._in_fd < 0:
            return
        try:
            self._loop.watch(self._in_fd, select.EPOLLIN, self._on_readable)
        except PermissionError:  # a regular file: always readable
            self._on_readable(select.EPOLLIN)

    def _on_readable(self, ready: int) -> None:
        try:
            data = os.read(self._in_fd, _READ_BYTES)
        except OSError:
            data = b""
        self._loop.unwatch(self._in_fd)  # until the guest has taken this
        if not data:
            self._in_fd = -1 if not self._is_tty else self._in_fd
            return
        if self._is_tty:
            data, quits = self._escapes.feed(data)
            if quits:
                self._on_quit()
        self._console.send(data)
