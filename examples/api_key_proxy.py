"""Keeps an API key on the host: a proxy that guests use with a password of its own, worth nothing
elsewhere, and that puts the real key in its place.

    with KeyProxy("https://api.anthropic.com", key) as proxy:
        Sandbox.create(
            allow_host_ports=[proxy.port], outbound_domain_allowlist=[],
            envs={"ANTHROPIC_BASE_URL": proxy.guest_url, "ANTHROPIC_API_KEY": proxy.password},
        )

The guest then needs no way to the world at all. What it may do with the key is what is forwarded
here: POST to the Messages API, so many requests, so large, so many at once. Of the guest's headers
only those that the API needs go on, of the answer's those that the guest needs. The answer passes
as it comes, so that streams stay streams. Another program of this host may reach the port, but does
not know the password, and is cut off soon.

What the API itself fetches for a request is not looked at: its server tools (web_search, web_fetch,
mcp_servers, sources that are URLs) have Anthropic's machines call what the guest names.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import ipaddress
import secrets
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

GUEST_HOST = "10.0.2.2"  # what the guest calls this host's loopback
PATHS = ("/v1/messages", "/v1/messages/count_tokens")
BODY_BYTES_MAX = 32 << 20  # the API's own limit
ANSWER_BYTES_MAX = 64 << 20
REQUESTS_MAX = 500
AT_ONCE_MAX, CONNECTIONS_MAX = 8, 32
_GUEST_S, _API_S = 60.0, 600.0  # of silence
_STRANGER_S = 10.0  # until the password has come, in all
_DRAINED_BYTES_MAX = 1 << 20  # of a request that is refused
_PIECE_BYTES = 64 << 10
_TO_API = ("content-type", "accept", "user-agent", "anthropic-version", "anthropic-beta")
_TO_GUEST = ("content-type", "retry-after", "request-id")
NONE_LEFT = 429, "no requests are left: the proxy's limit is reached"
_LIMITS = "anthropic-ratelimit-"


class KeyProxy:
    """The proxy, on a free port of the loopback, until close(). Thread: any.

    Args:
        upstream: the API: https://HOST[:PORT]; http:// for one on this machine.
        key: the real one.
        requests_max: how many requests it forwards in its life: what a guest can spend.

    Attributes:
        port: where it listens.
        password: what the guest has for a key.
        forwarded, refused: how many requests were.
    """

    def __init__(self, upstream: str, key: str, requests_max: int = REQUESTS_MAX) -> None:
        parts = urlsplit(upstream)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{upstream}: give https://HOST or http://HOST:PORT")
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise ValueError(f"{upstream}: the key goes over https:// but to this machine")
        self.password = f"sk-voidbox-{secrets.token_urlsafe(24)}"
        self.forwarded = self.refused = 0
        self._upstream = parts
        self._key = key
        self._left = requests_max
        self._lock = threading.Lock()  # covers the three numbers
        self._at_once = threading.BoundedSemaphore(AT_ONCE_MAX)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def guest_url(self) -> str:
        """Where the guest finds it, if its network has `allow_host_ports=[port]`."""
        return f"http://{GUEST_HOST}:{self.port}"

    def close(self) -> None:
        """End it. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> KeyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def examine(self, path: str, password: str, length: str) -> tuple[int, str] | None:
        """Return why a request is not forwarded, as status and text; None if it may be."""
        if not hmac.compare_digest(password.encode(), self.password.encode()):
            return 401, "this is not the proxy's password"
        if path.partition("?")[0] not in PATHS:
            return 403, "only the Messages API is forwarded"
        if not length.isdecimal():
            return 411, "say how long the body is"
        if len(length) > 12 or int(length) > BODY_BYTES_MAX:
            return 413, f"more than {BODY_BYTES_MAX >> 20} MiB"
        return None if self._left > 0 else NONE_LEFT

    def spend(self) -> bool:
        """Count a request that is about to be forwarded; False if none is left."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            self.forwarded += 1
            return True

    def count_refused(self) -> None:
        """Count a request that is not forwarded."""
        with self._lock:
            self.refused += 1

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the API, for one request."""
        host, port = self._upstream.hostname, self._upstream.port
        assert host is not None
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=_API_S)
        return http.client.HTTPSConnection(host, port, timeout=_API_S, context=self._tls)

    def own_headers(self) -> dict[str, str]:
        """Return what is added to a request."""
        return {"x-api-key": self._key, "connection": "close"}

    @property
    def at_once(self) -> threading.BoundedSemaphore:
        """What bounds the requests under way."""
        return self._at_once


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # one that waits for the API does not keep us
    request_queue_size = CONNECTIONS_MAX
    proxy: KeyProxy

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread, unless there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: guests break their connections as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _GUEST_S
    server: _Server

    def setup(self) -> None:
        """Begin a connection, which ends soon unless the password comes."""
        super().setup()
        self._stranger = threading.Timer(_STRANGER_S, self._cut)
        self._stranger.daemon = True
        self._stranger.start()

    def finish(self) -> None:
        """End it."""
        self._stranger.cancel()
        super().finish()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_POST(self) -> None:
        proxy = self.server.proxy
        self.close_connection = True  # each request has its own: nothing is left to be smuggled
        password = self.headers.get("x-api-key") or ""
        if "transfer-encoding" in self.headers:
            return self._refuse(411, "say how long the body is")
        length = self.headers.get("content-length") or ""
        why = proxy.examine(self.path, password, length)
        if why is not None:
            return self._refuse(*why)
        self._stranger.cancel()
        if not proxy.at_once.acquire(timeout=_GUEST_S):
            return self._refuse(429, "too many requests at once")
        try:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                return self._refuse(400, "the body is shorter than it says")
            self._forward(proxy, body)
        finally:
            proxy.at_once.release()
        return None

    def _forward(self, proxy: KeyProxy, body: bytes) -> None:
        """Send a request on, and its answer back. What cannot be sent is not counted as sent."""
        headers = {name: self.headers[name] for name in _TO_API if name in self.headers}
        headers |= {"content-length": str(len(body)), **proxy.own_headers()}
        with contextlib.closing(proxy.connect()) as connection:
            try:
                if any("\n" in value or "\r" in value for value in headers.values()):
                    raise ValueError("a value of several lines")
                connection.putrequest("POST", self.path)
                for name, value in headers.items():
                    connection.putheader(name, value)
            except ValueError:
                return self._refuse(400, "a header or the path has characters that it may not")
            try:
                connection.connect()
            except OSError as error:
                return self._refuse(502, f"the API cannot be reached: {type(error).__name__}")
            if not proxy.spend():
                return self._refuse(*NONE_LEFT)
            try:
                connection.endheaders(body)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                return self._tell(502, f"the API does not answer: {type(error).__name__}")
            with answer:
                self._answer(answer)
        return None

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        """Pass an answer on."""
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in _TO_GUEST or name.lower().startswith(_LIMITS):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self._copy(answer)

    def _copy(self, answer: http.client.HTTPResponse) -> None:
        """Pass the body on as it comes; its end is the connection's."""
        left = ANSWER_BYTES_MAX
        with contextlib.suppress(OSError, http.client.HTTPException):
            while left > 0 and (data := answer.read1(min(_PIECE_BYTES, left))):
                self.wfile.write(data)
                left -= len(data)

    def do_GET(self) -> None:
        self._refuse(403, "only the Messages API is forwarded")

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_CONNECT = do_GET

    def _refuse(self, status: int, text: str) -> None:
        self.server.proxy.count_refused()
        self._tell(status, text)

    def _tell(self, status: int, text: str) -> None:
        self.close_connection = True
        body = f'{{"type":"error","error":{{"type":"proxy_error","message":"{text}"}}}}'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            # Closing with input unread would reset the connection before the answer is seen.
            length = self.headers.get("content-length") or ""
            if length.isdecimal() and len(length) <= 12:
                self.rfile.read(min(int(length), _DRAINED_BYTES_MAX))

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing on standard error."""
