"""The client's core and the agent's connection, joined without a socket; and hostile guests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.connection import Connection, Request, Secret
from guest_agent.files import FileRead
from guest_agent.loop import Loop
from voidbox.agent import protocol
from voidbox.agent.core import ClientCore, Data, Event, Failure, Pong, Result, Writable
from voidbox.agent.packing import pack
from voidbox.agent.protocol import HEADER, WINDOW_BYTES, ProtocolError, encode, encode_credit

SECRET = bytes(range(32))
HELLO = {"version": "7", "capabilities": ["echo"]}


class Echo(Request):
    """Sends back what it gets, at the client's pace, then how much that was."""

    def start(self, values: dict[str, Any]) -> None:
        self._waiting: list[bytes] = []
        self._is_ended = False
        self._size = 0
        self.event({"name": values["name"]})

    def on_data(self, data: bytes) -> None:
        self._waiting.append(data)
        self.on_room()

    def on_end(self, values: dict[str, Any]) -> None:
        self._is_ended = True
        self.on_room()

    def on_room(self) -> None:
        while self._waiting and self.room:
            data, rest = self._waiting[0][: self.room], self._waiting[0][self.room :]
            self._waiting[:1] = [rest] if rest else []
            self.send(data, 3)
            self._size += len(data)
            self.used(data)
        if self._is_ended and not self._waiting and not self.is_done:
            self.result({"size": self._size})


class Pair:
    """Both ends, what is on its way between them, and what the client has seen."""

    def __init__(self) -> None:
        self.core = ClientCore()
        handlers = {protocol.EXEC: Echo, protocol.FILE_READ: FileRead}
        self.connection = Connection(Loop(), handlers, Secret(SECRET), lambda: HELLO)
        self.sent: dict[int, bytes] = {}
        self.unsent: dict[int, bytes] = {}
        self.got: dict[int, bytes] = {}
        self.unread: dict[int, list[Data | Event]] = {}
        self.names: dict[int, str] = {}
        self.ends: dict[int, Result | Failure] = {}
        self.core.ping(SECRET)
        self.run()
        assert self.core.is_ready

    def begin(self) -> int:
        name = f"request {len(self.names)}"
        request = self.core.begin(protocol.EXEC, {"name": name})
        self.names[request] = name
        self.sent[request] = self.unsent[request] = self.got[request] = b""
        self.unread[request] = []
        return request

    def send(self, request: int, data: bytes) -> None:
        if request not in self.ends:
            self.sent[request] += data
            self.unsent[request] += data
            self.push(request)

    def push(self, request: int) -> None:
        taken = self.core.send_data(request, self.unsent[request])
        self.unsent[request] = self.unsent[request][taken:]

    def read(self, request: int) -> None:
        for event in self.unread[request]:
            if isinstance(event, Data):
                assert event.stream == 3
                self.got[request] += event.data
            else:
                assert event.values == {"name": self.names[request]}
            self.core.consumed(request, event.cost)
        self.unread[request] = []

    def to_guest(self, size: int) -> bool:
        data = self.core.take_outgoing(size)
        assert len(data) <= size
        self.connection.receive(data)
        assert not self.connection.is_ended
        return bool(data)

    def to_host(self, size: int) -> bool:
        data = self.connection.take_outgoing(size)
        assert len(data) <= size
        if len(data) > 3:  # the socket does not take it all
            self.connection.undo(data[-3:])
            data = data[:-3]
        for event in self.core.feed(data):
            if isinstance(event, Data | Event):
                self.unread[event.request].append(event)
            elif isinstance(event, Writable):
                self.push(event.request)
            elif isinstance(event, Result | Failure):
                assert event.request not in self.ends
                self.ends[event.request] = event
        self.connection.resume()
        return bool(data)

    def run(self) -> None:
        while self.to_guest(100_000) | self.to_host(100_000):
            pass


