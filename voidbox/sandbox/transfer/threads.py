"""The disk, by threads of the pool: whoever gives up waits until the thread has ended.

asyncio.to_thread() leaves its thread behind when it is cancelled; a descriptor that is closed then
may get another file's number while the thread still writes to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def start(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Call a function on a thread. Not a task: a loop that ends does not cancel it."""
    return asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))


async def end(future: asyncio.Future[T]) -> T:
    """Return what it returned; if this is cancelled, once the thread has ended."""
    try:
        return await asyncio.shield(future)
    finally:
        await settle(future)


async def settle(future: asyncio.Future[T]) -> None:
    """Wait for a thread's end whatever happens, of no interest what it returned."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # looked at


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function on a thread; return what it returns."""
    return await end(start(function, *arguments))
