"""The proxy that keeps the key: what it forwards, what it refuses; streams stay streams."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

KEY = "sk-ant-the-real-one"


class Upstream(BaseHTTPRequestHandler):
    """Records what comes, and answers in two pieces, the second when the test says so."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Request-Id", "req_1")
        self.send_header("Set-Cookie", "not=yours")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"first", b"second"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            if piece == b"first":
                self.server.may_go_on.wait(10)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.seen, server.status, server.may_go_on = [], 200, threading.Event()
    server.may_go_on.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(upstream: Any) -> Iterator[Any]:
    from api_key_proxy import KeyProxy

    with KeyProxy(f"http://127.0.0.1:{upstream.server_address[1]}", KEY, requests_max=3) as proxy:
        yield proxy


@contextmanager
def ask(
    proxy: Any,
    path: str = "/v1/messages?beta=true",
    method: str = "POST",
    body: bytes = b"{}",
    **headers: str,
) -> Iterator[http.client.HTTPResponse]:
    sent = {"x-api-key": proxy.password, **{k.replace("_", "-"): v for k, v in headers.items()}}
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)) as connection:
        connection.request(method, path, body, sent)
        with connection.getresponse() as answer:
            yield answer


def status(*arguments: Any, **options: Any) -> int:
    with ask(*arguments, **options) as answer:
        answer.read()
        return answer.status


def test_it_puts_the_key_in_the_passwords_place(proxy: Any, upstream: Any) -> None:
    with ask(proxy, anthropic_version="2023-06-01", cookie="a=b", x_forwarded_for="1") as answer:
        assert (answer.status, answer.read()) == (200, b"firstsecond")
        assert answer.getheader("request-id") == "req_1"
        assert answer.getheader("set-cookie") is None
    ((path, headers, body),) = upstream.seen
    assert (path, body) == ("/v1/messages?beta=true", b"{}")
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers.keys() <= {
        "host", "accept-encoding", "content-length", "connection", "x-api-key",
        "anthropic-version",
    }  # fmt: skip


def test_a_stream_passes_as_it_comes(proxy: Any, upstream: Any) -> None:
    upstream.may_go_on.clear()
    with ask(proxy) as answer:
        assert answer.read1(100) == b"first"  # while the second is not written yet
        upstream.may_go_on.set()
        assert answer.read() == b"second"


def test_the_apis_own_refusals_pass(proxy: Any, upstream: Any) -> None:
    upstream.status = 529
    assert status(proxy) == 529


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/v1/messages/count_tokens", "POST", 200),
        ("/v1/files", "POST", 403),
        ("/v1/messages/batches", "POST", 403),
        ("/v1/messages/../files", "POST", 403),
        ("http://elsewhere.example/v1/messages", "POST", 403),
        ("/v1/messages", "GET", 403),
        ("/v1/messages", "DELETE", 403),
        ("/v1/messages", "BREW", 501),
    ],
)
def test_only_the_messages_api_is_forwarded(
    path: str, method: str, expected: int, proxy: Any, upstream: Any
) -> None:
    assert status(proxy, path, method) == expected
    assert len(upstream.seen) == (expected == 200)


def test_who_does_not_know_the_password_gets_nothing(proxy: Any, upstream: Any) -> None:
    assert status(proxy, x_api_key="fake") == 401
    assert status(proxy, x_api_key=KEY) == 401
    assert status(proxy, x_api_key="") == 401
    assert not upstream.seen
    assert (proxy.forwarded, proxy.refused) == (0, 3)


def test_sizes_are_bounded(proxy: Any, upstream: Any) -> None:
    for length in (str(33 << 20), "9" * 40, "-1", "x"):
        with socket.create_connection(("127.0.0.1", proxy.port), 10) as sock:
            head = f"POST /v1/messages HTTP/1.1\r\nx-api-key: {proxy.password}\r\n"
            sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100).split()[1] in (b"411", b"413"), length
    head = f"POST /v1/messages HTTP/1.1\r\nx-api-key: {proxy.password}\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as sock:
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n".encode())
        sock.shutdown(socket.SHUT_WR)
        assert b" 411 " in sock.recv(100)
    assert not upstream.seen


def test_a_guest_cannot_spend_without_end(proxy: Any) -> None:
    assert [status(proxy) for _ in range(4)] == [200, 200, 200, 429]


def test_headers_smuggle_nothing(proxy: Any, upstream: Any) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as sock:
        head = f"POST /v1/messages HTTP/1.1\r\nx-api-key: {proxy.password}\r\n"
        # A value folded over two lines, which some take for another header.
        head += "anthropic-version: 1\r\n x-evil: 1\r\nContent-Length: 0\r\n\r\n"
        sock.sendall(head.encode())
        answer = sock.recv(100)
    assert answer.split()[1] == b"400"
    assert not upstream.seen
    assert proxy.forwarded == 0


def test_a_body_cut_short_is_not_forwarded(proxy: Any, upstream: Any) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as sock:
        head = f"POST /v1/messages HTTP/1.1\r\nx-api-key: {proxy.password}\r\n"
        sock.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100).split()[1] == b"400"
    assert not upstream.seen
    assert (proxy.forwarded, proxy.refused) == (0, 1)


@pytest.mark.parametrize(
    "text", ["", "POST /v1/messages HTTP/1.1\r\nx-api-key: guess\r\nContent-Length: 9\r\n\r\n"]
)
def test_strangers_are_cut_off_soon(text: str, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import api_key_proxy

    monkeypatch.setattr(api_key_proxy, "_STRANGER_S", 0.05)
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as sock:
        sock.sendall(text.encode())
        while sock.recv(1000):
            pass


def test_who_knows_the_password_may_take_longer(
    proxy: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import api_key_proxy

    monkeypatch.setattr(api_key_proxy, "_STRANGER_S", 0.1)
    upstream.may_go_on.clear()
    with ask(proxy) as answer:
        assert answer.read1(100) == b"first"
        time.sleep(0.2)
        upstream.may_go_on.set()
        assert answer.read() == b"second"


def test_connections_are_bounded(proxy: Any) -> None:
    from api_key_proxy import CONNECTIONS_MAX

    idle = [socket.create_connection(("127.0.0.1", proxy.port), 10) for _ in range(CONNECTIONS_MAX)]
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), 10) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for sock in idle:
            sock.close()


def test_an_api_that_cannot_be_reached_is_told(upstream: Any) -> None:
    from api_key_proxy import KeyProxy

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with (
            KeyProxy(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY) as proxy,
            ask(proxy) as answer,
        ):
            assert answer.status == 502
            assert "ConnectionRefusedError" in json.loads(answer.read())["error"]["message"]
            assert (proxy.forwarded, proxy.refused) == (0, 1)
    for url in ("ftp://x", "https://", "http://host/path"):
        with pytest.raises(ValueError, match="give https://HOST"):
            KeyProxy(url, KEY)
    for url in ("http://api.example", "http://192.0.2.1:80", "http://127.0.0.1.example"):
        with pytest.raises(ValueError, match="the key goes over https://"):
            KeyProxy(url, KEY)
    for url in ("http://localhost:1", "http://[::1]:1"):
        KeyProxy(url, KEY).close()
