"""Pool: AsyncPool for programs that block.

ray.init()
with voidbox.ray.Pool(image="python:3.12") as pool:
    with pool.sandbox() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from voidbox.pool.sync import BlockingPool
from voidbox.ray import retrying
from voidbox.ray.aio import AsyncPool
from voidbox.sdk.facade import blocking, constructing, documented_by
from voidbox.sdk.loop_thread import run
from voidbox.sdk.sync import Sandbox

T = TypeVar("T")
R = TypeVar("R")


class Pool(BlockingPool[AsyncPool]):
    """Sandboxes of many machines. Use as a context manager: what it has given ends with it.

    See AsyncPool, which all of this is the blocking form of.
    """

    @constructing(AsyncPool)
    def __init__(self) -> None: ...

    def _work(self, function: Callable[[Sandbox, T], R], task: T) -> R:
        left = retrying.Tries()
        while True:
            with left:
                return super()._work(function, task)

    @documented_by(AsyncPool.run_near)
    def run_near(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return run(self._core.run_near(function, *arguments, **named))

    reap = blocking(AsyncPool.reap)
    stats_of_nodes = blocking(AsyncPool.stats_of_nodes)
