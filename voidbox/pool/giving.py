"""What every pool offers, wherever its sandboxes are: they are taken, and worked in."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from voidbox.pool import options as given_options
from voidbox.pool.stats import PoolStats
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.creating import CreateOptions

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound=AsyncSandbox)
Self = TypeVar("Self", bound="Giving[Any]")


class Giving(ABC, Generic[S]):
    """A pool that gives sandboxes.

    Attributes:
        size: the most that there are at once.
    """

    size: int

    @abstractmethod
    async def acquire(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> S:
        """Return a sandbox, which is nobody else's; its kill(), or its block's end, makes room."""

    @abstractmethod
    async def __aenter__(self: Self) -> Self: ...

    @abstractmethod
    async def drain(self) -> None:
        """Give out no more, and wait until all that are used have ended.

        Whoever waits in acquire() gets ConfigError.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all that it has made, and wait for that. Idempotent."""

    @abstractmethod
    def stats(self) -> PoolStats:
        """Return what there is now."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ConfigError where no sandbox can be given."""

    @contextlib.asynccontextmanager
    async def sandbox(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> AsyncIterator[S]:
        """Have a sandbox for the length of a block; see acquire()."""
        async with await self.acquire(timeout, options) as sandbox:
            yield sandbox

    async def map(
        self,
        function: Callable[[S, T], Awaitable[R]],
        tasks: Iterable[T],
        concurrency: int | None = None,
    ) -> list[R]:
        """Return what `function(sandbox, task)` returns for each task, in their order.

        Each has a fresh sandbox. Tasks are taken one by one, as there is room. When one fails, the
        others are cancelled.

        Args:
            concurrency: at most so many at once; as many as there may be sandboxes by default.
        """
        self._check_open()
        wanted = self.size if concurrency is None else concurrency
        workers = min(self.size, given_options.check_count("concurrency", wanted, 1))
        todo = enumerate(tasks)
        results: dict[int, R] = {}

        async def work() -> None:
            for index, task in todo:
                results[index] = await self._work(function, task)

        running = [asyncio.create_task(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [results[index] for index in range(len(results))]

    async def _work(self, function: Callable[[S, T], Awaitable[R]], task: T) -> R:
        """Do one task of map()."""
        async with self.sandbox() as sandbox:
            return await function(sandbox, task)
