"""Runner: runs a pool's rollouts on the machine of their sandboxes, as an actor of its own there.

What users run shares no process with the pool: neither its end nor its appetite is the sandboxes'.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import cloudpickle

from voidbox.ray import functions, surroundings
from voidbox.ray.carrier import NodeAddress
from voidbox.ray.holding import Holding
from voidbox.ray.rollouts import BATCH_MAX, ROLLOUTS_MAX, pickled
from voidbox.sdk.sync import Sandbox


class Runner:
    """The actor. How it is asked for rollouts stands in `rollouts`.

    Attributes:
        hold: makes what takes sandboxes.
    """

    hold: Callable[[NodeAddress], Holding] = Holding

    def __init__(self, address: NodeAddress) -> None:
        surroundings.set_oom_score(0, surroundings.POOL_OOM_SCORE + 1)
        self._address = address
        self._opening: asyncio.Task[Holding] | None = None
        self._threads = ThreadPoolExecutor(ROLLOUTS_MAX, "voidbox-rollout")
        self._rollouts: dict[int, asyncio.Task[Any]] = {}
        self._done: deque[tuple[int, bytes | None]] = deque()
        self._is_some_done = asyncio.Event()

    async def run(self, sent: Any, *arguments: Any, **named: Any) -> Any:
        """Return what `function(sandbox, …)` returns, with a sandbox of its own.

        A coroutine is given an AsyncSandbox; a function, which is called on a thread, a Sandbox.

        Args:
            sent: the function; see functions.
        """
        function = functions.receive(sent if isinstance(sent, bytes) else await sent)
        holding = await self._holding()
        async with await holding.acquire() as sandbox:
            if inspect.iscoroutinefunction(function):
                return await function(sandbox, *arguments, **named)
            call = functools.partial(function, Sandbox(sandbox), *arguments, **named)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def begin(self, rollouts: list[tuple[int, Any, bytes]]) -> None:
        """Begin some, each of a number, a function, and the arguments as pickled() has them."""
        for number, sent, given in rollouts:
            task = asyncio.create_task(self._run_pickled(sent, given))
            self._rollouts[number] = task
            task.add_done_callback(functools.partial(self._say_done, number))

    async def _run_pickled(self, sent: Any, given: bytes) -> Any:
        arguments, named = cloudpickle.loads(given)
        return await self.run(sent, *arguments, **named)

    def _say_done(self, number: int, task: asyncio.Task[Any]) -> None:
        data = None
        with contextlib.suppress(Exception, asyncio.CancelledError):  # take() raises it
            data = pickled(task.result())
        if data is not None:
            self._rollouts.pop(number, None)
        self._done.append((number, data))
        self._is_some_done.set()

    async def collect(self) -> list[tuple[int, bytes | None]]:
        """Wait for some to be done; return their numbers and what they returned.

        None instead is for what take() gives.
        """
        await self._is_some_done.wait()
        found = [self._done.popleft() for _ in range(min(len(self._done), BATCH_MAX))]
        if not self._done:
            self._is_some_done.clear()
        return found

    async def take(self, number: int) -> Any:
        """Return what one returned, or raise what it raised, by Ray's own means."""
        return await self._rollouts.pop(number)

    async def cancel(self, number: int) -> None:
        """End one, and its sandbox."""
        task = self._rollouts.pop(number, None)
        if task is not None:
            task.cancel()

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
