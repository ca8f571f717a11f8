"""A node's gateway: one TCP port, by which its sandboxes are used from other machines.

    → {"token": "…", "id": "…", "op": "dial", "port": 1234}
    ← {"ok": true, "becomes": true}, and then the bytes of the guest's vsock port

A connection is one request, of one line of JSON, as on a sandbox's control socket (see
voidbox.sandbox.control), and its answer. What an op is stands in `held`. Whoever has no token that
fits is sent away with the same words, whatever it asked for.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from voidbox.errors import AgentError, ConfigError, HostError, VoidboxError
from voidbox.ray import tls
from voidbox.ray.joining import join
from voidbox.sandbox.control import BECOMES, REQUEST_BYTES_MAX, describe_error, encode

CONNECTIONS_MAX = 8192
STREAM_BYTES = 1 << 20  # of a piece that a call brings, where nobody reaches the gateway
STRANGERS_MAX = 256  # that have not shown a token yet: each may cost a thread, and 64 KiB
_BACKLOG = 1024
_HEAD_S = 15.0  # for the one line
_ACCEPT_PAUSE_S = 0.1
# A peer that is gone without a word is noticed within so many seconds.
_IDLE_S, _PROBE_S, _PROBES, _UNSENT_MS = 2, 1, 2, 4000

_logger = logging.getLogger("voidbox")

Stream = Callable[[socket.socket], Awaitable[None]]
Answer = dict[str, object] | Stream
Handler = Callable[[dict[str, Any]], Awaitable[Answer]]


def watch_peer(sock: socket.socket) -> None:
    """Have the kernel end a TCP connection whose other end is gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)


class Gateway:
    """Serves one port. Thread: the event loop's.

    Args:
        host: the address to listen at: the node's own.
        handler: answers a request; a VoidboxError of it goes to the client. An answer that is a
            function gets the connection, and ends it by returning.
        certificate: None for connections without TLS.
    """

    def __init__(
        self, host: str, handler: Handler, certificate: tls.Certificate | None = None
    ) -> None:
        self._host, self._handler = host, handler
        self._context = None if certificate is None else tls.server_context(certificate)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._strangers = 0

    async def open(self) -> tuple[str, int]:
        """Listen; return where.

        Raises:
            HostError: there is no such address here.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((self._host, 0))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise HostError.from_errno(f"listen at {self._host}", error.errno or 0) from error
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))
        address: tuple[str, int] = listener.getsockname()[:2]
        return address

    async def close(self) -> None:
        """End all connections. Idempotent."""
        if self._accepting is None or self._listener is None:
            return
        tasks = [self._accepting, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno == errno.EBADF:
                    return
                await asyncio.sleep(_ACCEPT_PAUSE_S)  # no descriptors: some come free
                continue
            if len(self._serving) >= CONNECTIONS_MAX or self._strangers >= STRANGERS_MAX:
                sock.close()
                continue
            task = asyncio.create_task(self._serve(sock))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            self._strangers += 1
            try:
                watch_peer(sock)
                if self._context is not None:
                    sock = await _shake_hands(sock, self._context)
                sock.setblocking(False)
                async with asyncio.timeout(_HEAD_S):
                    request = await _read_request(sock)
            finally:
                self._strangers -= 1
            await self._answer(sock, request)
        except (OSError, TimeoutError):
            pass  # it left, or was too slow
        finally:
            sock.close()

    async def _answer(self, sock: socket.socket, request: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await self._handler(request)
        except VoidboxError as error:
            await loop.sock_sendall(sock, encode(describe_error(error)))
            return
        except Exception as error:  # a fault of ours: told to both sides
            _logger.exception("a request to the gateway failed")
            fault = HostError(f"voidbox failed: {error!r}")
            await loop.sock_sendall(sock, encode(describe_error(fault)))
            return
        if isinstance(answer, dict):
            await loop.sock_sendall(sock, encode({"ok": True, **answer}))
            return
        await loop.sock_sendall(sock, encode({"ok": True, BECOMES: True}))
        await answer(sock)


async def _shake_hands(sock: socket.socket, context: ssl.SSLContext) -> socket.socket:
    return await asyncio.to_thread(tls.unwrapped, sock, context, True)


async def _read_request(sock: socket.socket) -> dict[str, Any]:
    """Return the request; whatever is none is as one without a token."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(sock, REQUEST_BYTES_MAX)
        if not data or len(line) + len(data) > REQUEST_BYTES_MAX:
            raise ConnectionResetError
        line += data
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    return request if isinstance(request, dict) else {}


def forward_to(guest: socket.socket) -> Stream:
    """Return what joins a connection to a guest's, and owns the latter."""

    async def joined(sock: socket.socket) -> None:
        with guest:
            guest.setblocking(False)
            await join(sock, guest)

    return joined


def refused() -> AgentError:
    """Return what those without a token hear, and those who are too late."""
    return AgentError("the node's pool has no such sandbox, or not any more")


def check_port(port: object) -> int:
    """Return a vsock port. Raises ConfigError if it is none."""
    if type(port) is not int or not 0 < port < 1 << 32:
        raise ConfigError(f"{port!r} is no vsock port")
    return port
