"""A sandbox's logs, line by line, also while they grow."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable

_READ_BYTES = 256 << 10
_LINE_BYTES_MAX = 64 << 10  # a longer line comes in pieces
_POLL_S = 0.2


async def read_lines(
    path: str, is_alive: Callable[[], bool], follow: bool
) -> AsyncGenerator[str, None]:
    """Yield a log's lines, without their ends.

    Args:
        follow: wait for more, until the sandbox has ended.
    """
    log = _Log(path)
    try:
        while True:
            goes_on = follow and await asyncio.to_thread(is_alive)
            while lines := await asyncio.to_thread(log.read):  # after the look: nothing is missed
                for line in lines:
                    yield line
            if not goes_on:
                break
            await asyncio.sleep(_POLL_S)
        if rest := log.rest():
            yield rest
    finally:
        log.close()


class _Log:
    """A file that grows, and may be set aside for a new one of its name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._partial = b""

    def read(self) -> list[str]:
        """Return lines that are whole now; none at the end of the file. Thread: one of the pool."""
        while True:
            data = os.read(self._fd, _READ_BYTES) if self._fd >= 0 else b""
            if not data:
                if not self._reopen():
                    return []
                continue
            *lines, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _LINE_BYTES_MAX:
                lines.append(self._partial)
                self._partial = b""
            if lines:
                return [_text(line) for line in lines]

    def _reopen(self) -> bool:
        """Whether there is another file of this name to read from."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if self._fd >= 0 and os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            return False
        self.close()
        self._fd = fd
        return True

    def rest(self) -> str:
        """Return what follows the last line's end."""
        return _text(self._partial)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
