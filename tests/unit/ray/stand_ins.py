"""Pools over a small Ray cluster on this machine, with everything but the virtual machines."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

from tests.unit.sandbox.owned import FAKE_OWNER
from voidbox.ray.actor import NodePool
from voidbox.ray.aio import AsyncPool
from voidbox.ray.holding import Holding
from voidbox.ray.node import Node, NodeOptions
from voidbox.ray.runner import Runner
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.launch import launch
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching

START_S = 0.005


class StandInNodePool(NodePool):
    """A node whose sandboxes are fake_owner's."""

    def __init__(self, options: NodeOptions) -> None:
        launching.launch = functools.partial(launch, owner=FAKE_OWNER)  # type: ignore[assignment]
        launching.make_zygote = lambda: Zygote(FAKE_OWNER, environment())  # type: ignore[assignment]
        super().__init__(options)


class StandInPool(AsyncPool):
    node_pool: Any = StandInNodePool


class StubSandbox:
    """A sandbox that costs next to nothing: what is left is what placing one costs."""

    def __init__(self, id: str, holding: Holding) -> None:
        self.sandbox_id, self._holding = id, holding

    async def exec(self) -> None:
        await asyncio.sleep(0)

    async def __aenter__(self) -> StubSandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._holding.release(self.sandbox_id)


class StubNode(Node):
    """A node whose sandboxes are numbers; each takes 5 ms to start."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._numbers = itertools.count()
        self._places = asyncio.Semaphore(self._options.size)
        self._taken: set[str] = set()

    async def open(self) -> None:
        return

    async def acquire(self, holder: str, *_: Any) -> Any:
        await self._places.acquire()
        await asyncio.sleep(START_S)
        id = str(next(self._numbers))
        self._taken.add(id)
        load = {"size": self._options.size, "used": len(self._taken), "waiting": 0}
        return {"ticket": {"record": {"id": id}}, **load}

    async def release(self, id: str) -> bool:
        self._taken.remove(id)
        self._places.release()
        return True


class StubNodePool(NodePool):
    make_node: Any = StubNode


class StubHolding(Holding):
    async def use(self, values: dict[str, Any]) -> Any:
        return StubSandbox(values["record"]["id"], self)


class StubRunner(Runner):
    hold: Any = StubHolding


class StubPool(AsyncPool):
    node_pool: Any = StubNodePool
    rollout_runner: Any = StubRunner
