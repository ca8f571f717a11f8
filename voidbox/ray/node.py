"""A node: a pool of this host's sandboxes, for holders on other machines.

A holder is a program, by a word of its own. It has a lease on what it has taken: when it says
nothing for long enough, its sandboxes are ended. Nothing in here knows Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from voidbox.errors import PoolFull, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.pool.aio import AsyncPool
from voidbox.pool.member import PooledSandbox
from voidbox.ray import copying, tls
from voidbox.ray.answers import NodeDrains, refusal
from voidbox.ray.carrier import GatewayCarrier, NodeAddress
from voidbox.ray.gateway import Answer, Gateway, refused
from voidbox.ray.held import Held, is_same
from voidbox.sandbox.control import encode
from voidbox.sandbox.state.store import Store
from voidbox.sdk.creating import CreateOptions

LEASE_S = 60.0
QUEUE_MAX = 1024
_HELD_LINE_BYTES_MAX = 1 << 20

_logger = logging.getLogger("voidbox")


class NodeOptions(NamedTuple):
    """What a node is told.

    Attributes:
        size, warm, starts, host_memory, isolated, request_timeout, state_folder, options: see
            AsyncPool.
        labels: text to text, which each of its sandboxes has in its metadata.
        lease_s: so long a holder may say nothing.
        queue_max: the most calls of acquire() that wait; more are told that it is full.
        is_secured: whether its gateway wants TLS.
        is_shared: it outlives whoever made it.
    """

    size: int
    warm: int = 0
    starts: int | None = None
    host_memory: int | str | None = "auto"
    isolated: bool = False
    request_timeout: float | None = None
    state_folder: str | None = None
    options: CreateOptions = {}
    labels: Mapping[str, str] = {}
    lease_s: float = LEASE_S
    queue_max: int = QUEUE_MAX
    is_secured: bool = False
    is_shared: bool = False


class Node:
    """See above. Thread: the event loop's.

    Args:
        host: the address at which others reach this host.
        make_pool: makes the pool, of AsyncPool's arguments.

    Attributes:
        drained: set once all that was used has ended, after drain().
    """

    def __init__(
        self,
        options: NodeOptions,
        host: str,
        make_pool: Callable[..., AsyncPool] = AsyncPool,
    ) -> None:
        self._options = options
        created = CreateOptions(**options.options)
        created["metadata"] = {**(created.get("metadata") or {}), **options.labels}
        self._pool = make_pool(
            options.size,
            warm=options.warm,
            starts=options.starts,
            host_memory=options.host_memory,
            isolated=options.isolated,
            request_timeout=options.request_timeout,
            state_folder=options.state_folder,
            **created,
        )
        self._certificate = tls.make_certificate() if options.is_secured else None
        self._gateway = Gateway(host, self._serve, self._certificate)
        self._token = secrets.token_hex(32)  # of who may take sandboxes by the gateway
        self._store: Store | None = None
        self._address = ("", 0)
        self._held: dict[str, Held] = {}
        self._leases: dict[str, float] = {}  # until when
        self._waiting = 0
        self._asking: dict[tuple[str, int | None], asyncio.Future[PooledSandbox]] = {}
        self._copying = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self.drained = asyncio.Event()

    # Its life.

    async def listen(self) -> dict[str, Any]:
        """Begin to serve, and return how it is reached: host, port, token, certificate.

        Raises:
            VoidboxError: this host cannot.
        """
        self._store = await asyncio.to_thread(Store, self._options.state_folder)
        await asyncio.to_thread(self._store.clean)  # what an earlier pool left, if it was killed
        self._address = await self._gateway.open()
        self._sweeping = asyncio.create_task(self._sweep())
        return {
            "host": self._address[0],
            "port": self._address[1],
            "token": self._token,
            "certificate": self._certificate.certificate if self._certificate else "",
            "size": self._options.size,
        }

    async def open(self) -> None:
        """Begin to have sandboxes; what they are made of is here by now.

        Raises:
            VoidboxError: the pool's options make no sense, or this host cannot.
        """
        await self._pool.__aenter__()

    def drain(self) -> None:
        """Give out no more, and end what is warm: the machine is to end. Idempotent.

        Whoever waits is told so; what is used may be used on.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._pool.drain()
        self.drained.set()

    async def close(self) -> None:
        """End everything. Idempotent."""
        for task in (self._sweeping, self._draining):
            if task is not None:
                task.cancel()
        await self._gateway.close()
        self._held.clear()
        await self._pool.close()

    # What sandboxes are made of; see copying.

    async def find(self, kind: str, key: str) -> copying.Found | None:
        """Return what a name stands for here; None for nothing."""
        return await asyncio.to_thread(copying.find, kind, key, self._folder)

    async def pull(self, name: str) -> None:
        """Have an image come from its registry. Once, however many ask."""
        async with self._copying:
            if await self.find(copying.IMAGE, name) is None:
                await asyncio.to_thread(copying.pull, name, self._folder)

    async def fetch(self, kind: str, key: str, peer: NodeAddress) -> None:
        """Have an image or a snapshot come from another node. Once, however many ask.

        Raises:
            VoidboxError: see copying.receive().
        """
        async with self._copying:
            if await self.find(kind, key) is None:
                await asyncio.to_thread(self._fetch, kind, key, peer)

    def _fetch(self, kind: str, key: str, peer: NodeAddress) -> None:
        sock = GatewayCarrier(peer).open("", peer.token, "copy", None, {"kind": kind, "key": key})
        copying.receive(sock, kind, key, self._folder)

    @property
    def _folder(self) -> str:
        assert self._store is not None, "listen() comes first"
        return self._store.folder

    # What holders ask for.

    async def acquire(
        self,
        holder: str,
        timeout: float | None = None,
        options: CreateOptions | None = None,
        number: int | None = None,
    ) -> dict[str, Any]:
        """Return a ticket, as JSON has it, and how full it is here.

        Args:
            number: by which its holder can withdraw() it.
        Raises:
            PoolFull: none was free in time, or too many wait already, or it was withdrawn.
            NodeDrains: it gives none any more.
            VoidboxError: see AsyncPool.acquire().
        """
        if self._draining is not None:
            raise _drains()
        if self._waiting >= self._options.queue_max:
            raise PoolFull(f"{self._waiting} wait for a sandbox of this node already", 1.0)
        self.renew(holder)
        if options is not None and (labels := self._options.labels):
            metadata = {**(options.get("metadata") or {}), **labels}
            options = CreateOptions(**{**options, "metadata": metadata})
        asking = asyncio.ensure_future(self._pool.acquire(timeout, options))
        self._asking[holder, number] = asking
        self._waiting += 1
        try:
            await asyncio.wait((asking,))
        except asyncio.CancelledError:
            asking.cancel()
            asking.add_done_callback(_end_unwanted)
            raise
        finally:
            self._waiting -= 1
            self._asking.pop((holder, number), None)
        if asking.cancelled():
            raise PoolFull("it was withdrawn", 0.0)
        if self._draining is not None and (error := asking.exception()):
            raise _drains() from error
        sandbox = asking.result()
        try:
            assert self._store is not None
            record = await asyncio.to_thread(self._store.read, sandbox.sandbox_id)
            held = await asyncio.to_thread(Held, self._store, sandbox, record, holder)
        except BaseException:
            await sandbox.kill()
            raise
        self._held[record.id] = held
        self.renew(holder)
        return {"ticket": held.ticket().to_json(), **self.load()}

    def withdraw(self, holder: str, number: int) -> None:
        """Have an acquire() that waits get nothing. One that has got a sandbox has it."""
        asking = self._asking.get((holder, number))
        if asking is not None:
            asking.cancel()

    async def release(self, id: str) -> bool:
        """End a sandbox, and wait for that; False if it had ended."""
        held = self._held.pop(id, None)
        return await held.sandbox.kill() if held is not None else False

    def renew(self, holder: str) -> dict[str, Any]:
        """Go on having what a holder has; return how full it is here."""
        until = asyncio.get_running_loop().time() + self._options.lease_s
        # That of a connection has no end, whoever renews it.
        self._leases[holder] = max(until, self._leases.get(holder, 0.0))
        held = sum(one.holder == holder for one in self._held.values())
        return {**self.load(), "held": held}

    async def leave(self, holder: str) -> int:
        """End all that a holder has; return how many that were."""
        self._leases.pop(holder, None)
        ids = [id for id, held in self._held.items() if held.holder == holder]
        await asyncio.gather(*(self.release(id) for id in ids), return_exceptions=True)
        return len(ids)

    async def reap(self, labels: Mapping[str, str]) -> int:
        """End all sandboxes that somebody has, with these labels; return how many."""
        wanted = labels.items()
        found = [id for id, one in self._held.items() if wanted <= one.record.metadata.items()]
        await asyncio.gather(*(self.release(id) for id in found), return_exceptions=True)
        return len(found)

    def load(self) -> dict[str, Any]:
        """Return how full it is: size, used, waiting, and how many have a lease."""
        stats = self._pool.stats()
        return {
            "size": stats.size,
            "used": stats.given + stats.ending,
            "waiting": stats.waiting,
            "holders": len(self._leases),
        }

    def stats(self) -> dict[str, Any]:
        """Return what the pool says of itself, by PoolStats' names."""
        return self._pool.stats()._asdict()

    async def ask(self, id: str, token: str, op: str, values: dict[str, Any]) -> Answer:
        """Do what a holder asks of a sandbox; see held.

        Raises:
            VoidboxError: it cannot be done, or the holder has no such sandbox.
        """
        held = self._held.get(id)
        if held is None or not held.is_for(token):
            raise refused()
        if op == "release":
            return {"was_alive": await self.release(id)}
        return await held.ask(op, values)

    async def _serve(self, request: dict[str, Any]) -> Answer:
        """Answer what comes by the gateway."""
        token, id, op = (request.pop(name, None) for name in ("token", "id", "op"))
        if not all(isinstance(text, str) for text in (token, op)):
            raise refused()
        if op in ("hold", "copy") and is_same(self._token, token):
            if op == "hold":
                return self._hold
            kind, key = str(request.get("kind")), str(request.get("key"))
            return await asyncio.to_thread(copying.send, kind, key, self._folder)
        return await self.ask(str(id), str(token), str(op), request)

    # A holder that is a connection: what it has ends with it.

    async def _hold(self, sock: socket.socket) -> None:
        holder, loop = secrets.token_hex(8), asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        lock = asyncio.Lock()
        rest = b""
        self._leases[holder] = float("inf")
        try:
            while data := await loop.sock_recv(sock, 64 << 10):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _HELD_LINE_BYTES_MAX:
                    return
                for line in lines:
                    task = asyncio.create_task(self._answer_held(sock, lock, holder, line))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        finally:
            for task in list(tasks):
                task.cancel()
            await asyncio.shield(self._end_hold(holder, list(tasks)))

    async def _end_hold(self, holder: str, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.leave(holder)

    async def _answer_held(
        self, sock: socket.socket, lock: asyncio.Lock, holder: str, line: bytes
    ) -> None:
        request = json.loads(line)  # of a program that has this node's token
        answer: dict[str, Any]
        try:
            if request["op"] == "acquire":
                answer = {"ok": True, **await self.acquire(holder, request["timeout"])}
            else:
                answer = {"ok": True, "was_alive": await self.release(str(request["id"]))}
        except VoidboxError as error:
            answer = refusal(error)
        async with lock:  # whole lines
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(
                    sock, encode({"n": request["n"], **answer})
                )

    async def _sweep(self) -> None:
        """End what nobody renews."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._options.lease_s / 4)
            for holder in [one for one, until in self._leases.items() if until < loop.time()]:
                if count := await self.leave(holder):
                    _logger.warning("ended %d sandboxes: nobody renewed their lease", count)


def _drains() -> NodeDrains:
    return NodeDrains("the node gives no more sandboxes: Ray drains it")


def _end_unwanted(asking: asyncio.Future[PooledSandbox]) -> None:
    """End a sandbox that came for somebody who left at that moment."""
    if not asking.cancelled() and asking.exception() is None:
        asking.result().retire()
