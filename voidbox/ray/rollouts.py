"""A program's rollouts on one node: many go there in one call of Ray's, and come back in one.

A call of Ray's costs as much as a small rollout. So what waits to be sent goes together, and one
call at a time asks for what is done. What is large, or holds references of Ray's, goes and comes in
a call of its own, as Ray sends it; and what a rollout raised comes back so.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnschedulableError, RayActorError, RayError

from voidbox.named_tuple import NamedTuple
from voidbox.ray import functions

ROLLOUTS_MAX = 1000  # of a program, on a node at once
BATCH_MAX = 128
_PLAIN_BYTES_MAX = 32 << 10
_OF_RAY = (ray.ObjectRef, ray.actor.ActorHandle)


class RunnerLost(Exception):
    """What runs the rollouts has ended."""


class RunnerRefused(RunnerLost):
    """What is to run the rollouts cannot begin: the node ends, or is to end."""


class _Sent(NamedTuple):
    number: int
    function: Any
    arguments: bytes


class _OfRay(Exception):
    """A value has a reference of Ray's in it."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _OF_RAY):
            raise _OfRay
        return super().reducer_override(value)


def pickled(value: Any) -> bytes | None:
    """Return a value as bytes; None if Ray itself is to send it.

    Raises:
        Exception: it cannot be pickled.
    """
    file = io.BytesIO()
    try:
        _Pickler(file).dump(value)
    except _OfRay:
        return None
    return file.getvalue() if file.tell() <= _PLAIN_BYTES_MAX else None


class Rollouts:
    """See above. Thread: the event loop's.

    Args:
        runner: the actor, a Runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._numbers = itertools.count()
        self._waiting: deque[_Sent] = deque()
        self._futures: dict[int, asyncio.Future[bytes | None]] = {}
        self._under_way = 0  # sent, and not yet said to be done
        self._collecting: asyncio.Task[None] | None = None
        self._sending: asyncio.Handle | None = None

    async def run(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Return what the function returns there.

        Raises:
            RunnerLost: that has ended, or cannot begin.
            RayTaskError: of what the function raised.
        """
        sent = functions.send(function)
        try:
            given = pickled((arguments, named))
            if given is None:
                return await self._run_alone(self._runner.run.remote(sent, *arguments, **named))
            return await self._run_with_others(_Sent(next(self._numbers), sent, given))
        except (RayActorError, ActorUnschedulableError) as error:
            raise _lost(error) from error

    async def close(self) -> None:
        """End the runner, and all that it runs. Idempotent."""
        ray.kill(self._runner)
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.gather(self._collecting, return_exceptions=True)
        self._fail(RunnerLost("the pool was closed"))

    async def _run_alone(self, running: Any) -> Any:
        try:
            return await running
        except asyncio.CancelledError:
            ray.cancel(running)  # and its sandbox ends
            raise

    async def _run_with_others(self, one: _Sent) -> Any:
        future = self._futures[one.number] = asyncio.get_running_loop().create_future()
        self._waiting.append(one)
        self._send_soon()
        try:
            data = await future
        except asyncio.CancelledError:
            if self._futures.pop(one.number, None) is not None:
                self._cancel(one)
            raise
        if data is None:
            return await self._run_alone(self._runner.take.remote(one.number))
        return cloudpickle.loads(data)

    def _cancel(self, one: _Sent) -> None:
        try:
            self._waiting.remove(one)
        except ValueError:  # it runs there
            with contextlib.suppress(RayError):
                self._runner.cancel.remote(one.number)

    def _send_soon(self) -> None:
        """Send once all that are asked for now have been: they go together."""
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = None
        while self._waiting and (room := ROLLOUTS_MAX - self._under_way) > 0:
            count = min(room, BATCH_MAX, len(self._waiting))
            self._runner.begin.remote([tuple(self._waiting.popleft()) for _ in range(count)])
            self._under_way += count
        if self._under_way and self._collecting is None:
            self._collecting = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        try:
            while self._under_way:
                for number, data in await self._runner.collect.remote():
                    self._under_way -= 1
                    future = self._futures.pop(number, None)
                    if future is not None and not future.done():
                        future.set_result(data)
                self._send()
        except RayError as error:
            self._fail(_lost(error))
        finally:
            self._collecting = None

    def _fail(self, error: RunnerLost) -> None:
        self._waiting.clear()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(type(error)(str(error)))
        self._futures.clear()


def _lost(error: RayError) -> RunnerLost:
    kind = RunnerRefused if isinstance(error, ActorUnschedulableError) else RunnerLost
    return kind(str(error))
