"""A person at a terminal: runs a command on a pty, types, and waits for what it prints."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence


class Session:
    """A command whose terminal is ours. Use as a context manager: it never outlives the block.

    Attributes:
        screen: all output so far.
        terminal_fd: the terminal's own side, to look at its mode.
    """

    def __init__(self, command: Sequence[str], cwd: str) -> None:
        self._fd, self.terminal_fd = pty.openpty()
        self.mode_before = _mode(self.terminal_fd)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=self.terminal_fd,
            stdout=self.terminal_fd,
            stderr=self.terminal_fd,
            start_new_session=True,
        )
        self.screen = ""
        self._seen = 0

    def expect(self, pattern: str, timeout_s: float = 120) -> re.Match[str]:
        """Wait until `pattern` appears in what has come since the last match."""
        deadline = time.monotonic() + timeout_s
        while True:
            match = re.compile(pattern).search(self.screen, self._seen)
            if match:
                self._seen = match.end()
                return match
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {pattern!r} in:\n{self.screen}")

    def _read(self, timeout_s: float) -> bool:
        if timeout_s <= 0 or not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        self.screen += os.read(self._fd, 65536).decode("utf-8", "replace")
        return True

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._fd, text.encode())

    def wait(self, timeout_s: float = 120) -> int:
        """Wait for the command's end, reading what it still prints; returns its exit status."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self._read(min(0.1, max(0.001, deadline - time.monotonic())))
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen}"
        while self._read(0.01):
            pass
        return self.process.returncode

    def is_mode_restored(self) -> bool:
        """Whether the terminal is in the mode it had before the command."""
        return _mode(self.terminal_fd) == self.mode_before

    def close(self) -> None:
        """End the command if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)
        os.close(self.terminal_fd)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mode(fd: int) -> list[object]:
    import termios

    return termios.tcgetattr(fd)
