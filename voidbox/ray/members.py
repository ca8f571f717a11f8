"""The nodes of a pool: found, begun, watched, and let go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from voidbox.errors import ConfigError, HostError, SandboxLost, VoidboxError
from voidbox.ray.answers import checked
from voidbox.ray.calls import ActorCarrier
from voidbox.ray.carrier import Carrier, GatewayCarrier, NodeAddress, is_there, lost_with
from voidbox.ray.copying import Found
from voidbox.ray.node import NodeOptions
from voidbox.ray.rollouts import ROLLOUTS_MAX, Rollouts

NAMESPACE = "voidbox"
TRANSPORTS = ("auto", "socket", "actor")
_SAY_S, OPEN_S = 10.0, 120.0
_CLOSE_S = 30.0
_ASKED_AT_ONCE = 32
_CALLS_MAX = 2 * ROLLOUTS_MAX  # of a runner: rollouts alone in theirs, and what is said of others

_logger = logging.getLogger("voidbox")


def nodes_with(resource: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the live nodes of the cluster that announce a resource, as ray.nodes() has them.

    And the addresses of all live nodes.

    Thread: any; it asks each of them, for Ray knows of a node's end many seconds later.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    known = [node for node in alive if node["Resources"].get(resource, 0) >= 1]
    if not known:
        return [], addresses
    with ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(known))) as threads:
        answers = list(threads.map(lambda node: is_there(_raylet(node)), known))
    return [node for node, answer in zip(known, answers, strict=True) if answer], addresses


def draining() -> set[str]:
    """Return the ids of nodes that are to end: that the autoscaler, or `ray drain-node`, drains.

    Ray puts no actor there any more, and ends the node when none is left. Thread: any.
    """
    return set(state.get_draining_nodes())


def _raylet(node: dict[str, Any]) -> tuple[str, int]:
    return node["NodeManagerAddress"], node["NodeManagerPort"]


class Member:
    """One node's pool, as a program has it. Thread: the event loop's.

    Args:
        node: of ray.nodes().
        actor: NodePool's handle.
        transport: one of TRANSPORTS.

    Attributes:
        id, name: Ray's of the node.
        carrier: the way to its sandboxes.
        asked: calls of ours that have not been answered.
        rollouts: None before the first one.
        is_draining: it gives no more sandboxes, for its machine is to end.
        has: names of images and snapshots that it has, as far as we know.
    """

    def __init__(self, node: dict[str, Any], actor: Any, transport: str) -> None:
        self.id: str = node["NodeID"]
        self.name: str = f"{node['NodeManagerHostname']}/{self.id[:8]}"
        self.actor = actor
        self.rollouts: Rollouts | None = None
        self.asked = 0
        self.is_lost = False
        self.is_draining = False
        self.has: set[str] = set()
        self.idle_since = time.monotonic()
        self._probe = _raylet(node)
        self._transport = transport
        self._size, self._used = 1, 0
        self.address = NodeAddress(self.name, "", 0, "", "", self._probe)
        self.carrier: Carrier = ActorCarrier(actor, self.address)

    @property
    def size(self) -> int:
        """How many sandboxes it may have."""
        return self._size

    @property
    def used(self) -> int:
        """How many it has given, as it said last, and how many we have asked for since."""
        return self._used + self.asked

    @property
    def fullness(self) -> float:
        """See placement."""
        return self.used / self._size

    async def listen(self) -> None:
        """Wait until it is there, and can be asked.

        Raises:
            VoidboxError: it cannot be.
        """
        opening = asyncio.ensure_future(self.actor.listen.remote())
        try:
            try:
                answer = await asyncio.wait_for(asyncio.shield(opening), _SAY_S)
            except TimeoutError:
                _logger.warning(
                    "the pool of node %s waits for its resource: another pool may have it",
                    self.name,
                )
                answer = await asyncio.wait_for(opening, OPEN_S)
        except TimeoutError:
            raise HostError(
                f"the pool of node {self.name} does not start: another pool may have the node's "
                "resource; `ray status` shows who"
            ) from None
        except RayError as error:
            raise HostError(f"the pool of node {self.name} does not start: {error}") from error
        found = checked(answer)
        self._size = int(found["size"])
        self.address = NodeAddress(
            self.name,
            str(found["host"]),
            int(found["port"]),
            str(found["token"]),
            str(found["certificate"]),
            self._probe,
        )
        await self._choose_carrier()

    async def _choose_carrier(self) -> None:
        self.carrier = ActorCarrier(self.actor, self.address)
        if self._transport == "actor":
            return
        gateway = GatewayCarrier(self.address)
        try:
            await asyncio.to_thread(gateway.ask, "", "", "record", None, {})
        except SandboxLost as error:
            if self._transport == "socket":
                raise HostError(
                    f"the gateway of node {self.name} cannot be reached at {self.address.host}: "
                    f'open its ports, or take transport="actor" ({error})'
                ) from error
            _logger.warning("no way to the gateway of node %s: by calls of its actor", self.name)
            return
        except VoidboxError:
            pass  # it answers, and has no such sandbox
        self.carrier = gateway

    async def find(self, kind: str, key: str) -> Found | None:
        """Return what it has by a name; None for nothing, or if it is gone."""
        try:
            found: Found | None = (await self.call("find", kind, key))["found"]
        except SandboxLost:
            return None
        return found

    async def call(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Call the actor.

        Raises:
            SandboxLost: it is gone.
            VoidboxError: what it refused with.
        """
        try:
            answer: dict[str, Any] = await getattr(self.actor, method).remote(*arguments)
        except RayError as error:
            raise await self.lose(type(error).__name__) from error
        return checked(answer)

    async def lose(self, why: str) -> SandboxLost:
        """Know that it is gone; return the error for it."""
        self.is_lost = True
        return await asyncio.to_thread(lost_with, self.address, why)

    async def drain(self) -> None:
        """Have it give no more sandboxes, to nobody; those that it has given stay."""
        self.is_draining = True
        await self.call("drain")

    def learn(self, load: dict[str, Any]) -> None:
        """Take note of how full it said it is."""
        self._used = int(load["used"]) + int(load["waiting"])
        if self.used:
            self.idle_since = time.monotonic()

    def begin_rollouts(self, cls: Any, runtime_env: dict[str, Any] | None) -> Rollouts:
        """Return what runs rollouts there.

        Args:
            cls: Runner's, for Ray.
        """
        if self.rollouts is None:
            here = NodeAffinitySchedulingStrategy(self.id, soft=False)
            env = {} if runtime_env is None else {"runtime_env": runtime_env}
            runner = cls.options(
                num_cpus=0, max_concurrency=_CALLS_MAX, scheduling_strategy=here, **env
            ).remote(self.address)
            self.rollouts = Rollouts(runner)
        return self.rollouts

    async def end(self, holder: str, is_shared: bool) -> None:
        """Leave it; end it, if it is nobody else's."""
        if self.rollouts is not None:
            await self.rollouts.close()
        with contextlib.suppress(VoidboxError, TimeoutError, RayError):
            method = ("leave", holder) if is_shared else ("close",)
            await asyncio.wait_for(self.call(*method), _CLOSE_S)
        if not is_shared:
            with contextlib.suppress(RayError):
                ray.kill(self.actor)


def begin(
    cls: Any,
    node: dict[str, Any],
    options: NodeOptions,
    resource: str,
    name: str | None,
    transport: str,
) -> Member:
    """Have a node's pool begin, or find the one of this name.

    Args:
        cls: NodePool's, for Ray.
        name: of a pool that outlives this program; None for one that ends with it.
    """
    amount = node["Resources"][resource] if options.size < 1 else options.size
    if amount > node["Resources"][resource]:
        raise ConfigError(
            f"per_node={options.size}: node {node['NodeManagerHostname']} announces "
            f"{node['Resources'][resource]:g} {resource}"
        )
    options = options._replace(size=int(amount))
    kept: dict[str, Any] = {}
    if name is not None:
        kept = {
            "name": f"{name}-{node['NodeID']}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
        }
    actor = cls.options(
        num_cpus=0,
        max_restarts=0,
        resources={resource: options.size},
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        **kept,
    ).remote(options)
    return Member(node, actor, transport)
