"""Rollouts that wait for a node with room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray does that")

from voidbox.errors import SandboxLost
from voidbox.ray.queueing import AHEAD, Queue

WAIT_S = 60.0


class Nodes:
    def __init__(self, *sizes: int) -> None:
        self.alive = [node(size) for size in sizes]
        self.is_over = False
        self.queue = Queue(lambda roomy: min(roomy, key=lambda one: one.asked), self.left)

    def left(self) -> list[Any]:
        if self.is_over:
            raise SandboxLost("no node is left", "node")
        return self.alive


def node(size: int) -> Any:
    return SimpleNamespace(size=size, asked=0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(bounded())


async def settle(waiting: list[asyncio.Task[Any]], done: int) -> None:
    while sum(task.done() for task in waiting) < done:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert sum(task.done() for task in waiting) == done


def test_each_is_sent_only_where_there_is_room() -> None:
    async def test() -> None:
        nodes = Nodes(1, 2)
        waiting = [asyncio.create_task(nodes.queue.enter()) for _ in range(10)]
        await settle(waiting, AHEAD * 3)
        assert [one.asked for one in nodes.alive] == [AHEAD, AHEAD * 2]
        assert all(task.done() for task in waiting[: AHEAD * 3]), "first come, first served"
        nodes.queue.leave(await waiting[0])
        await settle(waiting, AHEAD * 3 + 1)
        nodes.alive.append(node(5))  # it has come because they wait
        await settle(waiting, 10)
        nodes.queue.close(RuntimeError())

    run(test)


def test_who_leaves_before_its_turn_takes_no_place() -> None:
    async def test() -> None:
        nodes = Nodes(1)
        waiting = [asyncio.create_task(nodes.queue.enter()) for _ in range(AHEAD + 2)]
        await settle(waiting, AHEAD)
        waiting[AHEAD].cancel()
        nodes.queue.leave(await waiting[0])
        await waiting[-1]
        assert nodes.alive[0].asked == AHEAD
        late = asyncio.create_task(nodes.queue.enter())
        await asyncio.sleep(0.05)
        nodes.queue.leave(nodes.alive[0])
        while nodes.alive[0].asked < AHEAD:
            await asyncio.sleep(0)
        late.cancel()  # it has its node already, and does not know
        await asyncio.gather(late, return_exceptions=True)
        assert nodes.alive[0].asked == AHEAD - late.cancelled()

    run(test)


def test_all_are_told_when_none_is_left() -> None:
    async def test() -> None:
        nodes = Nodes(1)
        waiting = [asyncio.create_task(nodes.queue.enter()) for _ in range(AHEAD + 3)]
        await settle(waiting, AHEAD)
        nodes.is_over = True
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found[AHEAD:]] == [SandboxLost] * 3
        nodes.is_over = False
        nodes.alive = [node(1)]
        assert await nodes.queue.enter() is nodes.alive[0], "and later again"

    run(test)


def test_a_pool_that_closes_tells_all() -> None:
    async def test() -> None:
        nodes = Nodes()
        waiting = [asyncio.create_task(nodes.queue.enter()) for _ in range(3)]
        await asyncio.sleep(0.05)
        nodes.queue.close(RuntimeError("closed"))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(one) for one in found] == ["closed"] * 3

    run(test)
