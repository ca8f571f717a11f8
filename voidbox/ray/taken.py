"""What all sandboxes that were taken of a node have in common: how their end begins."""

from __future__ import annotations

import asyncio

from voidbox.pool.member import PooledSandbox


class TakenSandbox(PooledSandbox):
    """A sandbox of a node's pool, as the program has it that took it."""

    _release: asyncio.Task[bool] | None = None

    @property
    def is_released(self) -> bool:
        """Whether its end has begun here."""
        return self._release is not None

    def retire(self) -> asyncio.Task[bool]:
        """Begin its end; return what can be waited for. Idempotent."""
        if self._release is None:
            self._release = asyncio.create_task(self.end())
        return self._release
