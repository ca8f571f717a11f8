"""What verbs print: tables and JSON, sizes and times, colours where they are wanted."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence

from voidbox.sandbox.state.lifecycle import State

_STYLES = {
    State.CREATING: "33",
    State.RUNNING: "32",
    State.PAUSED: "33",
    State.SUSPENDED: "36",
    State.STOPPING: "33",
    State.STOPPED: "2",
    State.CRASHED: "31",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=1))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, with the states in colour on a terminal."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    is_coloured = wants_colour()
    for row in (headings, *rows):
        cells = [shown(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
        if is_coloured and row is not headings:
            cells = [_paint(cell) for cell in cells]
        print("  ".join(cells).rstrip())


def wants_colour() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody objects."""
    return (
        sys.stdout is not None
        and sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def _paint(cell: str) -> str:
    try:
        style = _STYLES[State(cell.rstrip())]
    except ValueError:
        return cell
    return f"\x1b[{style}m{cell}\x1b[0m"


def shown(text: str) -> str:
    """Return a text in one line, fit for a terminal: some of it may be a guest's words."""
    return "".join(c if c.isprintable() else " " for c in text)


def shown_size(size: float) -> str:
    """Return bytes as people read them: 512M, 1.5G."""
    units = iter("BKMGT")
    unit = next(units)
    while abs(size) >= 1024 and unit != "T":
        size /= 1024
        unit = next(units)
    return f"{size:.0f}{unit}" if size == int(size) or size >= 100 else f"{size:.1f}{unit}"


def shown_span(seconds: float) -> str:
    """Return a span of time, in its two largest units."""
    seconds = max(0, int(seconds))
    if seconds < _MINUTE:
        return f"{seconds}s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE}m{seconds % _MINUTE:02}s"
    if seconds < _DAY:
        return f"{seconds // _HOUR}h{seconds % _HOUR // _MINUTE:02}m"
    return f"{seconds // _DAY}d{seconds % _DAY // _HOUR}h"


def shown_time(at: float | None) -> str:
    """Return a moment in local time."""
    if at is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
