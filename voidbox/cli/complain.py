"""Messages to standard error, which may be closed or full: that changes nothing else."""

from __future__ import annotations

import sys


def complain(message: str) -> None:
    """Write a line to standard error, if there is one that takes it."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        print(message, file=stream, flush=True)
    except (OSError, ValueError):
        # What stays in its buffer would fail again at exit, and change the exit status.
        sys.stderr = None
