"""Finding the agent, losing it, and guests that have other ideas than an agent."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.agent.conftest import ROOT, SECRET, USER, dial
from voidbox.agent import connect as connecting
from voidbox.agent import protocol
from voidbox.agent.client import AgentClient
from voidbox.agent.connect import ATTEMPTS_BEFORE_SERIAL, connect
from voidbox.agent.endpoint import UnixEndpoint
from voidbox.agent.link import Link
from voidbox.agent.packing import pack
from voidbox.errors import AgentError, SandboxTimeout

PONG = pack({"version": "1", "capabilities": [], "authenticated": True})


class FakeGuest:
    """An endpoint whose guest does what a test wants.

    Args:
        answer: called for each attempt to connect, with its number from 1: a socket or an OSError.
        serial: what connect_serial() returns.
    """

    cid = 42

    def __init__(
        self,
        answer: Callable[[int], socket.socket],
        serial: socket.socket | None = None,
    ) -> None:
        self.attempts = 0
        self.story = ""
        self.ended = threading.Event()
        self._answer = answer
        self._serial = serial

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        assert port == protocol.AGENT_PORT
        self.attempts += 1
        return self._answer(self.attempts)

    def connect_serial(self) -> socket.socket | None:
        return self._serial

    def has_ended(self, timeout_s: float) -> bool:
        return self.ended.wait(timeout_s)

    def explain_end(self) -> str:
        return self.story


def refuse(attempt: int) -> socket.socket:
    raise ConnectionResetError(104, "Connection reset by peer")


SERIAL_AGENT = """
import signal, sys
from guest_agent.loop import Loop
from guest_agent.server import Agent

