"""Pool: AsyncPool for programs that block.

ray.init()
with voidbox.ray.Pool(image="python:3.12") as pool:
    with pool.sandbox() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Unpack

from voidbox.pool.host_memory import AUTO
from voidbox.pool.sync import BlockingPool
from voidbox.ray import retrying
from voidbox.ray.aio import IDLE_S, AsyncPool
from voidbox.ray.node import LEASE_S
from voidbox.sdk.creating import CreateOptions
from voidbox.sdk.facade import blocking, documented_by
from voidbox.sdk.loop_thread import run
from voidbox.sdk.sync import Sandbox

T = TypeVar("T")
R = TypeVar("R")


class Pool(BlockingPool[AsyncPool]):
    """Sandboxes of many machines. Use as a context manager: what it has given ends with it.

    See AsyncPool, which all of this is the blocking form of.
    """

    def __init__(
        self,
        *,
        nodes: str = "kvm",
        per_node: int | None = None,
        warm: int = 0,
        starts: int | None = None,
        host_memory: int | str | None = AUTO,
        isolated: bool = False,
        request_timeout: float | None = None,
        state_folder: str | None = None,
        transport: str = "auto",
        tls: bool | None = None,
        shared_as: str | None = None,
        labels: Mapping[str, str] | None = None,
        lease: float = LEASE_S,
        runtime_env: dict[str, Any] | None = None,
        autoscale: bool = False,
        idle: float = IDLE_S,
        **options: Unpack[CreateOptions],
    ) -> None:
        """See AsyncPool."""
        super().__init__(
            AsyncPool(
                nodes=nodes,
                per_node=per_node,
                warm=warm,
                starts=starts,
                host_memory=host_memory,
                isolated=isolated,
                request_timeout=request_timeout,
                state_folder=state_folder,
                transport=transport,
                tls=tls,
                shared_as=shared_as,
                labels=labels,
                lease=lease,
                runtime_env=runtime_env,
                autoscale=autoscale,
                idle=idle,
                **options,
            )
        )

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
