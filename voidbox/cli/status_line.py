"""One line on standard error that is drawn again and again, where that is a terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import Self

from voidbox.cli.complain import complain

_EVERY_S = 0.1
_BAR_WIDTH = 30


class StatusLine:
    """A line that changes. Use as a context manager: it ends its line.

    Args:
        is_quiet: show nothing.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._line = ""
        stream = sys.stderr
        self._is_shown = not is_quiet and stream is not None and stream.isatty()

    @property
    def span_s(self) -> float:
        """Since it was made; more than 0."""
        return max(time.monotonic() - self._started, 1e-6)

    def show(self, line: str, at_once: bool = False) -> None:
        """Draw a line in place of the last one, unless that was drawn just now."""
        self._line = line
        now = time.monotonic()
        if self._is_shown and (at_once or now - self._drawn_at >= _EVERY_S):
            self._drawn_at = now
            self._write(line)

    def clear(self) -> None:
        """Make room for something else on the terminal."""
        if self._is_shown and self._line:
            self._write("")
            self._drawn_at = 0.0

    def _write(self, line: str) -> None:
        stream = sys.stderr
        if stream is None:
            return
        try:
            width = os.get_terminal_size(stream.fileno()).columns or 80
            print(f"\r{line[: width - 1]}\x1b[K", end="", file=stream, flush=True)
        except (OSError, ValueError):  # the terminal is gone
            self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._line:
            self._write(self._line)
            if self._is_shown:
                complain("")


def drawn_bar(share: float) -> str:
    """Return a bar that is full to `share` of 1."""
    full = int(share * _BAR_WIDTH)
    return "#" * full + "." * (_BAR_WIDTH - full)
