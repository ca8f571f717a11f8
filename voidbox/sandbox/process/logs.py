"""The log files of a sandbox's process: what voidbox says, and the guest's console.

A full disk must not end the guest: what cannot be written is lost, and that is said once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from voidbox.errors import HostError

CONSOLE_BYTES_MAX = 64 << 20
OWNER_BYTES_MAX = 16 << 20  # the guest makes it grow, too: what the network refuses is logged
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC

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


class AppendedFile:
    """A file to append to that does not grow for ever. Thread: one at a time.

    Args:
        bytes_max: from here on it is set aside as PATH.1, in the place of the one before.

    Raises:
        HostError: it cannot be opened.

    Attributes:
        fd: where it is written, until the next one takes its place.
    """

    def __init__(self, path: str, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self.fd = open_log(path)
        self._size = os.fstat(self.fd).st_size

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            OSError: not all of it was written.
        """
        if self._size + len(data) > self._bytes_max:
            self._set_aside()
        view = memoryview(data)
        while view:
            written = os.write(self.fd, view)
            self._size += written
            view = view[written:]

    def notice_others(self) -> None:
        """Count what another process has appended, too."""
        self._size = os.fstat(self.fd).st_size

    def _set_aside(self) -> None:
        os.rename(self._path, f"{self._path}.1")
        fd = os.open(self._path, _FLAGS, 0o600)
        os.close(self.fd)
        self.fd, self._size = fd, 0

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def make_formatter() -> logging.Formatter:
    """Return how an entry of owner.log looks."""
    return logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%Y-%m-%d %H:%M:%S")


class OwnerLog(logging.Handler):
    """Writes what the library logs to a file, and what else this process prints.

    What does not fit is dropped. Standard input becomes empty.

    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str, bytes_max: int = OWNER_BYTES_MAX) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(make_formatter())
        self._file = AppendedFile(path, bytes_max)
        null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null_fd, 0)
        if null_fd > 0:
            os.close(null_fd)
        self._redirect()

    def _redirect(self) -> None:
        for number in (1, 2):
            os.dup2(self._file.fd, number)
        self._redirected_fd = self._file.fd

    def emit(self, record: logging.LogRecord) -> None:
        """Write one entry."""
        with contextlib.suppress(OSError):
            self._file.notice_others()
            self._file.write(self.format(record).encode("utf-8", "replace") + b"\n")
            if self._file.fd != self._redirected_fd:
                self._redirect()


class ConsoleLog:
    """A console Output (see vmm.console) that keeps everything in a file. Thread: loop.

    Args:
        bytes_max: see AppendedFile.
    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str, bytes_max: int = CONSOLE_BYTES_MAX) -> None:
        self._file = AppendedFile(path, bytes_max)
        self._lost_bytes = 0
        self.close = self._file.close

    def set_resume(self, resume: Callable[[], None]) -> None:
        """See Output; this one always takes everything."""

    def write(self, data: bytes) -> bool:
        """See Output."""
        try:
            self._file.write(data)
        except OSError as error:
            if not self._lost_bytes:
                log.warning(
                    "cannot write console.log (%s): the guest goes on without", error.strerror
                )
            self._lost_bytes += len(data)
        else:
            if self._lost_bytes:
                log.warning("console.log is written again: %d bytes are missing", self._lost_bytes)
                self._lost_bytes = 0
        return True
