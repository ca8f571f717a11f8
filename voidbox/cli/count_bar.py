"""A bar that counts."""

from __future__ import annotations

from voidbox.cli.output import shown_span
from voidbox.cli.status_line import StatusLine, drawn_bar


class CountBar(StatusLine):
    """Shows how many of how many are done."""

    def update(self, done: int, total: int | None, failed: int, running: int) -> None:
        """Say how much is done.

        Args:
            total: None while nobody knows.
        """
        rate = done / self.span_s
        head = f"{done}/{total}" if total is not None else f"{done} done"
        left = f" {shown_span((total - done) / rate)} left" if total and 0 < done < total else ""
        self.show(
            f"{drawn_bar(done / total if total else 0.0)} {head}, {running} running, "
            f"{failed} failed, {rate:.1f}/s{left}",
            at_once=done == total,
        )
