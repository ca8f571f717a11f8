"""What the library logs, on standard error for --verbose."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from voidbox.cli.complain import complain


@contextmanager
def show_log() -> Iterator[None]:
    """Have what the library logs complained about, from INFO up, until the context ends."""
    logger = logging.getLogger("voidbox")
    handler = _Handler(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(f"voidbox: {record.getMessage()}")
