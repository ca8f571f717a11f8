"""Connect's protocol with its JSON codec: unary calls, and streams of enveloped messages.

    struct envelope { u8 flags; u32 length; u8 message[length]; }    big-endian

A stream's answer is always HTTP 200; its last envelope has the flag END_STREAM and says how it
ended. connectrpc.com, "Protocol".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from voidbox.errors import VoidboxError
from voidbox.serve.bodies import Fields, parse_fields
from voidbox.serve.errors import STATUS_OF, ApiError, ConnectError, SandboxGone, as_connect_error

ENVELOPE = struct.Struct("!BI")
COMPRESSED, END_STREAM = 1, 2
MESSAGE_BYTES_MAX = 4 << 20
STREAM_TYPE = "application/connect+json"
KEEPALIVE_S = 90.0  # unless the client asks for another
_KEEPALIVE_S_MIN, _LIMIT_S_MAX = 1.0, 7 * 86400.0

assert ENVELOPE.size == 5

Message = Mapping[str, object]


def envelope(message: Message, flags: int = 0) -> bytes:
    """Return a message in its envelope."""
    data = json.dumps(message, separators=(",", ":")).encode()
    return ENVELOPE.pack(flags, len(data)) + data


def error_answer(error: ConnectError) -> Response:
    """Return the answer of a unary call that failed."""
    return JSONResponse(error.body(), STATUS_OF.get(error.code, 500))


def failure_of(error: Exception) -> ConnectError:
    """Return what a client is told of any error that we raise on purpose."""
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, VoidboxError):
        return as_connect_error(error)
    if isinstance(error, ApiError):
        return ConnectError("invalid_argument", str(error))
    raise error


async def messages(request: Request) -> AsyncIterator[Fields]:
    """Yield the messages that a client streams, each as it comes.

    Raises:
        ConnectError: what comes are no messages, or too long ones.
    """
    buffer = bytearray()
    try:
        async for chunk in request.stream():
            buffer += chunk
            while len(buffer) >= ENVELOPE.size:
                flags, length = ENVELOPE.unpack_from(buffer)
                if length > MESSAGE_BYTES_MAX:
                    raise ConnectError(
                        "resource_exhausted",
                        f"a message of {length} bytes: {MESSAGE_BYTES_MAX} at most",
                    )
                if flags & COMPRESSED:
                    raise ConnectError("unimplemented", "compressed messages")
                end = ENVELOPE.size + length
                if len(buffer) < end:
                    break
                message = bytes(buffer[ENVELOPE.size : end])
                del buffer[:end]
                if not flags & END_STREAM:
                    yield parse_fields(message)
    except ClientDisconnect:
        return
    if buffer:
        raise ConnectError("invalid_argument", "the last message ended early")


async def one_message(request: Request) -> Fields:
    """Return the one message of a request whose answer is a stream.

    Raises:
        ConnectError: there is none.
    """
    async for message in messages(request):
        return message
    raise ConnectError("invalid_argument", "the request has no message")


def limit_s(request: Request) -> float | None:
    """Return for how long the client wants an answer; None for ever.

    Raises:
        ConnectError: it says no number.
    """
    value = request.headers.get("connect-timeout-ms")
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 10:
        raise ConnectError("invalid_argument", "Connect-Timeout-Ms is a number of milliseconds")
    return min(int(value) / 1000, _LIMIT_S_MAX) or None


def keepalive_s(request: Request) -> float:
    """Return after how long without a message the client wants a sign of life."""
    value = request.headers.get("keepalive-ping-interval", "")
    return max(_KEEPALIVE_S_MIN, float(value)) if value.isdecimal() else KEEPALIVE_S


class StreamResponse(Response):
    """A stream of messages, which ends as `source` does.

    A source that raises SandboxGone leaves the answer without an end: so a client knows that the
    sandbox, and not the call, is over. When the client has gone the source is cancelled.

    Args:
        first: what the source has given already; see begun().
    """

    media_type = STREAM_TYPE

    def __init__(self, source: AsyncGenerator[Message], first: Message | None = None) -> None:
        super().__init__(media_type=self.media_type)
        del self.headers["content-length"]
        self._source = source
        self._first = first

    @classmethod
    async def begun(cls, source: AsyncGenerator[Message]) -> StreamResponse:
        """Return the answer of a source that has begun: from now on it misses nothing."""
        return cls(source, await anext(source))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see ASGI."""
        # The source frees what it holds here, and not when a collector comes by.
        async with contextlib.aclosing(self._source):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sending = asyncio.create_task(self._send_all(send))
            leaving = asyncio.create_task(_wait_for_disconnect(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)
            if not sending.cancelled() and (error := sending.exception()) is not None:
                raise error

    async def _send_all(self, send: Send) -> None:
        end: dict[str, object] = {}
        try:
            if self._first is not None:
                await _send_message(send, self._first)
            async for message in self._source:
                await _send_message(send, message)
        except SandboxGone:
            return
        except (ConnectError, ApiError, VoidboxError) as error:
            end = {"error": failure_of(error).body()}
        await send({"type": "http.response.body", "body": envelope(end, END_STREAM)})


async def _send_message(send: Send, message: Message) -> None:
    await send({"type": "http.response.body", "body": envelope(message), "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def failed_stream(error: ConnectError) -> AsyncGenerator[Message]:
    """Return a stream that begins with its end."""
    raise error
    yield
