"""Pool: AsyncPool for programs that block.

with Pool(8, warm=2) as pool:
    with pool.sandbox() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from voidbox.pool.aio import AsyncPool
from voidbox.pool.giving import Giving
from voidbox.pool.options import check_count
from voidbox.pool.stats import PoolStats
from voidbox.sdk.creating import CreateOptions
from voidbox.sdk.facade import Facade, blocking, constructing, documented_by
from voidbox.sdk.loop_thread import run
from voidbox.sdk.sync import Sandbox

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C", bound=Giving[Any])
Self = TypeVar("Self", bound="BlockingPool[Any]")


class BlockingPool(Facade[C]):
    """The blocking form of a pool, wherever its sandboxes are."""

    @documented_by(AsyncPool.acquire)
    def acquire(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> Sandbox:
        return Sandbox(run(self._core.acquire(timeout, options)))

    @contextlib.contextmanager
    def sandbox(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> Iterator[Sandbox]:
        """Have a sandbox for the length of a block; see acquire()."""
        with self.acquire(timeout, options) as sandbox:
            yield sandbox

    def map(
        self,
        function: Callable[[Sandbox, T], R],
        tasks: Iterable[T],
        concurrency: int | None = None,
    ) -> list[R]:
        """Return what `function(sandbox, task)` returns for each task, in their order.

        It is called on threads, as many as there may be sandboxes at once, or `concurrency`. When
        one fails, no further one is begun. See AsyncPool.map().
        """
        size = self._core.size
        workers = min(size, check_count("concurrency", concurrency or size, 1))
        results: dict[int, R] = {}
        # Waited for in C, as in voidbox.threads; but what these threads start is the caller's, and
        # is to hear of Ctrl-C.
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def one(index: int, task: T) -> None:
            try:
                results[index] = self._work(function, task)
            except BaseException as error:
                ended.put(error)
            else:
                ended.put(None)

        def wait_for_one() -> None:
            error = ended.get()
            if error is not None:
                raise error

        with ThreadPoolExecutor(workers, "voidbox-pool") as threads:
            running = 0
            for index, task in enumerate(tasks):
                if running == workers:
                    wait_for_one()
                    running -= 1
                threads.submit(one, index, task)
                running += 1
            for _ in range(running):
                wait_for_one()
        return [results[index] for index in range(len(results))]

    def _work(self, function: Callable[[Sandbox, T], R], task: T) -> R:
        """Do one task of map()."""
        with self.sandbox() as sandbox:
            return function(sandbox, task)

    def stats(self) -> PoolStats:
        """Return what there is now."""
        return run(self._stats())

    async def _stats(self) -> PoolStats:
        return self._core.stats()

    drain = blocking(Giving.drain)
    close = blocking(Giving.close)

    def __enter__(self: Self) -> Self:
        run(self._core.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        run(self._core.close())


class Pool(BlockingPool[AsyncPool]):
    """A pool of sandboxes. Use as a context manager: what it has made ends with it.

    See AsyncPool, which all of this is the blocking form of.
    """

    @constructing(AsyncPool)
    def __init__(self) -> None: ...
