"""The way to a sandbox's agent: a WebSocket whose binary messages are the bytes of its protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from voidbox.errors import VoidboxError
from voidbox.serve.both_ways import until_one_ends
from voidbox.serve.control.auth import key_of
from voidbox.serve.errors import ApiError, as_api_error
from voidbox.serve.keys import Key
from voidbox.serve.own.routes import BASE
from voidbox.serve.registry import Registry

_READ_BYTES = 64 << 10


class AgentWay:
    """Serves it. Whoever has the key may as well do all that the agent does."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def route(self) -> WebSocketRoute:
        """Return its route."""
        return WebSocketRoute(f"{BASE}/sandboxes/{{id}}/agent", self._serve)

    async def _serve(self, client: WebSocket) -> None:
        keys = self._registry.keys
        try:
            key = key_of(client, keys, "run")
            guest = await self._connect(client, key)
        except (ApiError, VoidboxError) as error:
            answer = error if isinstance(error, ApiError) else as_api_error(error)
            await client.send_denial_response(
                JSONResponse(answer.body(), answer.status, answer.headers)
            )
            return
        with guest:
            await client.accept()
            await until_one_ends(
                _to_guest(client, guest), _to_client(guest, client), keys.until_removed(key)
            )
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has gone
                await client.close()

    async def _connect(self, client: WebSocket, key: Key) -> socket.socket:
        served = self._registry.find(client.path_params["id"], key)
        client.scope["voidbox.sandbox"] = served.id
        try:
            guest = await asyncio.to_thread(served.dial_agent)
        except OSError as error:
            message = (
                f"the agent of {served.record.name} cannot be reached: {error.strerror or error}"
            )
            raise ApiError(502, message, error_code="agent") from error
        guest.setblocking(False)
        return guest


async def _to_guest(client: WebSocket, guest: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        message = await client.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("bytes"):
            await loop.sock_sendall(guest, message["bytes"])


async def _to_client(guest: socket.socket, client: WebSocket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(guest, _READ_BYTES):
        await client.send_bytes(data)
