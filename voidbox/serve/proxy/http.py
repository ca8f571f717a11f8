"""HTTP to a port of a guest: streamed both ways, one connection a request."""

from __future__ import annotations

import asyncio
import contextlib

import h11
from starlette.types import Receive, Scope, Send

from voidbox.serve.errors import ApiError, SandboxGone
from voidbox.serve.proxy.headers import masked, passed_on
from voidbox.serve.proxy.stream import GuestStream
from voidbox.serve.served import Served


async def forward(served: Served, port: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request on, and its answer back.

    Raises:
        ApiError: before the answer has begun: nobody listens, or what listens speaks no HTTP.
    """
    with await GuestStream.open(served, port) as stream:
        connection = h11.Connection(h11.CLIENT)
        body = asyncio.create_task(_send_request(connection, stream, served, port, scope, receive))
        answer = asyncio.create_task(_Answer(connection, stream, send).run())
        try:
            await asyncio.wait({body, answer}, return_when=asyncio.FIRST_COMPLETED)
            if body.done() and not answer.done() and body.exception() is None:
                return  # the client has gone
            await asyncio.wait({answer})
        finally:
            for task in (body, answer):
                task.cancel()
            await asyncio.gather(body, answer, return_exceptions=True)
        if not answer.cancelled() and (error := answer.exception()) is not None:
            raise error


async def _send_request(
    connection: h11.Connection,
    stream: GuestStream,
    served: Served,
    port: int,
    scope: Scope,
    receive: Receive,
) -> None:
    """Send the request as it comes, then wait until the client goes."""
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = masked(passed_on(scope["headers"]), served, port)
    names = {name for name, _ in headers}
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])
    if is_chunked and b"content-length" not in names:
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    request = h11.Request(method=scope["method"], target=target, headers=headers)
    await stream.write(connection.send(request) or b"")
    with contextlib.suppress(ConnectionError, h11.LocalProtocolError):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if message.get("body"):
                await stream.write(connection.send(h11.Data(data=message["body"])) or b"")
            if not message.get("more_body"):
                break
        await stream.write(connection.send(h11.EndOfMessage()) or b"")
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    def __init__(self, connection: h11.Connection, stream: GuestStream, send: Send) -> None:
        self._connection = connection
        self._stream = stream
        self._send = send
        self._has_begun = False

    async def run(self) -> None:
        try:
            while not await self._step():
                pass
        except (h11.RemoteProtocolError, ConnectionError, SandboxGone) as error:
            if self._has_begun:
                return  # without an end: the client's connection is cut
            if isinstance(error, SandboxGone):
                raise
            raise ApiError(502, f"what listens on the port gave no answer: {error}") from error

    async def _step(self) -> bool:
        """Do one thing; True once the answer is whole."""
        event = self._connection.next_event()
        if event is h11.NEED_DATA:
            self._connection.receive_data(await self._stream.read())
        elif isinstance(event, h11.Response):
            self._has_begun = True
            await self._send(
                {
                    "type": "http.response.start",
                    "status": event.status_code,
                    "headers": passed_on(event.headers),
                }
            )
        elif isinstance(event, h11.Data):
            body = bytes(event.data)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        elif isinstance(event, h11.EndOfMessage):
            await self._send({"type": "http.response.body", "body": b""})
            return True
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise ConnectionError("it closed the connection")
        return False
