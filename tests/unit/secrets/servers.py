"""Servers that stand for the world: HTTPS by the standard library, HTTP/2 by h2, a test CA."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from voidbox.secrets.authority import Authority, make_authority, server_context

CHUNK = bytes(64 << 10)


def make_ca(*hosts: str) -> Authority:
    """Return the CA of the world, which the host trusts."""
    return make_authority(hosts)


def trusting(authority: Authority) -> dict[str, ssl.SSLContext]:
    """Return what authority.client_contexts() would, on a host that trusts this CA alone."""
    found = {}
    for key, protocols in (("any", ["h2", "http/1.1"]), ("http/1.1", ["http/1.1"])):
        context = ssl.create_default_context(cadata=authority.certificate)
        context.set_alpn_protocols(protocols)
        found[key] = context
    return found


class Seen:
    """What servers were asked. Thread: any."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def add(self, **values: Any) -> None:
        self.requests.append(values)

    def last(self) -> dict[str, Any]:
        return self.requests[-1]

    def headers(self, name: str) -> list[str]:
        return [
            value
            for request in self.requests
            for key, value in request["headers"]
            if key.lower() == name
        ]


class Handler(BaseHTTPRequestHandler):
    """/echo tells all that it was asked; /big?N sends N bytes; and so on."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", "0")))

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        extra = self.server.extra.get(path.split("/")[1])
        if extra is not None:
            extra(self)
            return
        if path == "/early":
            self._answer(413, b"too much")
            self.close_connection = True
            return
        body = b"" if path in ("/ws", "/sink") else self._body()
        self.server.seen.add(
            method=self.command, target=self.path, headers=self.headers.items(), body=body
        )
        getattr(self, f"_{path.split('/')[1].partition('.')[0]}", self._echo)(query, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = _serve

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _echo(self, query: str, body: bytes) -> None:
        told = {
            "method": self.command,
            "target": self.path,
            "headers": self.headers.items(),
            "body": body.decode("latin-1"),
        }
        self._answer(200, json.dumps(told).encode(), content_type="application/json")

    def _big(self, query: str, body: bytes) -> None:
        left = int(query)
        self.send_response(200)
        self.send_header("content-length", str(left))
        self.end_headers()
        while left:
            part = CHUNK[: min(left, len(CHUNK))]
            self.wfile.write(part)
            left -= len(part)

    def _sink(self, query: str, body: bytes) -> None:
        left = int(self.headers["content-length"])
        digest = hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 64 << 10))
            digest.update(part)
            left -= len(part)
        self._answer(200, digest.hexdigest().encode())

    def _chunks(self, query: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in (b"one ", b"two ", b"three"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def _close(self, query: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"until the end")
        self.close_connection = True

    def _cut(self, query: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b"only this")
        self.close_connection = True

    def _redirect(self, query: str, body: bytes) -> None:
        self._answer(302, b"", location=query)

    def _sse(self, query: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(b"data: %d\n\n" % number)
            self.wfile.flush()
            self.server.go_on.wait(60)  # the test lets it go on, once it has seen this one
            self.server.go_on.clear()
        self.close_connection = True

    def _ws(self, query: str, body: bytes) -> None:
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("connection", "Upgrade")
        self.send_header("upgrade", "websocket")
        self.send_header("sec-websocket-accept", accept)
        self.end_headers()
        while data := self.connection.recv(1000):
            self.wfile.write(data)
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS begins in the connection's own thread."""
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with (
            contextlib.suppress(OSError, ssl.SSLError),
            self.context.wrap_socket(request, server_side=True) as wrapped,
        ):
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def https_server(
    pem: str | None, extra: dict[str, Callable[[Any], None]] | None = None
) -> Iterator[Any]:
    """Yield a server: `port`, `seen`, `go_on`. Without `pem` it speaks no TLS."""
    server: Any = _Server(("127.0.0.1", 0), Handler)
    server.context = server_context(pem, ["http/1.1"]) if pem is not None else None
    server.seen, server.go_on, server.extra = Seen(), threading.Event(), extra or {}
    server.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Http2Handler(socketserver.BaseRequestHandler):
    """/echo tells all that it was asked; /big?N sends N bytes; /goaway leaves politely."""

    server: Any

    def handle(self) -> None:
        with (
            contextlib.suppress(OSError, ssl.SSLError),
            self.server.context.wrap_socket(self.request, server_side=True) as sock,
        ):
            self._run(sock)

    def _run(self, sock: ssl.SSLSocket) -> None:
        self._send_now = sock.sendall
        config: Any = H2Configuration(client_side=False, header_encoding="utf-8")
        h2: Any = H2Connection(config)
        h2.initiate_connection()
        sock.sendall(h2.data_to_send())
        requests: dict[int, dict[str, Any]] = {}
        left: dict[int, bytes] = {}
        while data := sock.recv(1 << 16):
            for event in h2.receive_data(data):
                if isinstance(event, events.RequestReceived):
                    requests[event.stream_id] = {"headers": event.headers, "body": b""}
                elif isinstance(event, events.DataReceived):
                    requests[event.stream_id]["body"] += event.data
                    h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, events.StreamEnded):
                    self._answer(h2, event.stream_id, requests.pop(event.stream_id), left)
            self._send(h2, left)
            sock.sendall(h2.data_to_send())

    def _answer(self, h2: Any, id: int, request: dict[str, Any], left: dict[int, bytes]) -> None:
        named = dict(request["headers"])
        self.server.seen.add(
            method=named[":method"],
            target=named[":path"],
            headers=request["headers"],
            body=request["body"],
        )
        path, _, query = named[":path"].partition("?")
        if path == "/big":
            h2.send_headers(id, [(":status", "200")])
            left[id] = bytes(int(query))
            return
        told = {**self.server.seen.last(), "body": request["body"].decode("latin-1")}
        body = json.dumps(told).encode()
        h2.send_headers(id, [(":status", "200"), ("content-type", "application/json")])
        if path == "/goaway":
            head = h2.data_to_send()
            # h2 takes no more orders after GOAWAY: what is sent behind it is made before it.
            h2.send_data(id, body, end_stream=True)
            rest = h2.data_to_send()
            h2.close_connection(last_stream_id=id)
            self._send_now(head + h2.data_to_send() + rest)
            return
        if path == "/trailers":
            h2.send_data(id, body)
            h2.send_headers(id, [("grpc-status", "0")], end_stream=True)
            return
        left[id] = body

    def _send(self, h2: Any, left: dict[int, bytes]) -> None:
        for id in list(left):
            while left[id]:
                room = min(h2.local_flow_control_window(id), h2.max_outbound_frame_size)
                if room <= 0:
                    break
                h2.send_data(id, left[id][:room])
                left[id] = left[id][room:]
            else:
                h2.end_stream(id)
                del left[id]


