"""A sandbox's logs, line by line, also while they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from voidbox.sdk.place import Log

_LINE_BYTES_MAX = 64 << 10  # a longer line comes in pieces
_POLL_S = 0.2


async def read_lines(
    source: Log, is_alive: Callable[[], bool], follow: bool
) -> AsyncGenerator[str, None]:
    """Yield a log's lines, without their ends.

    Args:
        source: is closed at the end.
        follow: wait for more, until the sandbox has ended.
    """
    log = _Lines(source)
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


class _Lines:
    """A log's lines."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._partial = b""

    def read(self) -> list[str]:
        """Return lines that are whole now; none at the end of the file. Thread: one of the pool."""
        while data := self._log.read():
            *lines, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _LINE_BYTES_MAX:
                lines.append(self._partial)
                self._partial = b""
            if lines:
                return [_text(line) for line in lines]
        return []

    def rest(self) -> str:
        """Return what follows the last line's end."""
        return _text(self._partial)

    def close(self) -> None:
        """Idempotent."""
        self._log.close()


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
