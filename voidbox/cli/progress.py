"""A bar of bytes on their way."""

from __future__ import annotations

from voidbox.cli.output import shown, shown_size, shown_span
from voidbox.cli.status_line import StatusLine, drawn_bar

_NAME_WIDTH = 24


class ProgressBar(StatusLine):
    """Shows how far something has got.

    Args:
        name: of what is on its way.
        is_quiet: show nothing.
    """

    def __init__(self, name: str, is_quiet: bool = False) -> None:
        super().__init__(is_quiet)
        self._name = shown(name)

    def update(self, done: int, total: int) -> None:
        """Say how much is done."""
        share = done / total if total else 1.0
        rate = done / self.span_s
        name = self._name[:_NAME_WIDTH].ljust(_NAME_WIDTH)
        left = f" {shown_span((total - done) / rate)} left" if 0 < done < total else ""
        self.show(
            f"{name} {drawn_bar(share)} {share:4.0%} {shown_size(done)} {shown_size(rate)}/s{left}"
        )
