"""One client's connection: frames in, requests started, frames out.

What carries the bytes, a socket or the serial line, calls `receive`, `take_outgoing` and `close`,
and is told of new output through `on_outgoing`.
"""

from __future__ import annotations

import errno
from collections import deque

from guest_agent import protocol
from guest_agent.loop import Loop, describe_fault, log
from guest_agent.packing import PackingError, pack, unpack
from guest_agent.protocol import Decoder, Frame, ProtocolError, ReceiveWindow, SendWindow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_WRONG_SECRETS_MAX = 3


class RequestError(Exception):
    """The request cannot be done: an ERROR frame with this code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Request:
    """One request; a subclass for each type. Its methods are called by the connection.

    Args:
        values: the request's map, not yet checked: read it through `arguments`.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.loop = connection.loop
        self.number = number
        self.is_done = False
        self.send_window = SendWindow()
        self.receive_window = ReceiveWindow()

    # What a subclass does.

    def start(self, values: dict[str, Any]) -> None:
        """Begin. Errors raised here end the request."""
        raise NotImplementedError

    def on_data(self, data: bytes) -> None:
        """Take input; give it back by `used` once it has found its place."""
        raise RequestError(protocol.BAD_REQUEST, "this request takes no data")

    def on_end(self, values: dict[str, Any]) -> None:
        """No more input follows."""

    def on_cancel(self) -> None:
        """The client wants the end: send it."""
        self.fail(protocol.CANCELLED, "cancelled")

    def on_room(self) -> None:
        """There may be `room` again."""

    def on_close(self) -> None:
        """The request is over, for whatever reason: free what it holds. Once."""

    # What it uses.

    @property
    def room(self) -> int:
        """How many bytes send() takes now, a chunk at most."""
        return min(self.send_window.room, self.connection.room)

    def send(self, data: bytes, stream: int = 0) -> None:
        """Send a chunk of output that fits into `room`."""
        self.send_window.spend(len(data))
        self.connection.send(protocol.DATA, self.number, data, stream)

    def event(self, values: dict[str, Any]) -> bool:
        """Send an event; False if there is no room for it."""
        payload = pack(values)
        if len(payload) > self.send_window.room or not self.connection.room:
            return False
        self.send_window.spend(len(payload))
        self.connection.send(protocol.EVENT, self.number, payload)
        return True

    def used(self, data: bytes) -> None:
        """Give the client credit for input that has found its place."""
        credit = self.receive_window.use(len(data))
        if credit and not self.is_done:
            self.connection.send_bytes(protocol.encode_credit(self.number, credit))

    def result(self, values: dict[str, Any]) -> None:
        """End well."""
        self._end(protocol.RESULT, values)

    def fail(self, code: str, message: str) -> None:
        """End badly."""
        self._end(protocol.ERROR, {"code": code, "message": message})

    def fail_by(self, error: BaseException) -> None:
        """End with what was raised. A fault of the agent's own is told to the console too."""
        if isinstance(error, RequestError):
            self.fail(error.code, str(error))
        elif isinstance(error, OSError) and error.errno is not None:
            where = f"{error.filename}: " if error.filename is not None else ""
            self.fail(errno.errorcode.get(error.errno, "EIO"), f"{where}{error.strerror}")
        else:
            log(describe_fault(error))
            self.fail("internal", f"{type(error).__name__}: {error}")

    def _end(self, type: int, values: dict[str, Any]) -> None:
        if not self.is_done:
            self.connection.send(type, self.number, pack(values))
            self.close()

    def close(self) -> None:
        """Be done. Idempotent."""
        if not self.is_done:
            self.is_done = True
            self.connection.forget(self)
            self.on_close()


