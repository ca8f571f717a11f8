"""A pool whose sandboxes are objects: it counts those that live, and fails where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from voidbox.errors import HostError
from voidbox.pool.aio import AsyncPool


class FakeSandbox:
    retire: Callable[[], asyncio.Task[bool]]

    def __init__(self, pool: FakePool) -> None:
        self.name = self.sandbox_id = f"fake-{pool.made}"
        self.pool = pool
        self.gone = asyncio.Event()
        self.is_used = False
        self.is_held = False
        self.begun = 0

    async def begin(self, limit_s: float | None) -> None:
        self.begun += 1
        await ticks(self.pool.delay)
        if self.pool.failures:
            self.pool.failures -= 1
            raise HostError("it does not begin")
        if self.gone.is_set():
            raise HostError("it is gone")
        self.is_held = False

    async def kill(self) -> bool:
        return await asyncio.shield(self.retire())

    async def end(self) -> bool:
        await ticks(2)
        if self.pool.fails_to_end:
            self.pool.fails_to_end = False
            raise HostError("it does not end")
        was_alive = not self.gone.is_set()
        self.die()
        await ticks(1)
        return was_alive

    def die(self) -> None:
        """Have its process be gone."""
        if not self.gone.is_set():
            self.gone.set()
            self.pool.alive -= 1

    async def __aenter__(self) -> FakeSandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class FakePool(AsyncPool):
    """Attributes: alive: how many processes there are; peak: the most there were."""

    def __init__(self, size: int, holds: bool = False, **options: Any) -> None:
        options.setdefault("starts", size)
        super().__init__(size, host_memory=None, **options)
        self.alive = self.peak = self.made = 0
        self.failures = 0
        self.fails_to_end = False
        self.delay = 3
        self.holds = holds  # as if there were a template

    async def __aenter__(self) -> FakePool:
        self._store = object()  # type: ignore[assignment]
        self._pump()
        return self

    async def _make(self, options: Any, is_held: bool) -> Any:
        self.made += 1
        self.alive += 1
        self.peak = max(self.peak, self.alive)
        sandbox = FakeSandbox(self)
        try:
            await ticks(self.delay)
            if self.failures:
                self.failures -= 1
                raise HostError("no")
        except BaseException:
            self.alive -= 1
            raise
        sandbox.is_held = is_held and self.holds
        sandbox.retire = lambda: self._retire(sandbox)  # type: ignore[arg-type]
        return sandbox

    async def _wait_gone(self, sandbox: Any) -> None:
        await sandbox.gone.wait()

    async def _kill_process(self, sandbox: Any) -> None:
        sandbox.die()
