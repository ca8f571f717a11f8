"""DIAL, `keep` of EXEC, and details of files, asked of a real agent by a bare link."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import SECRET, USER, dial
from voidbox.agent import protocol
from voidbox.agent.call import Call, RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.agent.core import Data, Event
from voidbox.agent.link import Link

DEADLINE_S = 60.0
EMPTY = hashlib.blake2b(digest_size=protocol.CHECKSUM_BYTES).digest()  # of no bytes


@pytest.fixture
def link(agent_path: Path) -> Iterator[Link]:
    link = Link(dial(agent_path))
    link.handshake(SECRET, DEADLINE_S)
    yield link
    link.close()


class Server:
    """A TCP server that does one thing with its one client."""

    def __init__(
        self, serve: Callable[[socket.socket], None], family: int = socket.AF_INET
    ) -> None:
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(serve,))
        self._thread.start()

    def _run(self, serve: Callable[[socket.socket], None]) -> None:
        sock, _ = self._listener.accept()
        with sock:
            serve(sock)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        self._listener.close()


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def call(link: Link, type: int, **values: Any) -> Call:
    return link.call(type, values, "a test")


def read_all(call: Call) -> bytes:
    found = []
    while (event := call.next(DEADLINE_S)) is not None:
        if isinstance(event, Data):
            found.append(event.data)
    return b"".join(found)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_of_the_guest(link: Link, family: int) -> None:
    with Server(echo, family) as server:
        stream = call(link, protocol.DIAL, port=server.port)
        stream.write(b"hello")
        stream.end_input()
        assert read_all(stream) == b"hello"
        assert stream.result() == {}


def test_much_data_both_ways_at_once(link: Link) -> None:
    data = os.urandom(4 << 20)  # more than all buffers and windows together
    with Server(echo) as server:
        stream = call(link, protocol.DIAL, port=server.port)

        def write() -> None:
            for start in range(0, len(data), 65536):
                stream.write(data[start : start + 65536], DEADLINE_S)
            stream.end_input()

        writer = threading.Thread(target=write)
        writer.start()
        assert read_all(stream) == data
        writer.join(DEADLINE_S)


def test_nobody_listens(link: Link) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RequestFailed, match="refused") as caught:
            call(link, protocol.DIAL, port=taken.getsockname()[1]).result(DEADLINE_S)
    assert caught.value.code == "ECONNREFUSED"


@pytest.mark.parametrize("port", [0, -1, 65536, "80", None, True])
def test_no_port(link: Link, port: object) -> None:
    with pytest.raises(RequestFailed):
        call(link, protocol.DIAL, port=port).result(DEADLINE_S)


def test_a_cancel_closes_the_connection(link: Link) -> None:
    seen: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        seen.append(sock.recv(100))

    with Server(serve) as server:
        stream = call(link, protocol.DIAL, port=server.port)
        assert isinstance(stream.next(DEADLINE_S), Event)
        stream.cancel()
        with pytest.raises(RequestFailed):
            stream.result(DEADLINE_S)
    assert seen == [b""]


def test_a_server_that_resets(link: Link) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Server(serve) as server:
        stream = call(link, protocol.DIAL, port=server.port)
        stream.write(b"x")
        with pytest.raises(RequestFailed):
            stream.result(DEADLINE_S)


def test_a_kept_command_outlives_its_client(agent_path: Path, client: AgentClient) -> None:
    first = Link(dial(agent_path))
    first.handshake(SECRET, DEADLINE_S)
    started = call(
        first, protocol.EXEC, shell="read x; echo got $x", user=USER, cwd="/", stdin=True, keep=True
    )
    event = started.next(DEADLINE_S)
    assert isinstance(event, Event)
    pid = event.values["pid"]
    first.close()
    deadline = time.monotonic() + DEADLINE_S
    while True:  # until the agent has noticed
        process = client.attach(pid)
        process.write(b"this\n")
        try:
            assert b"".join(data for _, data in process.output()) == b"got this\n"
            break
        except RequestFailed as error:
            assert error.code == "EBUSY" and time.monotonic() < deadline
            time.sleep(0.05)
    assert process.wait().status == 0


def test_a_kept_command_loses_nothing_and_ends_as_others(link: Link) -> None:
    size = 3 << 20  # more than a background command's output that is kept
    started = call(
        link, protocol.EXEC, shell=f"head -c {size} /dev/zero", user=USER, cwd="/", keep=True
    )
    time.sleep(0.2)  # it waits meanwhile
    assert len(read_all(started)) == size
    assert started.result()["exit_code"] == 0


def test_details_of_files(link: Link, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write = call(
        link, protocol.FILE_WRITE, path=str(path), user=USER, attributes={"e2b.owner": "zoë"}
    )
    write.end_input({"checksum": EMPTY})
    try:
        write.result(DEADLINE_S)
    except RequestFailed as error:
        assert error.code == "EOPNOTSUPP"
        pytest.skip("this file system has no extended attributes")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    values = {"user": USER, "details": True, "follow": False}
    found = call(link, protocol.FILE_STAT, path=str(path), **values).result(DEADLINE_S)
    assert found["attributes"] == {"e2b.owner": "zoë"}
    found = call(link, protocol.FILE_STAT, path=str(tmp_path / "link"), **values).result(DEADLINE_S)
    assert found["type"] == "link" and found["resolved"] == str(path)
    assert found["followed"]["type"] == "file"
    dangling = str(tmp_path / "dangling")
    found = call(link, protocol.FILE_STAT, path=dangling, **values).result(DEADLINE_S)
    assert "followed" not in found and found["resolved"] == str(tmp_path / "nothing")
    # Another upload has its own attributes, and no others.
    write = call(link, protocol.FILE_WRITE, path=str(path), user=USER, attributes={"new": "1"})
    write.end_input({"checksum": EMPTY})
    write.result(DEADLINE_S)
    found = call(link, protocol.FILE_STAT, path=str(path), **values).result(DEADLINE_S)
    assert found["attributes"] == {"new": "1"}
