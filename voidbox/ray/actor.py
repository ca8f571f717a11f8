"""NodePool: a node as an actor of Ray, one a machine. It needs no CPU of Ray's, and no restarts.

Its calls are in groups, each with room of its own, so that an end overtakes any number of starts
that wait. The node itself lives on one event loop, on a thread of its own: Ray has one a group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from voidbox.errors import VoidboxError
from voidbox.pool.aio import AsyncPool
from voidbox.pool.member import PooledSandbox
from voidbox.ray import surroundings
from voidbox.ray.answers import refusal
from voidbox.ray.carrier import NodeAddress
from voidbox.ray.gateway import STREAM_BYTES
from voidbox.ray.node import Node, NodeOptions
from voidbox.sdk.creating import CreateOptions

GROUPS = {"make": 4096, "ctl": 256, "data": 4096}
_REST_S = 60.0
_THREADS = 64  # for what blocks: starts, questions to sandboxes' processes
_LEASES_LEFT = 10

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _in_group(name: str) -> Callable[[F], F]:
    """Have calls of a method run in the room of a group."""
    decorate: Callable[[F], F] = ray.method(concurrency_group=name)
    return decorate


class ExposedPool(AsyncPool):
    """An AsyncPool whose sandboxes the kernel ends before it."""

    async def _make(self, options: CreateOptions | None, is_held: bool) -> PooledSandbox:
        sandbox = await super()._make(options, is_held)
        pid = (await asyncio.to_thread(sandbox._place.peek)).pid
        await asyncio.to_thread(surroundings.expose_to_oom, pid)
        return sandbox


class NodePool:
    """The actor. Its methods answer with errors, as a control socket does, and raise none.

    Attributes:
        make_pool: see Node.
        make_node: makes the node.
    """

    make_pool: Callable[..., AsyncPool] = ExposedPool
    make_node: Callable[..., Node] = Node

    def __init__(self, options: NodeOptions) -> None:
        surroundings.be_a_pool()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "voidbox-node"))
        threading.Thread(target=self._loop.run_forever, name="voidbox-node", daemon=True).start()
        raylet_fd = surroundings.open_raylet()
        if raylet_fd is not None:  # without it nobody can be asked about us, nor end us
            self._loop.call_soon_threadsafe(self._loop.add_reader, raylet_fd, os._exit, 1)
        self._options = options
        self._node: Node | None = None
        self._opening: asyncio.Future[None] | None = None
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0

    async def _run(self, coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Return what a coroutine of the node returns, or its error as an answer."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            found = await asyncio.wrap_future(future)
            return {"ok": True, **found}
        except VoidboxError as error:
            return refusal(error)

    @_in_group("ctl")
    async def listen(self) -> dict[str, Any]:
        """See Node. Idempotent."""
        return await self._run(self._listen())

    async def _listen(self) -> dict[str, Any]:
        if self._node is None:
            host = ray.util.get_node_ip_address()
            self._node = type(self).make_node(self._options, host, type(self).make_pool)
            self._listening = asyncio.ensure_future(self._node.listen())
            if self._options.is_shared:
                self._watching = asyncio.ensure_future(self._end_when_left(self._node))
        return await asyncio.shield(self._listening)

    async def _end_when_left(self, node: Node) -> None:
        """End a pool that outlives its makers, once nobody has a lease for long, or it is drained:
        it would keep its machine from ending.
        """
        left_at = self._loop.time()
        while self._loop.time() - left_at < _LEASES_LEFT * self._options.lease_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(node.drained.wait(), self._options.lease_s)
                break
            if node.load()["holders"]:
                left_at = self._loop.time()
        await node.close()
        os._exit(0)  # the actor's own exit is for its threads, which this is none of

    @_in_group("ctl")
    async def open(self) -> dict[str, Any]:
        """See Node. Idempotent."""

        async def open() -> dict[str, Any]:
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._opened.open())
            await asyncio.shield(self._opening)
            return {}

        return await self._run(open())

    @_in_group("ctl")
    async def find(self, kind: str, key: str) -> dict[str, Any]:
        """See Node."""

        async def find() -> dict[str, Any]:
            return {"found": await self._opened.find(kind, key)}

        return await self._run(find())

    @_in_group("data")
    async def fetch(self, kind: str, key: str, peer: NodeAddress | None) -> dict[str, Any]:
        """See Node; without a peer, as pull()."""

        async def fetch() -> dict[str, Any]:
            if peer is None:
                await self._opened.pull(key)
            else:
                await self._opened.fetch(kind, key, peer)
            return {}

        return await self._run(fetch())

    @property
    def _opened(self) -> Node:
        assert self._node is not None, "listen() comes first"
        return self._node

    @_in_group("make")
    async def acquire(
        self,
        holder: str,
        timeout: float | None,
        options: CreateOptions | None,
        number: int | None = None,
    ) -> dict[str, Any]:
        """See Node."""
        return await self._run(self._opened.acquire(holder, timeout, options, number))

    @_in_group("ctl")
    async def withdraw(self, holder: str, number: int) -> dict[str, Any]:
        """See Node."""

        async def withdraw() -> dict[str, Any]:
            self._opened.withdraw(holder, number)
            return {}

        return await self._run(withdraw())

    @_in_group("ctl")
    async def ask(self, id: str, token: str, op: str, values: dict[str, Any]) -> dict[str, Any]:
        """See Node; for what is answered at once."""

        async def ask() -> dict[str, Any]:
            answer = await self._opened.ask(id, token, op, values)
            assert isinstance(answer, dict), "streams are opened"
            return answer

        return await self._run(ask())

    @_in_group("ctl")
    async def renew(self, holder: str) -> dict[str, Any]:
        """See Node."""

        async def renew() -> dict[str, Any]:
            return self._opened.renew(holder)

        return await self._run(renew())

    @_in_group("ctl")
    async def drain(self) -> dict[str, Any]:
        """See Node. Idempotent."""

        async def drain() -> dict[str, Any]:
            self._opened.drain()
            return {}

        return await self._run(drain())

    @_in_group("ctl")
    async def leave(self, holder: str) -> dict[str, Any]:
        """See Node."""

        async def leave() -> dict[str, Any]:
            return {"ended": await self._opened.leave(holder), **self._opened.load()}

        return await self._run(leave())

    @_in_group("ctl")
    async def reap(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """See Node."""

        async def reap() -> dict[str, Any]:
            return {"ended": await self._opened.reap(labels)}

        return await self._run(reap())

    @_in_group("ctl")
    async def stats(self) -> dict[str, Any]:
        """See Node."""

        async def stats() -> dict[str, Any]:
            return {"stats": self._opened.stats(), "pid": os.getpid()}

        return await self._run(stats())

    @_in_group("ctl")
    async def close(self) -> dict[str, Any]:
        """End everything."""

        async def close() -> dict[str, Any]:
            if self._node is not None:
                await self._node.close()
            return {}

        return await self._run(close())

    # Streams, where nobody reaches the gateway. Each piece is asked for: who does not ask is sent
    # nothing, and holds up the guest, as a socket would.

    @_in_group("data")
    async def open_stream(
        self, id: str, token: str, op: str, values: dict[str, Any]
    ) -> dict[str, Any]:
        """Open what becomes a stream; return its number."""

        async def open_stream() -> dict[str, Any]:
            join = await self._opened.ask(id, token, op, values)
            assert not isinstance(join, dict), "what is answered at once is asked for"
            ours, theirs = socket.socketpair()
            self._last_stream = number = self._last_stream + 1
            task = asyncio.create_task(_joined(join, theirs))
            self._streams[number] = _Stream(ours, task)
            # Its reader has some time for the rest, and may have died.
            task.add_done_callback(lambda _: self._loop.call_later(_REST_S, self._forget, number))
            return {"stream": number}

        return await self._run(open_stream())

    @_in_group("data")
    async def read_stream(self, number: int, turn: int) -> bytes:
        """Return what comes next; nothing at the end. Turns are counted: Ray's calls overtake."""
        return await self._on_stream(number, lambda stream: stream.read(turn), b"")

    @_in_group("data")
    async def write_stream(self, number: int, turn: int, data: bytes) -> bool:
        """Write; False once nobody takes it any more. Turns are counted: Ray's calls overtake."""
        return await self._on_stream(number, lambda stream: stream.write(turn, data), False)

    @_in_group("ctl")
    async def close_stream(self, number: int) -> None:
        """End a stream. Idempotent."""
        self._loop.call_soon_threadsafe(self._forget, number)

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()

    async def _on_stream(
        self, number: int, act: Callable[[_Stream], Coroutine[Any, Any, T]], otherwise: T
    ) -> T:
        stream = self._streams.get(number)
        if stream is None:
            return otherwise
        future = asyncio.run_coroutine_threadsafe(act(stream), self._loop)
        try:
            return await asyncio.wrap_future(future)
        except OSError:
            return otherwise


