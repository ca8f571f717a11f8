"""A sandbox that a pool gives out: its end makes room for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

from voidbox.errors import ConfigError
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk.aio import AsyncSandbox

_BEGIN_S = 120.0  # where it cannot be restored, it boots


class PooledSandbox(AsyncSandbox):
    """An AsyncSandbox that belongs to a pool. It is nobody's second time.

    Attributes:
        retire: begins its end, for the pool; returns what can be waited for.
        leave: has it be none of the pool's any more.
        is_held: it stands ready, and its CPUs have never run.
    """

    retire: Callable[[], asyncio.Task[bool]]
    leave: Callable[[], None]
    _leaves_nothing = True

    def __init__(self, store: Store, record: SandboxRecord, keep: bool) -> None:
        """See SandboxHandle."""
        super().__init__(store, record, keep)
        self.is_held = record.state is State.CREATING

    async def begin(self, limit_s: float | None) -> None:
        """Have one that is held run; for the pool alone.

        Raises:
            VoidboxError: what its start failed with, or that it took more than `limit_s` seconds.
        """
        await self._control("begin", limit_s or _BEGIN_S)
        self.is_held = False
        await self._workspace.copy_in(self._session.limit_s(None))

    async def kill(self) -> bool:
        """End it at once, and wait for that; False if it had ended. The pool has room again."""
        return await asyncio.shield(self.retire())

    async def end(self) -> bool:
        """End it as an AsyncSandbox; for the pool alone."""
        return await super().kill()

    async def hand_over(
        self,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Have it go on when the pool and this program end; the pool has room for another.

        It is as one that was made with detached=True then: connect() finds it, and whoever does
        ends it.

        Args:
            envs, metadata: more of them.
        Raises:
            ConfigError: they are not text to text.
            AgentError: it has ended.
        """
        await self._control("hand_over", envs=dict(envs or {}), metadata=dict(metadata or {}))
        self.leave()

    async def fork(self, count: int = 1, **_: object) -> NoReturn:
        """Forks would be more than the pool may have: make a pool of a snapshot."""
        raise ConfigError(
            "a pool's sandbox has no forks, which the pool would not count: make a snapshot of it, "
            "and a pool of that: Pool(snapshot=…)"
        )

    async def suspend(self, **_: object) -> NoReturn:
        """It would wake outside of the pool's limit."""
        raise ConfigError(
            "a pool's sandbox is not suspended: it would wake beside as many as there may be"
        )
