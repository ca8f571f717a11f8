"""The user's terminal as the guest's console: raw mode, escape keys, output that never blocks."""

from __future__ import annotations

import contextlib
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
_TYPED_BYTES_MAX = 64 << 10  # what the guest has not taken; more is dropped, as a terminal does


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


def open_unblocking(fd: int) -> tuple[int, bool]:
    """Return a descriptor for the same file that never blocks the loop; the caller closes it.

    A terminal or pipe is opened anew, so that non-blocking mode stays ours and does not reach
    the shell that shares it. What cannot be opened again is duplicated: a regular file, which does
    not block; a socket, or a terminal of another user's, whose mode is then to be put back: the
    second value says so.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{fd}", flags), False
        except OSError:
            pass
    duplicate = os.dup(fd)
    is_shared = not stat.S_ISREG(mode) and os.get_blocking(duplicate)
    if is_shared:
        os.set_blocking(duplicate, False)
    return duplicate, is_shared


class Terminal:
    """Joins stdin and stdout to a console. Thread: made by the caller, then the loop's.

    Use as a context manager around the machine's whole life: the terminal's mode is restored on
    the way out, whatever happens.

    Args:
        on_quit: called when the user types Ctrl-A x.
        on_broken: called when stdout cannot be written.
        on_hangup: called when the terminal is gone.
    """

    def __init__(
        self,
        loop: EventLoop,
        console: Console,
        on_quit: Callable[[], None],
        on_broken: Callable[[OSError], None],
        on_hangup: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._console = console
        self._on_quit = on_quit
        self._on_hangup = on_hangup
        self._in_fd = sys.stdin.fileno() if sys.stdin is not None else -1
        if sys.stdout is None:
            raise ConfigError("standard output is closed: send it to /dev/null instead")
        self._out_fd, self._makes_blocking = open_unblocking(sys.stdout.fileno())
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
            with contextlib.suppress(termios.error):  # it has hung up
                termios.tcsetattr(self._in_fd, termios.TCSANOW, self._saved_mode)
            self._saved_mode = None
        if self._out_fd >= 0:
            if self._makes_blocking:
                os.set_blocking(self._out_fd, True)
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
        if self._is_tty and data:
            # Watched on: Ctrl-A x must get through to us though the guest takes nothing.
            data, quits = self._escapes.feed(data)
            if quits:
                self._on_quit()
            self._console.send(data[: max(0, _TYPED_BYTES_MAX - self._console.input_bytes)])
            return
        self._loop.unwatch(self._in_fd)  # until the guest has taken this
        if data:
            self._console.send(data)
        else:
            if self._is_tty:
                self._on_hangup()  # the descriptor stays ours, to restore its mode
            else:
                self._in_fd = -1
