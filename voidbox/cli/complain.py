"""Messages to standard error, which may be closed or full: that changes nothing else."""

from __future__ import annotations

import sys


def complain(message: str) -> None:
    """Write a line to standard error, if there is one that takes it.

    It may quote what a guest or a file is called: what would move a terminal's cursor is escaped.
    """
    stream = sys.stderr
    if stream is None:
        return
    line = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in message)
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        # What stays in its buffer would fail again at exit, and change the exit status.
        sys.stderr = None