loop = Loop()
loop.catch((signal.SIGTERM,))
loop.on_signal = lambda number: loop.stop()
secret = bytes.fromhex(sys.argv[2])
Agent(loop, secret, lambda is_reboot: None).serve_serial(int(sys.argv[1]))
print("ready", flush=True)
loop.run()
"""


@pytest.fixture
def serial_agent() -> Iterator[socket.socket]:
    """The host's end of a serial line that an agent serves."""
    host, guest = socket.socketpair()
    fd = guest.fileno()
    command = [sys.executable, "-c", SERIAL_AGENT, str(fd), SECRET.hex()]
    process = subprocess.Popen(
        command, cwd=ROOT, pass_fds=[fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    guest.close()
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield host
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    host.close()


class Script:
    """A peer that sends what a test wants after the client's PING, then reads until it leaves."""

    def __init__(self, words: bytes, then_closes: bool = False) -> None:
        self.sock, self._peer = socket.socketpair()
        self._words = words
        self._then_closes = then_closes
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._peer, contextlib.suppress(OSError):
            self._peer.recv(4096)
            self._peer.sendall(self._words)
            while not self._then_closes and self._peer.recv(65536):
                pass

    def __enter__(self) -> socket.socket:
        return self.sock

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self._thread.join()


# --- finding it ---------------------------------------------------------------------------------


def test_it_tries_until_the_guest_is_up(agent_path: Path) -> None:
    log: list[str] = []
    guest = FakeGuest(lambda attempt: dial(agent_path) if attempt == 7 else refuse(attempt))
    with connect(guest, SECRET, 20, log.append) as client:
        assert client.metrics()["cpus"] >= 1
    assert log[0] == "[vsock] attempt 7 connect OK (cid=42, port=1234)"
    assert log[1].startswith("handshake OK (Pong received)")


def test_the_serial_line_serves_where_vsock_does_not(serial_agent: socket.socket) -> None:
    log: list[str] = []
    guest = FakeGuest(refuse, serial_agent)
    with connect(guest, SECRET, 20, log.append) as client:
        assert client.is_serial
        content = os.urandom(100_000)
        path = f"/tmp/voidbox-test-{os.getpid()}"
        client.write_file(path, io.BytesIO(content), user=USER)
        copy = io.BytesIO()
        client.read_file(path, copy, user=USER)
        client.remove(path, user=USER)
        assert copy.getvalue() == content
    assert guest.attempts >= ATTEMPTS_BEFORE_SERIAL
    assert "via serial" in log[0] and "Connection reset" in log[0]


def test_a_background_commands_output_comes_over_the_serial_line(
    serial_agent: socket.socket,
) -> None:
    with connect(FakeGuest(refuse, serial_agent), SECRET, 20) as client:
        process = client.exec(
            shell="head -c 20000 /dev/zero", user=USER, cwd="/tmp", background=True
        )
        process._call.result(10)


def test_a_long_list_comes_once_over_the_serial_line(
    serial_agent: socket.socket, tmp_path: Path
) -> None:
    names = [f"{number:03}" + "x" * 100 for number in range(300)]
    for name in names:
        (tmp_path / name).touch()
    with connect(FakeGuest(refuse, serial_agent), SECRET, 20) as client:
        # Commands whose output leaves no room, so that the list must wait for some.
        others = [
            client.exec(["head", "-c", "30000", "/dev/zero"], user=USER, cwd="/tmp")
            for _ in range(3)
        ]
        listed = [entry["name"] for entry in client.list_files(str(tmp_path), user=USER)]
        assert [process.wait().status for process in others] == [0, 0, 0]
    assert listed == names


def test_vsock_is_preferred_though_the_serial_line_would_answer(
    agent_path: Path, serial_agent: socket.socket
) -> None:
    guest = FakeGuest(
        lambda attempt: dial(agent_path) if attempt == ATTEMPTS_BEFORE_SERIAL else refuse(attempt),
        serial_agent,
    )
    with connect(guest, SECRET, 20) as client:
        assert not client.is_serial


def test_a_guest_that_ends_is_told_at_once_with_its_last_words() -> None:
    guest = FakeGuest(refuse)
    guest.story = "Kernel panic - not syncing: no init"
    threading.Timer(0.2, guest.ended.set).start()
    started = time.monotonic()
    with pytest.raises(AgentError, match="ended before its agent answered") as caught:
        connect(guest, SECRET, 60)
    assert "Kernel panic" in str(caught.value)
    assert time.monotonic() - started < 30


def test_the_deadline_is_kept_and_says_what_was_wrong() -> None:
    with pytest.raises(SandboxTimeout, match="within 0.3 s: .*Connection reset"):
        connect(FakeGuest(refuse), SECRET, 0.3)


def test_an_agent_that_takes_connections_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "_HANDSHAKE_S", 0.05)
    peers = []

    def answer(attempt: int) -> socket.socket:
        sock, peer = socket.socketpair()
        peers.append(peer)
        return sock

    with pytest.raises(SandboxTimeout, match="did not answer"):
        connect(FakeGuest(answer), SECRET, 0.5)
    assert len(peers) > 1, "it tried again"
    for peer in peers:
        while peer.recv(4096):  # every connection was closed
            pass
        peer.close()


def test_a_wrong_secret_is_no_reason_to_try_again(agent_path: Path) -> None:
    guest = FakeGuest(lambda attempt: dial(agent_path))
    with pytest.raises(AgentError, match="does not accept our secret"):
        connect(guest, bytes(32), 20)
    assert guest.attempts == 1


def test_the_unix_socket_of_a_vsock_device(tmp_path: Path) -> None:
    path = str(tmp_path / "v")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        lines = []

        def serve(answers: list[bytes]) -> None:
            for answer in answers:
                sock, _ = listener.accept()
                with sock:
                    lines.append(sock.recv(100))
                    sock.sendall(answer)

        answers = [b"OK 1073741824\nrest", b"", b"NO\n", b"O" * 1000]
        thread = threading.Thread(target=serve, args=(answers,))
        thread.start()
        endpoint = UnixEndpoint(path)
        with endpoint.connect(1234, 20) as sock:
            assert sock.recv(100) == b"rest", "not a byte after the line is taken"
        for _ in answers[1:]:
            with pytest.raises(ConnectionError):
                endpoint.connect(1234, 20)
        thread.join()
        assert lines[0] == b"CONNECT 1234\n"
        # Nobody answers: accepted by the kernel alone.
        with pytest.raises(TimeoutError):
            endpoint.connect(1234, 0.1)


# --- losing it ----------------------------------------------------------------------------------


def test_the_end_of_the_connection_ends_every_request_with_the_reason(agent_path: Path) -> None:
    """Through a relay, which breaks in the middle."""
    ours, theirs = socket.socketpair()
    agent = dial(agent_path)

    def relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    threads = [
        threading.Thread(target=relay, args=pair) for pair in ((theirs, agent), (agent, theirs))
    ]
    for thread in threads:
        thread.start()
    link = Link(ours, explain=lambda reason: AgentError(f"{reason}\nthe console said so"))
    link.handshake(SECRET, 20)
    client = AgentClient(link)
    process = client.exec(["sleep", "1000"], user=USER, cwd="/tmp")
    assert process.pid
    watch = client.watch("/tmp", user=USER)
    for sock in (theirs, agent):
        sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(AgentError, match="connection .* is lost") as caught:
        process.wait()
    assert "the console said so" in str(caught.value)
    with pytest.raises(AgentError, match="is lost"):
        for _ in watch:
            pass
    with pytest.raises(AgentError, match="is lost"):
        client.metrics()
    client.close()
    for thread in threads:
        thread.join()
    for sock in (theirs, agent):
        sock.close()


def test_closing_ends_what_others_wait_for(connect: Callable[[], AgentClient]) -> None:
    client = connect()
    process = client.exec(["sleep", "1000"], user=USER, cwd="/tmp")
    assert process.pid
    threading.Timer(0.1, client.close).start()
    with pytest.raises(AgentError, match="closed here"):
        process.wait()
    client.close()
    with pytest.raises(AgentError):
        client.metrics()


def test_a_request_that_is_not_answered_is_given_up() -> None:
    with Script(protocol.encode(protocol.PONG, 0, PONG)) as sock:
        link = Link(sock)
        link.handshake(SECRET, 20)
        client = AgentClient(link, request_timeout_s=0.1)
        for _ in range(3):
            with pytest.raises(SandboxTimeout, match=r"metrics: .* within 0\.1 s"):
                client.metrics()
        client.close()


# --- guests that have other ideas ---------------------------------------------------------------

BAD_WORDS = {
    "zeros": bytes(100),
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a frame too long": b"\xff" * 40,
    "pong without a map": protocol.encode(protocol.PONG, 0, b"\xc0"),
    "pong of nothing": protocol.encode(protocol.PONG, 0, pack({})),
    "a request from the guest": protocol.encode(protocol.PING, 0, pack({})),
    "an answer to nothing": protocol.encode(protocol.RESULT, 7, pack({})),
    "an error": protocol.encode(protocol.ERROR, 0, pack({"message": "go\x1b[2J" + "x" * 9999})),
    "two pongs": protocol.encode(protocol.PONG, 0, PONG) * 2,
}


@pytest.mark.parametrize("words", BAD_WORDS.values(), ids=BAD_WORDS)
def test_what_is_no_protocol_ends_the_connection_in_one_line(words: bytes) -> None:
    with Script(words) as sock:
        link = Link(sock)
        with pytest.raises(AgentError, match="broke the protocol") as caught:
            link.handshake(SECRET, 20)
            AgentClient(link, 20).metrics()
        assert len(str(caught.value)) < 400
        assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
        link.close()


BAD_ANSWERS = {
    "data beyond the window": protocol.encode(protocol.DATA, 1, bytes(60_000)) * 20,
    "unknown type": protocol.encode(99, 1, b""),
    "error without a code": protocol.encode(protocol.ERROR, 1, pack({})),
    "credit for nothing": protocol.encode(protocol.CREDIT, 1, b"\xff"),
    "credit beyond all": protocol.encode_credit(1, 0xFFFFFFFF),
    "closing": b"",
}


@pytest.mark.parametrize("words", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_ends_the_request(words: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(ours)
        theirs.sendall(b"")
        thread = threading.Thread(target=_answer_badly, args=(theirs, words))
        thread.start()
        link.handshake(SECRET, 20)
        with pytest.raises(AgentError):
            AgentClient(link, 20).exec(["true"], user=USER).wait()
        link.close()
        thread.join()


def _answer_badly(sock: socket.socket, words: bytes) -> None:
    sock.recv(4096)
    sock.sendall(protocol.encode(protocol.PONG, 0, PONG))
    sock.recv(4096)
    with contextlib.suppress(OSError):
        sock.sendall(words)
    sock.shutdown(socket.SHUT_WR)


INSANE_RESULTS = [
    {},
    {"exit_code": "0"},
    {"exit_code": 256, "signal": None},
    {"exit_code": None, "signal": 10_000},
    {"exit_code": 0, "signal": 9},
    {"exit_code": 0, "signal": None, "error": 5},
]


@pytest.mark.parametrize("result", INSANE_RESULTS, ids=str)
def test_an_end_that_cannot_be_is_not_believed(result: dict[str, object]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(ours)
        words = protocol.encode(protocol.RESULT, 1, pack(result))
        thread = threading.Thread(target=_answer_badly, args=(theirs, words))
        thread.start()
        link.handshake(SECRET, 20)
        with pytest.raises(AgentError, match="no sane exit status"):
            AgentClient(link, 20).exec(["true"], user=USER).wait()
        link.close()
        thread.join()