class Secret:
    """What a client must show; another one after an ADOPT."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value


class Connection:
    """One client.

    Args:
        handlers: type of request to what makes its Request.
        secret: what the client must show.
        hello: returns what PONG says.
        is_serial: the client is at the other end of a slow line.
        on_close: called when the client is gone.

    Attributes:
        on_outgoing: set by the carrier: there is something to take.
        is_ended: the client broke the protocol: send what is left, then close.
    """

    def __init__(
        self,
        loop: Loop,
        handlers: Mapping[int, Callable[[Connection, int], Request]],
        secret: Secret,
        hello: Callable[[], dict[str, Any]],
        is_serial: bool = False,
        on_close: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        self.loop = loop
        self._chunk_bytes = protocol.SERIAL_CHUNK_BYTES if is_serial else protocol.CHUNK_BYTES
        self._outgoing_bytes_max = (
            protocol.SERIAL_OUTGOING_BYTES_MAX if is_serial else protocol.OUTGOING_BYTES_MAX
        )
        self.on_outgoing: Callable[[], None] = lambda: None
        self.is_ended = False
        self.is_authenticated = False
        self._handlers = handlers
        self._secret = secret
        self._hello = hello
        self._on_close = on_close
        self._wrong_secrets = 0
        self._decoder = Decoder(protocol.FROM_HOST)
        self._requests: dict[int, Request] = {}
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._is_congested = False

    # The carrier's side.

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.is_ended:
            return
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
                if self.is_ended:  # it left while it was being answered
                    return
        except ProtocolError as error:
            log(f"a client was sent away: {error}")
            self.send(protocol.ERROR, 0, pack({"code": "protocol", "message": str(error)}))
            self.is_ended = True
            self.on_outgoing()

    def take_outgoing(self, size: int) -> bytes:
        """Return up to `size` bytes for the client; what it does not take comes back by `undo`."""
        taken = []
        while self._outgoing and size > 0:
            part = self._outgoing.popleft()
            if len(part) > size:
                self._outgoing.appendleft(part[size:])
                part = part[:size]
            taken.append(part)
            size -= len(part)
        data = b"".join(taken) if len(taken) != 1 else taken[0]
        self._outgoing_bytes -= len(data)
        return data

    def undo(self, data: bytes) -> None:
        """Take back the end of what take_outgoing returned last."""
        self._outgoing.appendleft(data)
        self._outgoing_bytes += len(data)

    def resume(self) -> None:
        """Let requests that ran out of room go on. Called by the carrier after it sent."""
        if self._is_congested and self.room:
            self._is_congested = False
            for request in list(self._requests.values()):
                if not request.is_done:
                    request.on_room()

    def close(self) -> None:
        """The client is gone."""
        self.is_ended = True
        self._on_close(self)
        for request in list(self._requests.values()):
            request.close()

    def end(self) -> None:
        """Send the client away, without a word: it is a guest's that this one was a copy of."""
        self.is_authenticated = False
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self.close()
        self.on_outgoing()

    @property
    def has_requests(self) -> bool:
        """Whether something is asked of the guest that is not done."""
        return bool(self._requests)

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something for the client."""
        return bool(self._outgoing)

    # The requests' side.

    @property
    def room(self) -> int:
        """How many bytes of output may be added now: a chunk, or none while too much waits."""
        if self._outgoing_bytes + self._chunk_bytes > self._outgoing_bytes_max:
            self._is_congested = True
            return 0
        return self._chunk_bytes

    def send(self, type: int, request: int, payload: bytes = b"", flags: int = 0) -> None:
        """Queue a frame."""
        self.send_bytes(protocol.encode(type, request, payload, flags))

    def send_bytes(self, frame: bytes) -> None:
        """Queue an encoded frame."""
        if not self.is_ended:
            self._outgoing.append(frame)
            self._outgoing_bytes += len(frame)
            self.on_outgoing()

    def forget(self, request: Request) -> None:
        """The request is done."""
        self._requests.pop(request.number, None)

    # Frames.

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == protocol.PING:
            self._on_ping(frame)
        elif not self.is_authenticated:
            raise ProtocolError("a request before the handshake")
        elif frame.type in protocol.REQUESTS:
            self._on_request(frame)
        else:
            self._on_stream(frame)

    def _on_ping(self, frame: Frame) -> None:
        secret = _values(frame).get("secret")
        if isinstance(secret, bytes) and _is_same(secret, self._secret.value):
            self.is_authenticated = True
        else:
            self._wrong_secrets += 1
        hello = {**self._hello(), "authenticated": self.is_authenticated}
        self.send(protocol.PONG, 0, pack(hello))
        if self._wrong_secrets >= _WRONG_SECRETS_MAX:
            raise ProtocolError("the secret is wrong")

    def _on_request(self, frame: Frame) -> None:
        number = frame.request
        if not number or number in self._requests:
            raise ProtocolError(f"request {number} exists already")
        values = _values(frame)
        if len(self._requests) >= protocol.REQUESTS_MAX:
            message = f"{protocol.REQUESTS_MAX} requests at a time are the most"
            self.send(protocol.ERROR, number, pack({"code": protocol.BUSY, "message": message}))
            return
        # Whatever is made is started at once: on_close() relies on it.
        request = self._requests[number] = self._handlers.get(frame.type, _Unknown)(self, number)
        self._guard(request, lambda: request.start(values))

    def _on_stream(self, frame: Frame) -> None:
        request = self._requests.get(frame.request)
        if request is None:
            return  # it ended while this was on its way
        if frame.type == protocol.DATA:
            request.receive_window.receive(len(frame.payload))
            self._guard(request, lambda: request.on_data(frame.payload))
        elif frame.type == protocol.END:
            self._guard(request, lambda: request.on_end(_values(frame) if frame.payload else {}))
        elif frame.type == protocol.CREDIT:
            request.send_window.grant(protocol.decode_credit(frame.payload))
            self._guard(request, request.on_room)
        else:
            self._guard(request, request.on_cancel)

    @staticmethod
    def _guard(request: Request, call: Callable[[], None]) -> None:
        try:
            call()
        except ProtocolError:
            raise
        except Exception as error:
            request.fail_by(error)


class _Unknown(Request):
    def start(self, values: dict[str, Any]) -> None:
        raise RequestError(protocol.BAD_REQUEST, "this agent has no such request")


def _is_same(given: bytes, secret: bytes) -> bool:
    """Compare in a time that does not depend on where they differ.

    hmac.compare_digest would do, but its import loads OpenSSL into every guest's start.
    """
    if len(given) != len(secret):
        return False
    return sum(a ^ b for a, b in zip(given, secret, strict=True)) == 0


def _values(frame: Frame) -> dict[str, Any]:
    try:
        values = unpack(frame.payload)
    except PackingError as error:
        raise ProtocolError(f"a payload that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ProtocolError("a payload that is not a map")
    return values