class _Http2Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512


@contextlib.contextmanager
def http2_server(pem: str) -> Iterator[Any]:
    """Yield a server that speaks HTTP/2 alone: `port`, `seen`."""
    server: Any = _Http2Server(("127.0.0.1", 0), _Http2Handler)
    server.context, server.seen = server_context(pem, ["h2"]), Seen()
    server.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Entrance:
    """A port of the loopback that stands for the guest's network: what connects goes to a guard.

    Args:
        port: of the loopback, to which the guest's connections would have led.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.far_port = 0
        self.asked_port: int | None = None
        self.guard: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket()
            far.setblocking(False)
            far.connect_ex(("127.0.0.1", self.far_port))
            self.guard.serve(sock, far, self.asked_port or self.port)

    def connect(self, context: ssl.SSLContext | None, name: str | None) -> Any:
        """Return a connection of the guest: with TLS, for a name, or without."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return sock if context is None else context.wrap_socket(sock, server_hostname=name)

    def close(self) -> None:
        """Take no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def exchange(sock: Any, request: bytes) -> bytes:
    """Send a request; return all that comes until the other end closes."""
    sock.sendall(request)
    parts: Sequence[bytes] = []
    with contextlib.suppress(ssl.SSLError, ConnectionResetError):
        while part := sock.recv(1 << 16):
            parts = [*parts, part]
    return b"".join(parts)