OPERATIONS = st.lists(
    st.tuples(st.just("begin"))
    | st.tuples(st.just("send"), st.integers(0, 5), st.integers(0, 700_000))
    | st.tuples(st.sampled_from(["read", "end", "cancel"]), st.integers(0, 5))
    | st.tuples(st.sampled_from(["to_guest", "to_host"]), st.integers(1, 600_000)),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_any_interleaving_keeps_every_stream_whole(operations: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    requests: list[int] = []
    ended, cancelled = set(), set()
    for name, *arguments in operations:
        if name == "begin":
            requests.append(pair.begin())
        elif name in ("to_guest", "to_host"):
            getattr(pair, name)(*arguments)
        elif arguments[0] < len(requests):
            request = requests[arguments[0]]
            if name == "send" and request not in ended:
                pair.send(request, (b"%d." % request * arguments[1])[: arguments[1]])
            elif name == "read":
                pair.read(request)
            elif name == "cancel":
                cancelled.add(request)
                pair.core.cancel(request)
            elif name == "end" and not pair.unsent[request]:
                ended.add(request)
                pair.core.end_data(request)
    pair.run()
    while any(pair.unread.values()):
        for request in requests:
            pair.read(request)
        pair.run()
    for request in requests:
        if request in cancelled:
            assert pair.sent[request].startswith(pair.got[request])
            assert isinstance(pair.ends[request], Result | Failure)
            continue
        assert pair.got[request] == pair.sent[request] and not pair.unsent[request]
        pair.core.end_data(request)
        pair.run()
        assert pair.ends[request] == Result(request, {"size": len(pair.sent[request])})


def test_pong_says_who_is_there() -> None:
    core, connection = ClientCore(), Connection(Loop(), {}, Secret(SECRET), lambda: HELLO)
    core.ping(SECRET)
    connection.receive(core.take_outgoing(1000))
    (pong,) = core.feed(connection.take_outgoing(1000))
    assert isinstance(pong, Pong)
    assert (pong.version, pong.capabilities, pong.is_authenticated) == ("7", ("echo",), True)


def test_no_request_before_the_handshake_and_none_after_a_wrong_secret() -> None:
    core, connection = ClientCore(), Connection(Loop(), {}, Secret(SECRET), lambda: HELLO)
    with pytest.raises(RuntimeError, match="handshake"):
        core.begin(protocol.EXEC, {})
    core.ping(bytes(32))
    connection.receive(core.take_outgoing(1000))
    (pong,) = core.feed(connection.take_outgoing(1000))
    assert isinstance(pong, Pong) and not pong.is_authenticated and not core.is_ready
    connection.receive(encode(protocol.EXEC, 1, pack({})))
    assert connection.is_ended
    with pytest.raises(ProtocolError, match="a request before the handshake"):
        list(core.feed(connection.take_outgoing(1000)))


def test_a_request_that_the_agent_does_not_know_fails_alone() -> None:
    pair = Pair()
    request = pair.core.begin(protocol.METRICS, {})
    pair.run()
    assert pair.ends[request] == Failure(request, "bad-request", "this agent has no such request")
    assert pair.begin() != request


def test_more_requests_than_the_agent_serves_at_a_time() -> None:
    pair = Pair()
    for _ in range(protocol.REQUESTS_MAX):
        pair.begin()
    with pytest.raises(RuntimeError, match="the most"):
        pair.begin()
    pair.run()
    # A client that does not count gets an error for that request, and the others go on.
    pair.connection.receive(encode(protocol.FILE_READ, 5000, pack({"path": "/x"})))
    assert b"busy" in pair.connection.take_outgoing(1000)
    first = next(iter(pair.names))
    pair.core.end_data(first)
    pair.run()
    assert first in pair.ends and pair.begin()


def test_a_request_too_long_for_a_frame_leaves_the_core_as_it_was() -> None:
    pair = Pair()
    with pytest.raises(ValueError, match="at most"):
        pair.core.begin(protocol.EXEC, {"name": "x" * protocol.PAYLOAD_BYTES_MAX})
    assert pair.begin() == 1


def test_what_belongs_to_a_request_that_has_ended_is_dropped() -> None:
    pair = Pair()
    request = pair.begin()
    pair.core.end_data(request)
    pair.run()
    assert request in pair.ends
    assert pair.core.send_data(request, b"late") == 4
    pair.core.end_data(request)
    pair.core.cancel(request)
    pair.core.consumed(request, WINDOW_BYTES)
    assert pair.core.take_outgoing(1000) == b""
    # And the agent takes what was on its way when the request ended.
    for type in (protocol.DATA, protocol.END, protocol.CANCEL, protocol.CREDIT):
        pair.connection.receive(encode(type, request, b"late"))
    assert not pair.connection.is_ended


def full_window() -> bytes:
    chunk = encode(protocol.DATA, 1, bytes(protocol.CHUNK_BYTES))
    return chunk * (WINDOW_BYTES // len(chunk) + 1)


PONG = {"version": "1", "capabilities": [], "authenticated": True}
ERROR = {"code": "EIO", "message": "it broke"}
HOSTILE = {
    "no frame": b"Linux version 6.12",
    "data of an unknown request": encode(protocol.DATA, 2, b"x"),
    "event of an unknown request": encode(protocol.EVENT, 2, pack({})),
    "result of an unknown request": encode(protocol.RESULT, 2, pack({})),
    "result for request 0": encode(protocol.RESULT, 0, pack({})),
    "error of an unknown request": encode(protocol.ERROR, 2, pack(ERROR)),
    "credit of an unknown request": encode_credit(2, 0),
    "too much data": full_window(),
    "empty data without end": encode(protocol.DATA, 1) * (WINDOW_BYTES // HEADER.size + 1),
    "too many events": encode(protocol.EVENT, 1, pack({})) * (WINDOW_BYTES // HEADER.size),
    "credit never spent": encode_credit(1, 1),
    "credit of 4 GiB": encode_credit(1, 0xFFFFFFFF),
    "credit of no length": encode(protocol.CREDIT, 1),
    "two results": encode(protocol.RESULT, 1, pack({})) * 2,
    "an error after the result": encode(protocol.RESULT, 1, pack({}))
    + encode(protocol.ERROR, 1, pack(ERROR)),
    "a pong that nobody asked for": encode(protocol.PONG, 0, pack(PONG)),
    "a result that is a list": encode(protocol.RESULT, 1, pack([])),
    "a result that is nothing": encode(protocol.RESULT, 1),
    "a result with more behind it": encode(protocol.RESULT, 1, pack({}) + b"\0"),
    "a result that nests": encode(protocol.RESULT, 1, b"\x81\xa1a" * 100_000),
    "an event that is a number": encode(protocol.EVENT, 1, pack(1)),
    "an error without code": encode(protocol.ERROR, 1, pack({"message": "m"})),
    "an error with a number for code": encode(protocol.ERROR, 1, pack({**ERROR, "code": 5})),
    "an error without message": encode(protocol.ERROR, 1, pack({"code": "EIO"})),
    "an error for the connection": encode(protocol.ERROR, 0, pack(ERROR)),
    "an error for the connection that says nothing": encode(protocol.ERROR, 0, pack({})),
    "a ping": encode(protocol.PING, 0, pack({})),
    "a request": encode(protocol.EXEC, 1, pack({})),
    "a payload over the limit": HEADER.pack(b"vbxA", 1, protocol.DATA, 0, 1, 0x100001),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("step", [1 << 30, 16], ids=["whole", "in parts"])
def test_a_guest_that_breaks_the_protocol(data: bytes, step: int) -> None:
    pair = Pair()
    pair.begin()
    with pytest.raises(ProtocolError) as error:
        for at in range(0, len(data), step):
            for event in pair.core.feed(data[at : at + step]):
                assert event.request == 1  # type: ignore[union-attr]
    assert len(str(error.value)) < 300


BAD_PONGS: dict[str, Any] = {
    "a list": [1],
    "no version": {"capabilities": [], "authenticated": True},
    "a version that is a number": {**PONG, "version": 1},
    "no capabilities": {"version": "1", "authenticated": True},
    "capabilities that are a string": {**PONG, "capabilities": "all"},
}


@pytest.mark.parametrize("values", BAD_PONGS.values(), ids=BAD_PONGS)
def test_a_bad_pong(values: Any) -> None:
    core = ClientCore()
    core.ping(SECRET)
    with pytest.raises(ProtocolError):
        list(core.feed(encode(protocol.PONG, 0, pack(values))))
    assert not core.is_ready


@pytest.mark.parametrize("word", [1, "true", None, [True]])
def test_only_true_means_that_the_secret_was_right(word: Any) -> None:
    core = ClientCore()
    core.ping(SECRET)
    list(core.feed(encode(protocol.PONG, 0, pack({**PONG, "authenticated": word}))))
    assert not core.is_ready


def test_what_the_agent_says_at_the_end_is_cut_to_a_line() -> None:
    core = ClientCore()
    message = "\x1b[2J\n" + "x" * 1_000_000
    with pytest.raises(ProtocolError, match="the agent says: ") as error:
        list(core.feed(encode(protocol.ERROR, 0, pack({"code": "protocol", "message": message}))))
    assert len(str(error.value)) < 300 and "\x1b" not in str(error.value)


@settings(max_examples=200)
@given(st.binary(max_size=100), st.sampled_from(sorted(protocol.FROM_GUEST)), st.integers(0, 2))
def test_random_payloads_of_a_guest(payload: bytes, type: int, request: int) -> None:
    core = ClientCore()
    core.ping(SECRET)
    list(core.feed(encode(protocol.PONG, 0, pack(PONG))))
    core.ping(SECRET)
    core.begin(protocol.EXEC, {})
    try:
        list(core.feed(encode(type, request, payload)))
    except ProtocolError as error:
        assert len(str(error)) < 300


CLIENT_FAULTS = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "request 0": encode(protocol.EXEC, 0, pack({"name": "x"})),
    "a number in use": encode(protocol.EXEC, 1, pack({"name": "x"})),
    "a request that is no map": encode(protocol.EXEC, 2, pack([])),
    "a request that cannot be read": encode(protocol.FILE_READ, 2, b"\xc1"),
    "a frame of the guest's": encode(protocol.RESULT, 1, pack({})),
    "too much credit": encode_credit(1, WINDOW_BYTES),
    "too much data": full_window() * 2,
    "an end that cannot be read": encode(protocol.END, 1, b"\xc1"),
    "a ping that cannot be read": encode(protocol.PING, 0, b"\xc1"),
    "a ping with a long key twice": encode(
        protocol.PING, 0, b"\x82" + (b"\xdb\0\x07\0\0" + b"k" * 0x70000 + b"\x01") * 2
    ),
    "a wrong secret, often": encode(protocol.PING, 0, pack({"secret": b"no"})) * 3,
}


@pytest.mark.parametrize("data", CLIENT_FAULTS.values(), ids=CLIENT_FAULTS)
def test_a_client_that_breaks_the_protocol_is_told_and_sent_away(data: bytes) -> None:
    pair = Pair()
    pair.begin()
    pair.run()
    pair.connection.receive(data)
    assert pair.connection.is_ended
    for _ in range(3):
        pair.core.ping(SECRET)  # the wrong secrets are answered first
    with pytest.raises(ProtocolError, match="the agent says: "):
        list(pair.core.feed(pair.connection.take_outgoing(1 << 20)))
    pair.connection.close()
    pair.connection.receive(encode(protocol.PING, 0, pack({})))
    assert not pair.connection.has_outgoing


def test_what_came_before_a_fault_is_not_lost_with_it() -> None:
    pair = Pair()
    request = pair.begin()
    seen = []
    with pytest.raises(ProtocolError):
        for event in pair.core.feed(encode(protocol.RESULT, request, pack({"a": 1})) + bytes(16)):
            seen.append(event)
    assert seen == [Result(request, {"a": 1})]


def test_a_client_that_leaves_while_it_is_answered_starts_nothing_more() -> None:
    pair = Pair()
    pair.connection.on_outgoing = pair.connection.close  # as a socket does that cannot send
    started = []
    pair.connection._handlers = {  # type: ignore[assignment]
        protocol.EXEC: lambda connection, number: started.append(number) or Echo(connection, number)
    }
    frames = b"".join(encode(protocol.EXEC, n, pack({"name": "x"})) for n in (1, 2, 3))
    pair.connection.receive(frames)
    assert started == [1] and not pair.connection._requests
