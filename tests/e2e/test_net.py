"""The network in real guests: curl, wget, nc, ping and names, against servers of the host."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import ROOT, script
from tests.in_process import InProcessGuest as Guest
from tests.unit.net.tap import echo_server
from tests.unit.net.test_nat import RESOLVE, TRY, name_server
from voidbox.agent.client import AgentClient
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import parse_forward
from voidbox.vmm.config import MachineConfig

pytestmark = pytest.mark.boot

GIB = 1 << 30
_BLOCK = bytes(range(251)) * 4096
# The gibibyte takes a minute and a half in the lab.
SIZES = [0, 1, 1460, 1 << 20, GIB]


def pattern(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _BLOCK[:size]
        size -= len(_BLOCK)


def checksum(size: int) -> str:
    found = hashlib.md5(usedforsecurity=False)
    for block in pattern(size):
        found.update(block)
    return found.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """GET /SIZE gives so many bytes; PUT and POST answer with the body's checksum."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with contextlib.suppress(OSError):
            for block in pattern(size):
                self.wfile.write(block)

    def do_PUT(self) -> None:
        found = hashlib.md5(usedforsecurity=False)
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        for block in self._body():
            found.update(block)
        answer = found.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers["Content-Length"])
        while left:
            block = self.rfile.read(min(left, 1 << 20))
            if not block:
                return
            left -= len(block)
            yield block

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with server:
        try:
            yield server.server_address[1]  # type: ignore[index]
        finally:
            server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with serving(_HttpServer(("127.0.0.1", 0), _Handler)) as port:
        yield port


class Networked(NamedTuple):
    """A guest on the network, and its client."""

    guest: Guest
    client: AgentClient


@pytest.fixture(scope="session")
def network_images(kernels: dict[str, str]) -> dict[str, str]:
    """Images with curl and nc in them; `make kernels` builds them."""
    tools = ["--with", "curl", "--with", "netcat-openbsd"]
    build = "scripts/build_guest_image.sh"
    return {
        "minimal": script(build, *tools),
        "cloud": script(build, *tools, "--kernel", kernels["cloud"]),
    }


@contextlib.contextmanager
def networked(kernel: str, image: str, config: NatConfig) -> Iterator[Networked]:
    with Guest(MachineConfig(kernel, image, net=config)) as guest:
        guest.machine.start()
        with guest.connect(300) as client:
            yield Networked(guest, client)


@pytest.fixture(scope="module", params=["minimal", "cloud"])
def booted(
    request: pytest.FixtureRequest,
    kernels: dict[str, str],
    network_images: dict[str, str],
    http_port: int,
) -> Iterator[Networked]:
    with echo_server() as echo_port, name_server() as dns_port:
        config = NatConfig(
            allow_host_ports=(http_port, echo_port), resolvers=(("127.0.0.1", dns_port),)
        )
        with networked(kernels[request.param], network_images[request.param], config) as found:
            found.client.exec(shell=f"echo {echo_port} > /workspace/echo").wait()
            yield found


def run(client: AgentClient, line: str, **options: object) -> tuple[str, int]:
    process = client.exec(shell=line, **options)  # type: ignore[arg-type]
    out = b"".join(data for _, data in process.output())
    return out.decode(), process.wait().status


@pytest.mark.parametrize("size", SIZES)
def test_downloads(booted: Networked, http_port: int, size: int) -> None:
    url = f"http://10.0.2.2:{http_port}/{size}"
    expected = f"{checksum(size)}  -\n"
    tools = ("curl -sS", "wget -q -O -") if size < GIB else ("curl -sS",)
    for tool in tools:
        assert run(booted.client, f"{tool} {url} | md5sum") == (expected, 0)


@pytest.mark.parametrize("size", SIZES)
def test_uploads(booted: Networked, http_port: int, size: int) -> None:
    code = (
        "import sys; b = bytes(range(251)) * 4096; n = int(sys.argv[1])\n"
        "while n > 0: n -= sys.stdout.buffer.write(b[:n])"
    )
    url = f"http://10.0.2.2:{http_port}/"
    line = f"python3 -c '{code}' {size} | curl -sS -T - {url}"
    assert run(booted.client, line) == (checksum(size), 0)


def test_wget_uploads_too(booted: Networked, http_port: int) -> None:
    # Of text: busybox's wget takes a zero byte for the end.
    url = f"http://10.0.2.2:{http_port}/"
    line = f"yes | head -c 100000 > f; wget -q -O - --post-file f {url}"
    expected = hashlib.md5(b"y\n" * 50_000, usedforsecurity=False).hexdigest()
    assert run(booted.client, line) == (expected, 0)


def test_names(booted: Networked) -> None:
    out, status = run(booted.client, "nslookup -type=a example.com")
    assert status == 0 and "192.0.2.33" in out, out
    for protocol in ("udp", "tcp"):
        process = booted.client.exec(["python3", "-c", RESOLVE, "example.com", protocol])
        assert next(process.output()).data == b"4242 0 1 192.0.2.33\n"
        process.wait()
    out, _ = run(booted.client, "getent hosts example.com || python3 -c "
                 "'import socket; print(socket.gethostbyname(\"example.com\"))'")  # fmt: skip
    assert "192.0.2.33" in out


def test_ping(booted: Networked) -> None:
    # busybox's ping wants a raw socket, which is root's.
    out, status = run(booted.client, "ping -c 3 -w 20 10.0.2.2", user="root")
    assert status == 0 and "3 packets received" in out, out


