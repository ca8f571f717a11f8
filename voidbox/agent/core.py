"""The client's half of the protocol, sans-IO: requests to bytes, bytes to events.

Nothing above this knows a frame. What the guest sends is checked here: a guest that breaks the
protocol gets a ProtocolError on its connection, and nothing else happens.

    created ─ ping() ─► greeting ─ PONG, right secret ─► ready ─ begin(), feed(), … ─► fail()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from voidbox.agent import protocol
from voidbox.agent.packing import PackingError, pack, unpack
from voidbox.agent.protocol import Decoder, Frame, ProtocolError, ReceiveWindow, SendWindow
from voidbox.named_tuple import NamedTuple

# Of the guest's words, which nobody else has checked: room for the longest path.
_MESSAGE_CHARACTERS_MAX = 5000


class Pong(NamedTuple):
    """What the agent says of itself.

    Attributes:
        version: of the agent.
        capabilities: names of what it can do.
        is_authenticated: the secret was the right one.
        info: all that it said; the guest's word, not to be relied on.
    """

    version: str
    capabilities: tuple[str, ...]
    is_authenticated: bool
    info: dict[str, Any]


class Event(NamedTuple):
    """Something on the way to a request's end, such as the start of its process.

    Attributes:
        cost: what to give to ClientCore.consumed() once it has been worked off.
    """

    request: int
    values: dict[str, Any]
    cost: int


class Data(NamedTuple):
    """Bytes of one of a request's streams. Their length goes to ClientCore.consumed()."""

    request: int
    stream: int
    data: bytes

    @property
    def cost(self) -> int:
        """See Event."""
        return len(self.data)


class Writable(NamedTuple):
    """A request that had no window left may send again."""

    request: int


class Result(NamedTuple):
    """The request ended well."""

    request: int
    values: dict[str, Any]


class Failure(NamedTuple):
    """The request failed in the guest.

    Attributes:
        code: an errno's name or one of the protocol's.
        message: for people; the guest's words.
    """

    request: int
    code: str
    message: str


CoreEvent = Pong | Event | Data | Writable | Result | Failure


class _Request:
    __slots__ = ("has_ended_input", "receive_window", "send_window")

    def __init__(self) -> None:
        self.send_window = SendWindow()
        self.receive_window = ReceiveWindow()
        self.has_ended_input = False


