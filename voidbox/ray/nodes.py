"""The nodes that a pool has: those that there are, as they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError

from voidbox.errors import ConfigError, PoolFull, SandboxLost, VoidboxError
from voidbox.ray import copying, members
from voidbox.ray.members import Member
from voidbox.ray.node import NodeOptions
from voidbox.ray.remote import RemoteSandbox
from voidbox.ray.spreading import spread
from voidbox.sdk import draft
from voidbox.sdk.creating import CreateOptions

LOOK_S = 5.0
_POLL_S = 0.5
_DRAINING_S = 1.0

_logger = logging.getLogger("voidbox")


def without_cluster(options: CreateOptions, addresses: Sequence[str]) -> CreateOptions:
    """Return the options of sandboxes that do not reach the cluster's machines.

    Whoever reaches Ray's ports may run programs on all of them, and private networks are open to a
    guest by default. A snapshot has the rules of its sandbox.
    """
    if options.get("block_network") or options.get("snapshot") is not None:
        return options
    closed = sorted({address for address in addresses if ":" not in address})
    return CreateOptions(**{**options, "deny": [*(options.get("deny") or ()), *closed]})


class Nodes:
    """See above. Thread: the event loop's.

    Args:
        options: of each node; its size may be 0, for what the node announces.
        resource: that they announce.
        name: of a pool that is shared; None for one's own.
        transport: see AsyncPool.
        node_pool: the actor's class, for Ray.
        find_demand: finds the actor that tells the autoscaler; None for a cluster that never grows.
        idle_s: so long a node is kept that nobody needs, then.
    """

    def __init__(
        self,
        options: NodeOptions,
        resource: str,
        name: str | None,
        transport: str,
        node_pool: Any,
        find_demand: Callable[[], Any] | None,
        idle_s: float,
    ) -> None:
        self._options, self._resource, self._name = options, resource, name
        self._transport, self._node_pool = transport, node_pool
        self._find_demand, self._idle_s = find_demand, idle_s
        self._holder = secrets.token_hex(8)
        self._members: dict[str, Member] = {}
        self._resting: set[str] = set()  # nodes that were let go
        self._asking = 0  # calls of acquire() and run_near()
        self._mine: weakref.WeakSet[RemoteSandbox] = weakref.WeakSet()
        self._closing = asyncio.Event()
        self._closed = ""  # why nothing is given any more
        self._watching: list[asyncio.Task[None]] = []

    @property
    def grows(self) -> bool:
        """Whether nodes may come because they are wanted."""
        return self._find_demand is not None

    def alive(self) -> list[Member]:
        """Return the nodes that are not lost, as far as we know."""
        return [one for one in self._members.values() if not one.is_lost]

    def ready(self) -> list[Member]:
        """Return those of them that give sandboxes: that are not about to end."""
        return [one for one in self.alive() if not one.is_draining]

    def watch(self) -> None:
        """Begin to renew what is ours, and to look for nodes."""
        # Apart: a node that takes its time to begin must not cost what others have its lease.
        self._watching = [
            asyncio.create_task(self._repeat(self._options.lease_s / 4, self._renew)),
            asyncio.create_task(self._repeat(LOOK_S, self._look_again)),
            asyncio.create_task(self._repeat(_DRAINING_S, self._drain_those_that_end)),
        ]

    async def leave(self) -> None:
        """Leave all nodes; end their pools, if they are nobody else's. Idempotent."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._watching:
            with contextlib.suppress(RayError):
                await self._publish(0)
        ending = [one.end(self._holder, self._name is not None) for one in self._members.values()]
        self._members.clear()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _repeat(self, pause_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, pause_s))
            try:
                await act()
            except (VoidboxError, RayError) as error:
                _logger.warning("looking after nodes: %s", error)

    async def _renew(self) -> None:
        await asyncio.gather(*(self.load(one) for one in self.alive()))

    async def load(self, member: Member) -> dict[str, Any]:
        """Renew what we have of a node; return how full it is, nothing if it is gone."""
        try:
            load = await member.call("renew", self._holder)
        except VoidboxError:
            return {}
        member.learn(load)
        return load

    async def _look_again(self) -> None:
        await self._let_go()
        await self._publish(self._wanted())
        await self.look(is_first=False)

    async def look(self, is_first: bool) -> None:
        """Have a pool on each node; forget what is gone.

        Raises:
            VoidboxError: `is_first`, and there is none that could be begun; or nowhere could one.
        """
        nodes, addresses = await asyncio.to_thread(members.nodes_with, self._resource)
        draining = await asyncio.to_thread(members.draining)
        found = {node["NodeID"]: node for node in nodes}
        for id, member in list(self._members.items()):
            if member.is_lost or id not in found:
                member.is_lost = True
                del self._members[id]
        if self._wanted() > sum(one.size for one in self.ready()):
            self._resting.clear()
        begun = [
            self._begin(node, addresses)
            for id, node in found.items()
            if id not in self._members and id not in self._resting and id not in draining
        ]
        problems = await self._open(begun)
        for problem in problems:
            if isinstance(problem, ConfigError) or (is_first and not self._members):
                raise problem
            _logger.warning("%s", problem)

    def _begin(self, node: dict[str, Any], addresses: list[str]) -> Member:
        created = without_cluster(self._options.options, addresses)
        options = self._options._replace(options=created)
        return members.begin(
            self._node_pool, node, options, self._resource, self._name, self._transport
        )

    async def _open(self, begun: list[Member]) -> list[VoidboxError]:
        """Have nodes begin to give sandboxes; return what is wrong with those that do not."""
        listening = await asyncio.gather(*(self._try(one, one.listen()) for one in begun))
        listeners = [one for one, problem in zip(begun, listening, strict=True) if not problem]
        if wanted := copying.wanted(self._options.options):
            await spread([*self.alive(), *listeners], *wanted, listeners)
        opening = await asyncio.gather(*(self._try(one, one.call("open")) for one in listeners))
        for member, problem in zip(listeners, opening, strict=True):
            if problem is None:
                self._members[member.id] = member
        return [one for one in (*listening, *opening) if one is not None]

    async def _try(self, member: Member, step: Awaitable[object]) -> VoidboxError | None:
        """Take a step of a node's beginning; return why it could not be, and leave it then."""
        try:
            await step
        except VoidboxError as error:
            await member.end(self._holder, self._name is not None)
            return error
        return None

    # What all of them are asked.

    async def stats_of_nodes(self) -> dict[str, dict[str, Any]]:
        """Return what each node's pool says of itself, by the node's name; see PoolStats."""
        alive = self.alive()
        found = await asyncio.gather(*(one.call("stats") for one in alive), return_exceptions=True)
        return {
            member.name: answer["stats"]
            for member, answer in zip(alive, found, strict=True)
            if isinstance(answer, dict)
        }

    async def reap(self, labels: Mapping[str, str]) -> int:
        """End all sandboxes with these labels, whoever has them; return how many.

        Raises:
            ConfigError: that would be all of them.
        """
        wanted = draft.check_texts("labels", labels)
        if not wanted:
            raise ConfigError("reap({}) would end everybody's sandboxes: give a label")
        answers = await asyncio.gather(*(one.call("reap", wanted) for one in self.alive()))
        return sum(answer["ended"] for answer in answers)

    # Machines that are to end.

    async def _drain_those_that_end(self) -> None:
        """Have nodes that Ray drains give no more, and leave each when all there has ended."""
        draining = await asyncio.to_thread(members.draining)
        ending = [one for one in self.alive() if one.is_draining or one.id in draining]
        await asyncio.gather(*(self._drain(one) for one in ending))

    async def _drain(self, member: Member) -> None:
        if not member.is_draining:
            _logger.warning("Ray drains node %s: it gets no more sandboxes", member.name)
        with contextlib.suppress(SandboxLost):
            await member.drain()
            is_asked = member.asked > 0  # before it is asked what it has: answers may overtake
            if not (await self.load(member)).get("used") and not is_asked:
                await self._end(member)

    async def _end(self, member: Member) -> None:
        member.is_lost = True
        await member.end(self._holder, self._name is not None)

    # A cluster that grows.

    def _wanted(self) -> int:
        """Return how many sandboxes this program has, and waits for."""
        return self._asking + sum(not sandbox.is_released for sandbox in self._mine)

    async def _publish(self, count: int) -> None:
        if self._find_demand is not None:
            await self._find_demand().put.remote(self._holder, self._resource, count)

    async def wait_for_one(self, deadline: float | None) -> None:
        """Wait for a node, where some may come.

        Raises:
            PoolFull: none came in time.
            ConfigError: the pool is closed.
        """
        while self.grows and not self.ready():
            if self._closed:
                raise ConfigError(self._closed)
            left_s = LOOK_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise PoolFull("no node of the cluster has sandboxes yet", LOOK_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(_POLL_S, left_s))

    async def _let_go(self) -> None:
        """Leave nodes that nobody needs, so that they may end."""
        now = time.monotonic()
        for member in self.alive() if self.grows else ():
            if not member.used and now - member.idle_since > self._idle_s:
                _logger.info("nobody needs node %s: letting it go", member.name)
                self._resting.add(member.id)
                await self._end(member)
