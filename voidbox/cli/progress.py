"""A bar on standard error, where that is a terminal."""

from __future__ import annotations

import os
import sys
import time

from voidbox.cli.complain import complain
from voidbox.cli.output import shown, shown_size, shown_span

_EVERY_S = 0.1
_NAME_WIDTH, _BAR_WIDTH = 24, 30


class ProgressBar:
    """Shows how far something has got. Use as a context manager: it ends its line.

    Args:
        name: of what is on its way.
        is_quiet: show nothing.
    """

    def __init__(self, name: str, is_quiet: bool = False) -> None:
        self._name = shown(name)
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._last: tuple[int, int] | None = None
        stream = sys.stderr
        self._is_shown = not is_quiet and stream is not None and stream.isatty()

    def update(self, done: int, total: int) -> None:
        """Say how much is done."""
        self._last = (done, total)
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at >= _EVERY_S:
            self._drawn_at = now
            self._draw(done, total)

    def _draw(self, done: int, total: int) -> None:
        span_s = max(time.monotonic() - self._started, 1e-6)
        share = done / total if total else 1.0
        rate = done / span_s
        name = self._name[:_NAME_WIDTH].ljust(_NAME_WIDTH)
        full = int(share * _BAR_WIDTH)
        left = f" {shown_span((total - done) / rate)} left" if 0 < done < total else ""
        line = (
            f"{name} {'#' * full}{'.' * (_BAR_WIDTH - full)} {share:4.0%} "
            f"{shown_size(done)} {shown_size(rate)}/s{left}"
        )
        stream = sys.stderr
        if stream is None:
            return
        try:
            width = os.get_terminal_size(stream.fileno()).columns or 80
            print(f"\r{line[: width - 1]}\x1b[K", end="", file=stream, flush=True)
        except (OSError, ValueError):  # the terminal is gone
            self._is_shown = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._last is not None:
            self._draw(*self._last)
            if self._is_shown:
                complain("")
