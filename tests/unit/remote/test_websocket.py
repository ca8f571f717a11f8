"""A client's frames, against wsproto as the server, and against what no server should send."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection, events

from voidbox.errors import AgentError
from voidbox.remote.websocket import Frames, Opcode, Opening, Refused, encode


def opened() -> tuple[WSConnection, bytes]:
    """Return a server that has accepted us, and its answer."""
    server, opening = WSConnection(ConnectionType.SERVER), Opening()
    server.receive_data(opening.request("example", "/way", {"X-API-KEY": "k"}))
    (request,) = server.events()
    assert isinstance(request, events.Request)
    assert request.target == "/way" and (b"x-api-key", b"k") in request.extra_headers
    answer = server.send(events.AcceptConnection())
    assert opening.feed(answer[:10]) is None
    assert opening.feed(answer[10:] + b"rest") == b"rest"
    return server, answer


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_what_is_sent_arrives(size: int) -> None:
    server, _ = opened()
    data = bytes(range(256)) * (size // 256 + 1)
    server.receive_data(encode(Opcode.BINARY, data[:size]))
    found = b"".join(bytes(e.data) for e in server.events() if isinstance(e, events.BytesMessage))
    assert found == data[:size]


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
def test_frames_in_any_pieces(messages: list[bytes], step: int) -> None:
    server, _ = opened()
    stream = b"".join(server.send(events.BytesMessage(data=one)) for one in messages)
    frames = Frames()
    found = [
        frame for at in range(0, len(stream), step) for frame in frames.feed(stream[at : at + step])
    ]
    assert [frame.payload for frame in found] == messages
    assert all(frame.opcode is Opcode.BINARY for frame in found)


@pytest.mark.parametrize(
    "data",
    [b"\x82\x7f" + (1 << 62).to_bytes(8, "big"), b"\xc2\x00", b"\x82\x80abcd", b"\x83\x00"],
)
def test_what_no_server_sends(data: bytes) -> None:
    with pytest.raises(AgentError):
        Frames().feed(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    with contextlib.suppress(AgentError):
        Frames().feed(data)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\n{}",
        b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 20_000,
    ],
)
def test_answers_that_open_nothing(answer: bytes) -> None:
    with pytest.raises(AgentError) as caught:
        Opening().feed(answer)
    assert isinstance(caught.value, Refused) == answer.startswith(b"HTTP/1.1 404")
