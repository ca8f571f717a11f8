"""How far a transfer is, told to a function or coroutine function of the user's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

# Called with the bytes done so far, and all that there are.
Progress: TypeAlias = Callable[[int, int], object] | Callable[[int, int], Awaitable[object]]


class Teller:
    """Tells a transfer's progress. What a coroutine function does goes on beside the transfer.

    If more is to be told meanwhile, the coroutine function is called for the latest alone.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: asyncio.Task[None] | None = None
        self._latest: tuple[int, int] | None = None

    def tell(self, done: int, total: int) -> None:
        """Say how far it is.

        Raises:
            Exception: what the function raised.
        """
        if self._progress is None:
            return
        if self._task is not None:
            if not self._task.done():
                self._latest = done, total
                return
            self._task.result()
        answer = self._progress(done, total)
        if inspect.isawaitable(answer):
            self._task = asyncio.create_task(self._await(answer))

    async def _await(self, answer: Awaitable[object]) -> None:
        await answer
        while self._latest is not None:
            latest, self._latest = self._latest, None
            again = self._progress(*latest) if self._progress is not None else None
            if inspect.isawaitable(again):
                await again

    async def end(self) -> None:
        """Wait until all is told."""
        if self._task is not None:
            await self._task

    def cancel(self) -> None:
        """Tell no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            if self._task.done() and not self._task.cancelled():
                self._task.exception()  # looked at: another error has come first
