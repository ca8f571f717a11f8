"""AsyncPool: a pool over the nodes of a Ray cluster. Pool is the same, blocking.

ray.init()
async with voidbox.ray.AsyncPool(image="python:3.12", warm=4) as pool:
    async with pool.sandbox() as sandbox:
        await sandbox.commands.run("python3 -c 'print(6 * 7)'")
    result = await pool.run_near(rollout, "task 1")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, Unpack

import ray
from ray.exceptions import RayTaskError

from voidbox.errors import ConfigError, PoolFull, SandboxLost, VoidboxError
from voidbox.pool import options as given_options
from voidbox.pool.giving import Giving
from voidbox.pool.host_memory import AUTO
from voidbox.pool.stats import PoolStats
from voidbox.ray import actor, copying, demand, runner
from voidbox.ray.answers import NodeDrains
from voidbox.ray.members import TRANSPORTS, Member
from voidbox.ray.node import LEASE_S, NodeOptions
from voidbox.ray.nodes import LOOK_S, Nodes
from voidbox.ray.placement import choose
from voidbox.ray.queueing import Queue
from voidbox.ray.remote import RemoteSandbox
from voidbox.ray.retrying import Tries
from voidbox.ray.rollouts import RunnerLost, RunnerRefused
from voidbox.ray.spreading import spread
from voidbox.ray.ticket import Ticket
from voidbox.ray.tls import is_wanted_by_ray
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.state.names import check_name
from voidbox.sdk import draft
from voidbox.sdk.creating import CreateOptions

IDLE_S = 300.0
_DRAIN_S = 0.2
_RETRY_S_MAX = 2.0
_MOVE_S = 2.0  # so often those who wait for a node look for room on others
_FIRST = asyncio.FIRST_COMPLETED

T = TypeVar("T")
R = TypeVar("R")
_logger = logging.getLogger("voidbox")


class AsyncPool(Nodes, Giving[RemoteSandbox]):
    """Sandboxes of many machines. Use as a context manager: what it has given ends with it.

    Each node with the resource gets one actor, which has that node's sandboxes. Data goes over
    sockets to the node, not through Ray. Sandboxes end with this program, however it ends.

    Args:
        nodes: the resource that nodes announce: see `voidbox ray-node`.
        per_node: the most sandboxes of a node; as much of the resource as it announces by default.
        warm, starts, host_memory, isolated, request_timeout, state_folder: of each node; see
            voidbox.AsyncPool.
        transport: how data goes: "socket", to each node's gateway; "actor", in calls of its actor;
            "auto": by the gateway where it can be reached.
        tls: whether gateways want TLS; as Ray's own traffic (RAY_USE_TLS) by default.
        shared_as: a name, by which other programs share the pool, and which outlives them; None
            for one's own.
        labels: text to text, in the metadata of each sandbox: reap() ends those that have them.
        lease: what this program has taken ends when nothing was heard of it for so many seconds.
        runtime_env: Ray's, of what runs rollouts.
        autoscale: tell the cluster's autoscaler how many sandboxes are wanted, wait for nodes where
            there is none, and let go of those that nobody needs, so that they may end.
        idle: so many seconds a node is kept without a sandbox, then.
        options: of AsyncSandbox.create(), for each of them. Files of "the host" are the node's.
    Raises:
        ConfigError: one of these makes no sense.
    """

    node_pool: type[actor.NodePool] = actor.NodePool
    rollout_runner: type[runner.Runner] = runner.Runner

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
        if transport not in TRANSPORTS:
            raise ConfigError(f"transport={transport!r}: choose {', '.join(TRANSPORTS)}")
        if shared_as is not None:
            check_name(shared_as)
        _check_for_nodes(options)
        given_options.complete(options)
        super().__init__(
            NodeOptions(
                size=0 if per_node is None else given_options.check_count("per_node", per_node, 1),
                warm=given_options.check_count("warm", warm, 0),
                starts=starts,
                host_memory=host_memory,
                isolated=isolated,
                request_timeout=request_timeout,
                state_folder=state_folder,
                options=options,
                labels=draft.check_texts("labels", labels),
                lease_s=check_seconds("lease", lease),
                is_secured=is_wanted_by_ray() if tls is None else tls,
                is_shared=shared_as is not None,
            ),
            nodes,
            shared_as,
            transport,
            actor.remote(type(self).node_pool),
            demand.find if autoscale else None,
            check_seconds("idle", idle),
        )
        self._runtime_env = runtime_env
        self._runner = runner.remote(type(self).rollout_runner)
        self._given_back: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()  # of calls of acquire(), for their nodes
        self._queue = Queue(lambda roomy: self._pick(roomy, {}), self._left)

    @property
    def size(self) -> int:  # type: ignore[override]
        """The most sandboxes that there are at once, on the nodes that there are now."""
        return sum(member.size for member in self._members.values())

    # Its life.

    async def __aenter__(self) -> AsyncPool:
        if self._watching or self._closed:
            raise ConfigError("a pool is opened once: make another one")
        if not ray.is_initialized():
            raise ConfigError("Ray is not connected: call ray.init() first")
        try:
            await self.look(is_first=True)
            if not self._members and not self.grows:
                raise ConfigError(
                    f"no node of this cluster announces {self._resource}: `voidbox ray-node` on "
                    "each of them prints how to start it"
                )
        except BaseException:
            await self.close()
            raise
        self.watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all that it has given, and its nodes' pools if they are nobody else's. Idempotent."""
        self._closed = "the pool is closed"
        self._closing.set()
        self._queue.close(ConfigError(self._closed))
        await self.leave()
        await asyncio.gather(*self._given_back, return_exceptions=True)

    async def drain(self) -> None:
        """Give out no more, and wait until all that this program uses have ended.

        Whoever waits in acquire() gets ConfigError.
        """
        self._closed = "the pool is being drained"
        self._closing.set()
        while self._asking or any([(await self.load(one)).get("held") for one in self.alive()]):
            await asyncio.sleep(_DRAIN_S)

    # Taking.

    async def acquire(
        self, timeout: float | None = None, options: CreateOptions | None = None
    ) -> RemoteSandbox:
        """Return a sandbox of some node; see voidbox.AsyncPool.acquire().

        Raises:
            PoolFull: none was free in time.
            SandboxLost: no node is left.
            ConfigError: the pool is not open, or an option makes no sense.
            VoidboxError: what its start failed with.
        """
        self._check_open()
        _check_for_nodes(options or {})
        if timeout is not None and timeout != 0:
            check_seconds("timeout", timeout)
        self._asking += 1
        try:
            sandbox = await self._acquire_somewhere(timeout, options)
        finally:
            self._asking -= 1
        self._mine.add(sandbox)
        return sandbox

    async def _acquire_somewhere(
        self, timeout: float | None, options: CreateOptions | None
    ) -> RemoteSandbox:
        deadline = None if timeout is None else time.monotonic() + timeout
        full: set[str] = set()
        while True:
            await self.wait_for_one(deadline)
            member = self._choose(full, options or {})
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if key := copying.wanted(options or {}):
                    await spread(self.alive(), *key, [member])
                return await self._acquire(member, left_s, options)
            except PoolFull as error:
                full.add(member.id)
                if len(full) < len(self.ready()):
                    continue
                if left_s is not None and left_s <= error.retry_after:
                    raise
                await asyncio.sleep(min(_RETRY_S_MAX, error.retry_after))
                full.clear()
            except NodeDrains:
                member.is_draining = True
            except SandboxLost:
                self._check_open()  # another one, then

    async def _acquire(
        self, member: Member, timeout: float | None, options: CreateOptions | None
    ) -> RemoteSandbox:
        number = next(self._numbers)
        asked = member.call("acquire", self._holder, timeout, options, number)
        member.asked += 1
        calling = asyncio.ensure_future(asked)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not (calling.done() or closing.done() or self._is_room_beside(member)):
                await asyncio.wait((calling, closing), timeout=_MOVE_S, return_when=_FIRST)
        finally:
            closing.cancel()
            member.asked -= 1
            if not calling.done():
                giving_back = asyncio.create_task(self._give_back(member, calling, number))
                self._given_back.add(giving_back)
                giving_back.add_done_callback(self._given_back.discard)
        if not calling.done():
            if self._closed:
                raise ConfigError(self._closed)
            raise PoolFull("there is room on another node", 0.0)
        answer = calling.result()
        member.learn(answer)
        return RemoteSandbox(member.carrier, Ticket.from_json(answer["ticket"]), member.name)

    def _is_room_beside(self, member: Member) -> bool:
        """Whether who waits for a node would get a sandbox elsewhere at once."""
        if member.fullness <= 1.0:
            return False
        return any(one.fullness < 1.0 for one in self.ready())

    async def _give_back(
        self, member: Member, calling: asyncio.Future[dict[str, Any]], number: int
    ) -> None:
        """Have a node not begin what nobody waits for any more; end it, where that is too late."""
        with contextlib.suppress(VoidboxError):
            await member.call("withdraw", self._holder, number)
            ticket = Ticket.from_json((await calling)["ticket"])
            await RemoteSandbox(member.carrier, ticket, member.name).kill()

    def _choose(self, full: set[str], options: CreateOptions) -> Member:
        ready = self._left()
        if not ready:
            raise _none_left()
        return self._pick([one for one in ready if one.id not in full] or ready, options)

    def _left(self) -> list[Member]:
        """Return nodes that give. Raises SandboxLost: there is none, and none will come."""
        ready = self.ready()
        if not ready and not self.grows:
            raise ConfigError("no node is left") if self._closed else _none_left()
        return ready

    def _pick(self, among: list[Member], options: CreateOptions) -> Member:
        key = copying.wanted(options)
        found = choose(among, lambda one: key is None or key[1] in one.has)
        assert found is not None
        return found

    async def _work(self, function: Callable[[RemoteSandbox, T], Awaitable[R]], task: T) -> R:
        """Do one task of map(); once more elsewhere, where it was not the task that failed."""
        tries = Tries()
        while True:
            with tries:
                return await super()._work(function, task)

    async def run_near(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what `function(sandbox, *arguments)` returns, run on its sandbox's node.

        Beside the sandbox no request crosses the network, and one call of Ray's a rollout. A
        coroutine is given an AsyncSandbox, a function a Sandbox. It is sent as Ray sends functions.

        Raises:
            SandboxLost: the node, its pool, or the sandbox is gone.
            Exception: what the function raised.
        """
        self._check_open()
        self._asking += 1
        try:
            while True:
                member = await self._queue.enter()
                try:
                    return await self._run_near(member, function, arguments, named)
                except NodeDrains:  # before it began
                    member.is_draining = True
                finally:
                    self._queue.leave(member)
        finally:
            self._asking -= 1

    async def _run_near(
        self,
        member: Member,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        there = member.begin_rollouts(self._runner, self._runtime_env)
        try:
            return await there.run(function, arguments, named)
        except RayTaskError as error:
            raise error.cause or error from error
        except RunnerRefused as error:
            raise NodeDrains(str(error)) from error
        except RunnerLost as error:
            if member.rollouts is there:
                member.rollouts = None
            if await self._is_there(member):
                raise SandboxLost(
                    f"what runs rollouts on node {member.name} has ended: {error}", "pool"
                ) from error
            raise await member.lose("RayActorError") from error

    async def _is_there(self, member: Member) -> bool:
        try:
            await asyncio.wait_for(member.call("renew", self._holder), LOOK_S)
        except (VoidboxError, TimeoutError):
            return False
        return True

    def stats(self) -> PoolStats:
        """Return what there is now, of all nodes, as far as they have said."""
        used = sum(min(one.used, one.size) for one in self.alive())
        none = dict.fromkeys(PoolStats._fields, 0)
        waiting = sum(max(0, one.used - one.size) for one in self.alive())
        return PoolStats(**{**none, "size": self.size, "given": used, "waiting": waiting})  # type: ignore[arg-type]

    def _check_open(self) -> None:
        if not self._watching and not self._closed:
            raise ConfigError("the pool is not open: use `async with AsyncPool(…) as pool`")
        if self._closed:
            raise ConfigError(self._closed)


def _none_left() -> SandboxLost:
    return SandboxLost("no node of the pool is left, for now", "node")


def _check_for_nodes(options: CreateOptions) -> None:
    """Refuse what means a folder of this machine, which nodes do not have.

    Raises:
        ConfigError: that.
    """
    if options.get("workspace") is not None:
        raise ConfigError(
            "workspace= is a folder of one machine: upload it, with sandbox.files.upload()"
        )
