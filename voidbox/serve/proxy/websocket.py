"""WebSockets to a port of a guest."""

from __future__ import annotations

import asyncio
from typing import Any

import wsproto
from starlette.types import Receive, Scope, Send
from wsproto import events

from voidbox.serve.both_ways import until_one_ends
from voidbox.serve.errors import ApiError, SandboxGone
from voidbox.serve.proxy.headers import masked, passed_on, value_of
from voidbox.serve.proxy.stream import GuestStream
from voidbox.serve.served import Served

MESSAGE_BYTES_MAX = 16 << 20  # as uvicorn's, for what clients send
_HANDSHAKE_S = 30.0
_ABNORMAL, _TOO_BIG = 1006, 1009  # RFC 6455 §7.4.1
_GOING_AWAY = 1001
# What the handshake itself makes anew.
_HANDSHAKE = frozenset(
    (b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
     b"sec-websocket-protocol", b"host", b"origin")
)  # fmt: skip


async def forward(served: Served, port: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a WebSocket on until either side closes it.

    Raises:
        ApiError: before it is accepted: nobody listens, or the guest refuses.
    """
    assert (await receive())["type"] == "websocket.connect"
    with await GuestStream.open(served, port) as stream:
        guest = _Guest(stream)
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                accepted = await guest.handshake(served, port, scope)
        except (TimeoutError, ConnectionError, SandboxGone, wsproto.utilities.ProtocolError) as e:
            raise ApiError(502, f"what listens on the port accepts no WebSocket: {e}") from e
        await send({"type": "websocket.accept", "subprotocol": accepted.subprotocol})
        await until_one_ends(_to_guest(guest, receive), _to_client(guest, send))


class _Guest:
    """The guest's side: a client's half of RFC 6455."""

    def __init__(self, stream: GuestStream) -> None:
        self._stream = stream
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def handshake(self, served: Served, port: int, scope: Scope) -> events.AcceptConnection:
        """Open it.

        Raises:
            ApiError: with the status that the guest answers.
        """
        target = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        headers = masked(passed_on(scope["headers"]), served, port)
        extra = [(name, value) for name, value in headers if name not in _HANDSHAKE]
        origin = value_of(headers, b"origin")
        if origin:
            extra.append((b"origin", origin.encode("latin-1")))
        await self.send(
            events.Request(
                host=value_of(headers, b"host") or "localhost",
                target=target,
                subprotocols=list(scope.get("subprotocols") or ()),
                extra_headers=extra,
            )
        )
        while True:
            for event in await self.receive():
                if isinstance(event, events.AcceptConnection):
                    return event
                if isinstance(event, events.RejectConnection):
                    raise ApiError(event.status_code, "the guest refuses the WebSocket")
                if isinstance(event, events.CloseConnection):
                    raise ConnectionError("it closed the connection")

    async def send(self, event: events.Event) -> None:
        await self._stream.write(self._connection.send(event))

    async def receive(self) -> list[events.Event]:
        found = list(self._connection.events())
        if not found:
            data = await self._stream.read()
            self._connection.receive_data(data or None)
            found = list(self._connection.events())
        return found


async def _to_guest(guest: _Guest, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or _GOING_AWAY
            if code != _ABNORMAL:
                await guest.send(events.CloseConnection(code=code))
            return
        if message.get("bytes") is not None:
            await guest.send(events.BytesMessage(data=message["bytes"]))
        else:
            await guest.send(events.TextMessage(data=message["text"]))


async def _to_client(guest: _Guest, send: Send) -> None:
    text: list[str] = []
    data: list[bytes] = []
    size = 0
    try:
        while True:
            for event in await guest.receive():
                if isinstance(event, events.Ping):
                    await guest.send(event.response())
                elif isinstance(event, events.CloseConnection):
                    await _close(send, event.code, event.reason or "")
                    return
                elif isinstance(event, events.Message):
                    part: Any = event.data
                    (text if isinstance(part, str) else data).append(part)
                    size += len(part)
                    if size > MESSAGE_BYTES_MAX:
                        await _close(send, _TOO_BIG, "a message that is too long")
                        return
                    if event.message_finished:
                        key, whole = ("text", "".join(text)) if text else ("bytes", b"".join(data))
                        await send({"type": "websocket.send", key: whole})
                        text, data, size = [], [], 0
    except (ConnectionError, SandboxGone, wsproto.utilities.ProtocolError):
        await _close(send, _GOING_AWAY, "the guest's side is gone")


async def _close(send: Send, code: int, reason: str) -> None:
    is_sendable = 1000 <= code < 5000 and code not in (1004, 1005, 1006, 1015)
    await send({"type": "websocket.close", "code": code if is_sendable else 1000, "reason": reason})
