"""Snapshots of one sandbox are made one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from voidbox.errors import ConfigError
from voidbox.sandbox.snapshots.record import BUSY

_FREE_S, _FREE_PAUSE_S = 300.0, 0.1  # for a snapshot that is being made

T = TypeVar("T")


async def when_free(action: Callable[[], Awaitable[T]]) -> T:
    """Do what makes a snapshot, once no other one is made: a new sandbox may become a template."""
    deadline = time.monotonic() + _FREE_S
    while True:
        try:
            return await action()
        except ConfigError as error:
            if not str(error).startswith(BUSY) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_FREE_PAUSE_S)
