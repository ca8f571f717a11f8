"""A bar on standard error that counts, where that is a terminal."""

from __future__ import annotations

import os
import sys
import time

from voidbox.cli.complain import complain
from voidbox.cli.output import shown_span

_EVERY_S = 0.1
_BAR_WIDTH = 30


class CountBar:
    """Shows how many of how many are done. Use as a context manager: it ends its line.

    Args:
        is_quiet: show nothing.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._line = ""
        stream = sys.stderr
        self._is_shown = not is_quiet and stream is not None and stream.isatty()

    def update(self, done: int, total: int | None, failed: int, running: int) -> None:
        """Say how much is done.

        Args:
            total: None while nobody knows.
        """
        span_s = max(time.monotonic() - self._started, 1e-6)
        rate = done / span_s
        share = done / total if total else 0.0
        full = int(share * _BAR_WIDTH)
        head = f"{done}/{total}" if total is not None else f"{done} done"
        left = f" {shown_span((total - done) / rate)} left" if total and 0 < done < total else ""
        self._line = (
            f"{'#' * full}{'.' * (_BAR_WIDTH - full)} {head}, {running} running, {failed} failed, "
            f"{rate:.1f}/s{left}"
        )
        now = time.monotonic()
        if self._is_shown and (now - self._drawn_at >= _EVERY_S or done == total):
            self._drawn_at = now
            self._write(self._line)

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

    def __enter__(self) -> CountBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._line:
            self._write(self._line)
            complain("")
