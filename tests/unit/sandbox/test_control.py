"""The control socket: answers, errors, sockets, and clients who are silent, slow or mad."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError
from voidbox.sandbox.control import REQUEST_BYTES_MAX, ControlClient
from voidbox.sandbox.process.control_server import CONNECTIONS_MAX, Becomes, ControlServer, Later

DEADLINE_S = 60


class Served:
    """A server with a few ops, and an event for `wait`."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "control.sock")
        self.ended_fd = os.eventfd(0)
        self.release = threading.Event()
        handlers = {
            "echo": lambda values: {"values": values},
            "fail": self._fail,
            "bug": lambda values: {"x": 1 // 0},
            "slow": self._slow,
            "wait": lambda values: Later(self.ended_fd, lambda: {"end": "well"}),
            "socket": self._socket,
        }
        self.server = ControlServer(self.path, handlers)  # type: ignore[arg-type]
        self.server.start()
        self.client = ControlClient(self.path, DEADLINE_S)

    def _fail(self, values: dict[str, object]) -> dict[str, object]:
        kinds = {"c": ConfigError, "a": AgentError, "h": HostError, "t": SandboxTimeout}
        raise kinds[str(values["kind"])]("because")

    def _slow(self, values: dict[str, object]) -> dict[str, object]:
        self.release.wait(DEADLINE_S)
        return {}

    def _socket(self, values: dict[str, object]) -> Becomes:
        def take(sock: socket.socket) -> None:
            with sock:
                sock.sendall(b"through the wall")

        return Becomes({"a": "x" * 5000}, take)

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.release.set()
        self.server.close()
        os.close(self.ended_fd)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    made = Served(tmp_path)
    yield made
    made.close()
    assert not os.path.exists(made.path)
    deadline = time.monotonic() + DEADLINE_S
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that close() has seen end still counts for a moment
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # fewer: another test's garbage


def read_line(sock: socket.socket) -> dict[str, object]:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(65536)
        assert data, "the server hung up"
        line += data
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def test_answers_and_errors(served: Served) -> None:
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600
    assert served.client.request("echo", x=[1, "ü"])["values"] == {"op": "echo", "x": [1, "ü"]}
    errors: dict[str, type[VoidboxError]] = {
        "c": ConfigError, "a": AgentError, "h": HostError, "t": SandboxTimeout
    }  # fmt: skip
    for kind, error in errors.items():
        with pytest.raises(error, match="^because$"):
            served.client.request("fail", kind=kind)
    with pytest.raises(HostError, match="voidbox failed: ZeroDivisionError"):
        served.client.request("bug")
    with pytest.raises(ConfigError, match="no op 'dance'; there are echo, fail"):
        served.client.request("dance")
    with pytest.raises(ConfigError, match="at once"):
        served.client.request("echo", x="x" * REQUEST_BYTES_MAX)


def test_several_requests_on_one_connection_in_any_pieces(served: Served) -> None:
    requests = b"".join(b'{"op": "echo", "n": %d}\n' % number for number in range(3))
    with served.dial() as sock:
        for byte in requests:
            sock.sendall(bytes([byte]))
        with sock.makefile("rb") as lines:
            found = [json.loads(next(lines))["values"]["n"] for _ in range(3)]
    assert found == [0, 1, 2]


@pytest.mark.parametrize(
    "line",
    [b"", b"hello", b"[]", b"{}", b'{"op": 5}', b"\xff\xfe", b"[" * 60000, b'{"op": NaN}'],
    ids=repr,
)
def test_nonsense_is_refused_and_the_connection_goes_on(served: Served, line: bytes) -> None:
    with served.dial() as sock:
        sock.sendall(line[:60000] + b"\n")
        answer = read_line(sock)
        assert answer["ok"] is False
        assert answer["kind"] == "config"
        sock.sendall(b'{"op": "echo"}\n')
        assert read_line(sock)["ok"] is True


def test_a_line_without_end_is_refused(served: Served) -> None:
    with served.dial() as sock:
        sock.sendall(b"x" * (REQUEST_BYTES_MAX + 2))
        assert "at most" in str(read_line(sock)["error"])
        assert sock.recv(1) == b""


@pytest.mark.slow
def test_the_silent_make_room_for_others(served: Served) -> None:
    silent = [served.dial() for _ in range(CONNECTIONS_MAX + 5)]
    try:
        for _ in range(5):
            assert served.client.request("echo")["ok"] is True
    finally:
        for sock in silent:
            sock.close()


@pytest.mark.slow
def test_who_waits_for_an_answer_is_not_sent_away(served: Served) -> None:
    waiting = [served.dial() for _ in range(CONNECTIONS_MAX)]
    try:
        for sock in waiting:
            sock.sendall(b'{"op": "wait"}\n')
        with pytest.raises(SandboxTimeout):
            ControlClient(served.path, 2).request("echo")
        waiting.pop().close()
        assert served.client.request("echo")["ok"] is True
        os.eventfd_write(served.ended_fd, 1)
        for sock in waiting:
            assert read_line(sock)["end"] == "well"
    finally:
        for sock in waiting:
            sock.close()


def test_answers_that_are_ready_are_sent_before_the_end(served: Served) -> None:
    with served.dial() as waiting, served.dial() as silent, served.dial() as hopeless:
        for sock, op in ((waiting, b"wait"), (hopeless, b"slow")):
            sock.sendall(b'{"op": "%s"}\n' % op)
        with served.dial() as sock:
            sock.sendall(b'{"op": "echo"}\n')
            read_line(sock)
        os.eventfd_write(served.ended_fd, 1)
        served.server.hide()
        with pytest.raises(AgentError, match="gone"):
            served.client.request("echo")
        served.release.set()
        served.server.close()
        assert read_line(waiting)["end"] == "well"
        assert silent.recv(1) == b""


def test_a_connection_becomes_a_stream(served: Served) -> None:
    with served.client.request_socket("socket") as sock:
        assert not sock.get_inheritable()
        assert sock.recv(100) == b"through the wall"
        assert sock.recv(100) == b""
    served.client.request("socket")  # whoever does not want it leaks nothing
    with pytest.raises(AgentError, match="no stream"):
        served.client.request_socket("echo")


def test_a_stream_that_nobody_asked_for_does_not_spoil_its_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.recv(1000)
                sock.sendall(b'{"ok": true, "a": 1}\nthrough the wall')

        server = threading.Thread(target=answer)
        server.start()
        assert ControlClient(str(tmp_path / "s"), DEADLINE_S).request("socket")["a"] == 1
        server.join()


def test_a_slow_answer_is_a_timeout(served: Served) -> None:
    with pytest.raises(SandboxTimeout, match=r"slow: .* within 0.1 s"):
        ControlClient(served.path, 0.1).request("slow")


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(AgentError, match="gone"):
        ControlClient(path).request("echo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def die() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(AgentError, match="gone away"):
            ControlClient(path).request("echo")
        thread.join()
    with pytest.raises(AgentError, match="gone"):
        ControlClient(path).request("echo")


def test_running_out_of_descriptors_stops_nobody_for_good(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = socket.socket.accept, iter([OSError(24, "EMFILE")] * 3)

    def accept(self: socket.socket) -> object:
        error = next(failures, None)
        if error is not None:
            raise error
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    assert served.client.request("echo")["ok"] is True


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_other_users_are_not_served() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        served = Served(Path(folder))
        os.chmod(served.path, 0o666)
        pid = os.fork()
        if pid == 0:  # tests are not readable for everybody: no other program, then
            status = 1
            try:
                os.setuid(65534)
                with served.dial() as sock:
                    sock.sendall(b'{"op": "echo"}\n')
                    status = 0 if sock.recv(100) == b"" else 2
            except (BrokenPipeError, ConnectionResetError):
                status = 0
            finally:
                os._exit(status)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert served.client.request("echo")["ok"] is True
        finally:
            served.close()
