"""The log files of a sandbox's process: what voidbox says, and the guest's console.

A full disk must not end the guest: what cannot be written is lost, and that is said once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from voidbox.errors import HostError

CONSOLE_BYTES_MAX = 64 << 20  # then the file is kept as console.log.1, and a new one begun
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_TAIL_BYTES = 16 << 10
_TAIL_LINES = 20

log = logging.getLogger(__name__)


def open_log(path: str) -> int:
    """Open a file to append to; returns the descriptor.

    Raises:
        HostError: it cannot be opened.
    """
    try:
        return os.open(path, _FLAGS, 0o600)
    except OSError as error:
        raise HostError.from_errno(f"open {path}", error.errno or 0) from error


def redirect_stdio(path: str) -> None:
    """Send whatever this process prints to a file, and give it nothing to read.

    Raises:
        HostError: the file cannot be opened.
    """
    log_fd = open_log(path)
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for fd, number in ((null_fd, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(fd, number)
    for fd in (log_fd, null_fd):
        if fd > 2:
            os.close(fd)


class LogHandler(logging.Handler):
    """Writes what the library logs to standard error, which is a file; drops what does not fit."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(
            logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%Y-%m-%d %H:%M:%S")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write one entry."""
        with contextlib.suppress(OSError):
            os.write(2, self.format(record).encode("utf-8", "replace") + b"\n")


class ConsoleLog:
    """A console Output (see vmm.console) that keeps everything in a file. Thread: loop.

    Args:
        bytes_max: from here on the file is set aside as PATH.1, in the place of the one before.
    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str, bytes_max: int = CONSOLE_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._fd = open_log(path)
        self._size = os.fstat(self._fd).st_size
        self._lost_bytes = 0

    def set_resume(self, resume: Callable[[], None]) -> None:
        """See Output; this one always takes everything."""

    def write(self, data: bytes) -> bool:
        """See Output."""
        try:
            self._write(data)
        except OSError as error:
            if not self._lost_bytes:
                log.warning(
                    "cannot write console.log (%s): the guest goes on without", error.strerror
                )
            self._lost_bytes += len(data)
        return True

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._bytes_max:
            self._rotate()
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]
        if self._lost_bytes:
            log.warning("console.log is written again: %d bytes are missing", self._lost_bytes)
            self._lost_bytes = 0

    def _rotate(self) -> None:
        os.rename(self._path, f"{self._path}.1")
        fd = os.open(self._path, _FLAGS, 0o600)
        os.close(self._fd)
        self._fd, self._size = fd, 0

    def close(self) -> None:
        """Close the file. Idempotent. Once the loop is stopped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read_tail(path: str) -> str:
    """Return the last lines of a log, fit for a terminal; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.split("\n"))
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])