def test_half_close(booted: Networked) -> None:
    """nc -N shuts its side when its input ends, and then waits for the answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        booted.guest.machine.loop.call_soon(lambda: _open_host_port(booted, port))
        answers = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                question = b""
                while part := connection.recv(100):
                    question += part
                answers.append(question)
                connection.sendall(b"answer to " + question)

        thread = threading.Thread(target=serve)
        thread.start()
        assert run(booted.client, f"echo question | nc.openbsd -N 10.0.2.2 {port}") == (
            "answer to question\n",
            0,
        )
        thread.join()


def _open_host_port(booted: Networked, port: int) -> None:
    network = booted.guest.machine.network
    assert network is not None
    policy = network._stack._policy
    policy._host_ports = policy._host_ports | {port}


PARALLEL = """
import socket, sys
port = int(open("/workspace/echo").read())
socks = [socket.create_connection(("10.0.2.2", port), timeout=60) for _ in range(200)]
for number, sock in enumerate(socks):
    sock.sendall(b"%d" % number * 100)
for number, sock in enumerate(socks):
    want = b"%d" % number * 100
    assert sock.recv(len(want), socket.MSG_WAITALL) == want
print("all")
"""


def test_200_connections_at_once(booted: Networked) -> None:
    process = booted.client.exec(["python3", "-c", PARALLEL])
    assert b"".join(data for _, data in process.output()) == b"all\n"
    wait_for_no_flows(booted)


def wait_for_no_flows(booted: Networked) -> None:
    network = booted.guest.machine.network
    assert network is not None
    deadline = time.monotonic() + 60
    while network.statistics().tcp_flows:
        assert time.monotonic() < deadline, network.statistics()
        time.sleep(0.1)


def test_short_connections_leave_nothing(booted: Networked) -> None:
    """VOIDBOX_NET_CONNECTIONS=100000 for the long run."""
    code = """
import socket, sys
port = int(open("/workspace/echo").read())
for number in range(int(sys.argv[1])):
    with socket.create_connection(("10.0.2.2", port), timeout=60) as sock:
        sock.send(b"x")
        assert sock.recv(1) == b"x", number
"""
    booted.client.write_file("/workspace/connect.py", io.BytesIO(code.encode()))
    connect = "python3 connect.py"
    assert run(booted.client, f"{connect} 100") == ("", 0)
    before, resident_before = len(os.listdir("/proc/self/fd")), resident_bytes()
    count = int(os.environ.get("VOIDBOX_NET_CONNECTIONS", "300"))
    assert run(booted.client, f"{connect} {count}") == ("", 0)
    wait_for_no_flows(booted)
    deadline = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before + 3:
        assert time.monotonic() < deadline, "descriptors are left"
        time.sleep(0.1)
    assert resident_bytes() - resident_before < 8 << 20


def resident_bytes() -> int:
    """How much memory this process uses, less the large mappings: the guest's RAM, and what it
    has touched of it."""
    total = size = 0
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("Rss:") and size < 64 << 20:
            total += int(line.split()[1]) << 10
    return total


def test_a_refused_port_fails_at_once(booted: Networked) -> None:
    process = booted.client.exec(["python3", "-c", TRY, "10.0.2.2", "9"])
    assert next(process.output()).data == b"ECONNREFUSED\n"  # after 5 s it would be another
    process.wait()


def test_a_black_hole_fails_after_its_time_while_others_go_on(
    booted: Networked, http_port: int
) -> None:
    """A listener whose queue is full answers no SYN."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        booted.guest.machine.loop.call_soon(lambda: _open_host_port(booted, port))
        code = TRY.replace("timeout=5", "timeout=100")
        process = booted.client.exec(["python3", "-c", code, "10.0.2.2", str(port)])
        started = time.monotonic()
        url = f"http://10.0.2.2:{http_port}/1460"
        assert run(booted.client, f"curl -sS {url} | md5sum")[0] == f"{checksum(1460)}  -\n"
        assert next(process.output()).data in (b"ECONNREFUSED\n", b"ETIMEDOUT\n")
        assert time.monotonic() - started > 25
        process.wait()


def test_policy_and_published_ports_on_the_command_line(tmp_path: Path) -> None:
    pcap = tmp_path / "capture.pcap"
    with echo_server() as open_port, echo_server() as closed_port:
        command = [
            sys.executable, "-m", "voidbox", "run", "-v", "--allow-host", str(open_port),
            "--allow", "192.0.2.0/24", "--pcap", str(pcap), "--publish", "0:80",
            "--", "python3", "-c", TRY + f"""
sys.argv[2] = "{closed_port}"
exec({TRY!r})
sys.argv[1:] = ["169.254.169.254", "80"]
exec({TRY!r})
""", "10.0.2.2", str(open_port),
        ]  # fmt: skip
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
    assert result.stdout == "open\nECONNREFUSED\nECONNREFUSED\n", result.stderr
    assert pcap.stat().st_size > 500


def test_a_published_server(kernels: dict[str, str], guest_images: dict[str, str]) -> None:
    config = NatConfig(publish=(parse_forward("0:8000"),))
    with networked(kernels["minimal"], guest_images["minimal"], config) as (guest, client):
        assert guest.machine.network is not None
        (forward,) = guest.machine.network.forwards.list()
        line = "echo from the guest > index.html; exec python3 -m http.server 8000"
        server = client.exec(shell=line)
        deadline = time.monotonic() + 60
        answer = b""
        while b"from the guest" not in answer:
            assert time.monotonic() < deadline
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", forward.host_port), timeout=30) as sock,
            ):
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = sock.recv(10_000, socket.MSG_WAITALL)
        server.kill()


def test_without_a_network_there_is_none(
    kernels: dict[str, str], guest_images: dict[str, str]
) -> None:
    config = MachineConfig(kernels["minimal"], guest_images["minimal"])
    with Guest(config) as guest:
        guest.machine.start()
        with guest.connect(300) as client:
            assert "eth0" not in run(client, "ls /sys/class/net")[0]
