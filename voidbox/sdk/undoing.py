"""Work of threads and other processes, which goes on when who awaits it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from voidbox.errors import VoidboxError

T = TypeVar("T")


async def finished_or_undone(work: Coroutine[Any, Any, T], undo: Callable[[T], object]) -> T:
    """Return what comes of some work; if we are cancelled, it goes on, and is undone at its end."""

    def undo_it(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            with contextlib.suppress(VoidboxError):
                undo(task.result())

    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(undo_it)
        raise
