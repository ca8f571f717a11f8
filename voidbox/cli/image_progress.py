"""How far an image is, on standard error: a bar on a terminal, else a line for each layer."""

from __future__ import annotations

import sys

from voidbox.cli.complain import complain
from voidbox.cli.output import shown, shown_size
from voidbox.cli.progress import ProgressBar
from voidbox.images import progress
from voidbox.images.progress import ImageProgress

_TITLES = {
    progress.DOWNLOAD: "downloading",
    progress.UNPACK: "unpacking",
    progress.WRITE: "writing",
}
_LINES = {progress.LAYER: "downloaded", progress.CACHED: "have already"}


class ImageBar:
    """Shows the steps of an image's making. Use as a context manager.

    Args:
        is_quiet: show nothing.
    """

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: ProgressBar | None = None
        self._title = ""

    def update(self, step: ImageProgress) -> None:
        """Show a step."""
        if self._is_quiet:
            return
        if step.stage == progress.WAIT:
            complain("waiting for another voidbox that makes the same image")
        elif step.stage == progress.INSTALL:
            self.close()
            complain(shown(step.item))
        elif not self._is_terminal:
            if step.stage in _LINES:
                size = shown_size(step.total)
                complain(f"layer {step.item[7:19]} {size} {_LINES[step.stage]}")
        elif step.stage in _TITLES:
            title = f"{_TITLES[step.stage]} {step.item[7:19]}".strip()
            if title != self._title:
                self.close()
                self._title, self._bar = title, ProgressBar(title)
            if self._bar is not None:
                self._bar.update(step.done, step.total)

    def close(self) -> None:
        """End the line of the bar. Idempotent."""
        bar, self._bar, self._title = self._bar, None, ""
        if bar is not None:
            bar.__exit__()

    def __enter__(self) -> ImageBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
