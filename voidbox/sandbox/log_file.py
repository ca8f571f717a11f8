"""A log as its readers see it: it grows, and may be set aside for a new one of its name."""

from __future__ import annotations

import os

from voidbox.errors import HostError

_READ_BYTES = 64 << 10
_TAIL_BYTES = 16 << 10
_TAIL_LINES = 20


class LogFile:
    """One log, read from its beginning; it need not be there yet. Thread: any, one at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        """Return what comes next; nothing at the end, where more may come later.

        Raises:
            HostError: it cannot be read.
        """
        try:
            while True:
                data = os.read(self._fd, _READ_BYTES) if self._fd >= 0 else b""
                if data or not self._reopen():
                    return data
        except OSError as error:
            raise HostError.from_errno(f"cannot read {self._path}", error.errno or 0) from error

    def _reopen(self) -> bool:
        """Whether there is another file of this name to read from."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # not begun yet; or removed, and what is open is all there will be
        if self._fd >= 0 and os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            return False
        self.close()
        self._fd = fd
        return True

    def skip_to_tail(self, lines: int) -> None:
        """Go to the beginning of so many last lines, of what is there now."""
        if self._fd < 0 and not self._reopen():
            return
        at = os.lseek(self._fd, 0, os.SEEK_END)
        missing = lines + 1  # line ends before the place: the last one ends the last line
        if at and os.pread(self._fd, 1, at - 1) != b"\n":
            missing = lines
        while at > 0 and missing > 0:
            start = max(0, at - _READ_BYTES)
            data = os.pread(self._fd, at - start, start)
            end = len(data)
            while missing > 0 and (end := data.rfind(b"\n", 0, end)) >= 0:
                missing -= 1
                if not missing:
                    os.lseek(self._fd, start + end + 1, os.SEEK_SET)
                    return
            at = start
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_tail(path: str, bytes_max: int = _TAIL_BYTES) -> str:
    """Return the last lines of a log, fit for a terminal; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - bytes_max))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.split("\n"))
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])
