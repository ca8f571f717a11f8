"""Two sockets that are joined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine

import pytest

from voidbox.ray.joining import join

WAIT_S = 60.0

Socket = socket.socket
Test = Callable[[Socket, Socket, asyncio.Task[None]], Coroutine[object, object, None]]


def tcp_pair() -> tuple[Socket, Socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def pipes() -> int:
    """Return how many ends of pipes this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    return found


def run(test: Test) -> None:
    """Run a test with the far ends of a TCP connection and of a Unix socket, which are joined."""

    async def joined() -> None:
        ends = (*tcp_pair(), *socket.socketpair())
        for end in ends:
            end.setblocking(False)
        tcp, near_tcp, near_unix, unix = ends
        before = pipes()
        task = asyncio.create_task(join(near_tcp, near_unix))
        try:
            async with asyncio.timeout(WAIT_S):
                await test(tcp, unix, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert pipes() == before
            for end in ends:
                end.close()

    asyncio.run(joined())


async def receive(sock: Socket) -> bytes:
    """Return all until the end."""
    loop, parts = asyncio.get_running_loop(), []
    while data := await loop.sock_recv(sock, 1 << 20):
        parts.append(data)
    return b"".join(parts)


async def send(sock: Socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


def test_both_ways_at_once_whole_and_in_order() -> None:
    async def test(tcp: Socket, unix: Socket, joining: asyncio.Task[None]) -> None:
        there, back = os.urandom(9_000_001), os.urandom(7_000_003)
        sent = send(tcp, there), send(unix, back)
        _, _, at_unix, at_tcp = await asyncio.gather(*sent, receive(unix), receive(tcp))
        assert (at_unix, at_tcp) == (there, back)
        await joining

    run(test)


def test_one_way_may_end_before_the_other() -> None:
    async def test(tcp: Socket, unix: Socket, joining: asyncio.Task[None]) -> None:
        await send(tcp, b"a question")
        assert await receive(unix) == b"a question"
        assert not joining.done()
        await send(unix, b"an answer")
        assert await receive(tcp) == b"an answer"
        await joining

    run(test)


def test_who_does_not_read_holds_up_who_sends() -> None:
    async def test(tcp: Socket, unix: Socket, joining: asyncio.Task[None]) -> None:
        data = bytes(64 << 20)  # more than all buffers
        sending = asyncio.create_task(send(unix, data))
        await asyncio.get_running_loop().sock_sendall(tcp, b"the other way")
        assert await asyncio.get_running_loop().sock_recv(unix, 100) == b"the other way"
        assert not sending.done()
        assert await receive(tcp) == data
        await sending
        tcp.shutdown(socket.SHUT_WR)
        await joining

    run(test)


def test_who_leaves_ends_it() -> None:
    async def test(tcp: Socket, unix: Socket, joining: asyncio.Task[None]) -> None:
        unix.close()
        await asyncio.get_running_loop().sock_sendall(tcp, b"nobody reads this")
        with pytest.raises(OSError):
            await joining

    run(test)