async def _joined(join: Callable[[socket.socket], Any], sock: socket.socket) -> None:
    with sock:
        sock.setblocking(False)
        await join(sock)


class _Turns:
    """Has what comes in any order be done in the order of its numbers, from 0."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, number: int) -> AsyncIterator[None]:
        if number != self._next:
            future = self._waiting[number] = asyncio.get_running_loop().create_future()
            await future
        yield
        self._next += 1
        following = self._waiting.pop(self._next, None)
        if following is not None and not following.done():  # its call may be cancelled
            following.set_result(None)

    def close(self) -> None:
        """Have all that wait fail."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError())
        self._waiting.clear()


class _Stream:
    """One stream of the actor. Thread: the node's event loop."""

    def __init__(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        sock.setblocking(False)
        self._sock, self._task = sock, task
        self._reads, self._writes = _Turns(), _Turns()

    async def read(self, turn: int) -> bytes:
        async with self._reads.turn(turn):
            data = await asyncio.get_running_loop().sock_recv(self._sock, STREAM_BYTES)
            parts, size = [data], len(data)
            while data and size < STREAM_BYTES:
                await asyncio.sleep(0)  # whoever fills it may do so
                try:
                    data = self._sock.recv(STREAM_BYTES - size)
                except BlockingIOError:
                    break
                parts.append(data)
                size += len(data)
            return b"".join(parts)

    async def write(self, turn: int, data: bytes) -> bool:
        async with self._writes.turn(turn):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
            return True

    def close(self) -> None:
        self._task.cancel()
        self._reads.close()
        self._writes.close()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # whoever reads now is told
        asyncio.get_running_loop().call_soon(self._sock.close)


def remote(cls: type[NodePool]) -> Any:
    """Return the actor's class for Ray."""
    return ray.remote(concurrency_groups=GROUPS)(cls)