class ClientCore:
    """One connection. Thread: whoever holds the adapter's lock.

    Attributes:
        is_ready: the agent has accepted the secret.
        outgoing_bytes: how much waits to be taken.
    """

    def __init__(self) -> None:
        self.is_ready = False
        self.outgoing_bytes = 0
        self._decoder = Decoder(protocol.FROM_GUEST)
        self._outgoing: deque[bytes] = deque()
        self._requests: dict[int, _Request] = {}
        self._next_request = 1
        self._pings = 0

    def ping(self, secret: bytes) -> None:
        """Ask who is there, and show the secret."""
        self._pings += 1
        self._send(protocol.PING, 0, pack({"secret": secret, "version": protocol.VERSION}))

    def begin(self, type: int, values: dict[str, Any]) -> int:
        """Send a request; return its number.

        Raises:
            RuntimeError: not is_ready, or too many requests at a time.
            ValueError: the request is too long for a frame.
        """
        if not self.is_ready:
            raise RuntimeError("no request before the handshake")
        if len(self._requests) >= protocol.REQUESTS_MAX:
            raise RuntimeError(f"{protocol.REQUESTS_MAX} requests at a time are the most")
        request = self._next_request
        self._send(type, request, pack(values))
        self._next_request = request % 0xFFFFFFFF + 1  # the end of a life of 4 billion requests
        self._requests[request] = _Request()
        return request

    def send_data(self, request: int, data: bytes | memoryview) -> int:
        """Send as much of `data` as the window allows; return how much. Writable comes later.

        An ended request takes everything: what it would have been told is of no more interest.
        """
        state = self._requests.get(request)
        if state is None or state.has_ended_input:
            return len(data)
        sent, window = 0, state.send_window
        while sent < len(data) and window.room:
            chunk = bytes(data[sent : sent + min(protocol.CHUNK_BYTES, window.room)])
            self._send(protocol.DATA, request, chunk)
            window.spend(len(chunk))
            sent += len(chunk)
        return sent

    def end_data(self, request: int, values: dict[str, Any] | None = None) -> None:
        """Say that no more data follows, and what the request wants to know at its end."""
        state = self._requests.get(request)
        if state is not None and not state.has_ended_input:
            state.has_ended_input = True
            self._send(protocol.END, request, pack(values or {}))

    def cancel(self, request: int) -> None:
        """Ask for the request's end; its Result or Failure still comes."""
        if request in self._requests:
            self._send(protocol.CANCEL, request)

    def consumed(self, request: int, cost: int) -> None:
        """Say that a Data or Event has found its place: more may come."""
        state = self._requests.get(request)
        credit = state.receive_window.use(cost) if state is not None else 0
        if credit:
            self._queue(protocol.encode_credit(request, credit))

    def _send(self, type: int, request: int, payload: bytes = b"") -> None:
        self._queue(protocol.encode(type, request, payload))

    def _queue(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def take_outgoing(self, size: int) -> bytes:
        """Return up to `size` bytes for the connection; what it does not take is the caller's."""
        taken: list[bytes] = []
        while self._outgoing and size > 0:
            part = self._outgoing.popleft()
            if len(part) > size:
                self._outgoing.appendleft(part[size:])
                part = part[:size]
            taken.append(part)
            size -= len(part)
            self.outgoing_bytes -= len(part)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def feed(self, data: bytes) -> Iterator[CoreEvent]:
        """Take bytes from the connection; yield what they mean. Exhaust it before the next call.

        Raises:
            ProtocolError: the guest broke the protocol: close the connection. What it said before
                has been yielded.
        """
        for frame in self._decoder.feed(data):
            event = self._on_pong(frame) if frame.type == protocol.PONG else self._on_frame(frame)
            if event is not None:
                yield event

    def _on_pong(self, frame: Frame) -> Pong:
        if not self._pings:
            raise ProtocolError("a PONG that nobody asked for")
        self._pings -= 1
        values = _values(frame)
        version, names = values.get("version"), values.get("capabilities")
        if not isinstance(version, str) or not isinstance(names, list):
            raise ProtocolError("a PONG without version or capabilities")
        is_authenticated = values.get("authenticated") is True
        self.is_ready = self.is_ready or is_authenticated
        return Pong(
            printable(version), tuple(str(name) for name in names), is_authenticated, values
        )

    def _on_frame(self, frame: Frame) -> CoreEvent | None:
        request = frame.request
        if request == 0 and frame.type == protocol.ERROR:
            words = printable(str(_values(frame).get("message")))
            raise ProtocolError(f"the agent says: {words[:200]}")
        state = self._requests.get(request)
        if state is None:
            raise ProtocolError(f"a frame for request {request}, which does not exist")
        if frame.type == protocol.DATA:
            state.receive_window.receive(len(frame.payload))
            return Data(request, frame.flags, frame.payload)
        if frame.type == protocol.CREDIT:
            had_none = state.send_window.room == 0
            state.send_window.grant(protocol.decode_credit(frame.payload))
            return Writable(request) if had_none else None
        values = _values(frame)
        if frame.type == protocol.EVENT:
            state.receive_window.receive(len(frame.payload))
            return Event(request, values, len(frame.payload))
        del self._requests[request]
        if frame.type == protocol.RESULT:
            return Result(request, values)
        code, message = values.get("code"), values.get("message")
        if not isinstance(code, str) or not isinstance(message, str):
            raise ProtocolError("an ERROR without code or message")
        return Failure(request, code, printable(message))


def printable(text: str) -> str:
    """Return the guest's words as one line that is safe on a terminal, and not too long."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text[:_MESSAGE_CHARACTERS_MAX]
    )


def _values(frame: Frame) -> dict[str, Any]:
    try:
        values = unpack(frame.payload)
    except PackingError as error:
        raise ProtocolError(f"a payload that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ProtocolError("a payload that is not a map")
    return values
