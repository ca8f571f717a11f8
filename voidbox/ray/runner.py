"""Runner: runs a pool's rollouts on the machine of their sandboxes, as an actor of its own there.

What users run shares no process with the pool: neither its end nor its appetite is the sandboxes'.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from typing import Any

import ray

from voidbox.ray import functions, surroundings
from voidbox.ray.carrier import NodeAddress
from voidbox.ray.holding import Holding
from voidbox.sdk.sync import Sandbox

ROLLOUTS_MAX = 1000


class Runner:
    """The actor.

    Attributes:
        hold: makes what takes sandboxes.
    """

    hold: Callable[[NodeAddress], Holding] = Holding

    def __init__(self, address: NodeAddress) -> None:
        surroundings.set_oom_score(0, surroundings.POOL_OOM_SCORE + 1)
        self._address = address
        self._opening: asyncio.Task[Holding] | None = None

    async def run(self, sent: bytes, *arguments: Any, **named: Any) -> Any:
        """Return what `function(sandbox, …)` returns, with a sandbox of its own.

        A coroutine is given an AsyncSandbox; a function, which is called on a thread, a Sandbox.

        Args:
            sent: the function; see functions.
        """
        function = functions.receive(sent)
        holding = await self._holding()
        async with await holding.acquire() as sandbox:
            if inspect.iscoroutinefunction(function):
                return await function(sandbox, *arguments, **named)
            return await asyncio.to_thread(function, Sandbox(sandbox), *arguments, **named)

    async def _holding(self) -> Holding:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Holding:
        raylet_fd = surroundings.open_raylet()
        if raylet_fd is not None:
            asyncio.get_running_loop().add_reader(raylet_fd, os._exit, 1)
        holding = type(self).hold(self._address)
        await holding.open()
        return holding


def remote(cls: type[Runner]) -> Any:
    """Return the actor's class for Ray."""
    return ray.remote(cls)
