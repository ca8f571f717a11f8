"""A registry on loopback that does what a test tells it to: also what none should do."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.unit.images.made import digest_of
from tests.unit.images.oci import OciImage


class Request(NamedTuple):
    """What somebody asked for."""

    path: str
    headers: dict[str, str]
    query: dict[str, list[str]]

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


class Handler(BaseHTTPRequestHandler):
    """Answers from the registry that its server belongs to."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(parts.path, headers, parse_qs(parts.query))
        registry = self.server.registry
        with registry.lock:
            registry.requests.append(request)
            faults = [fault for pattern, fault in registry.faults if re.search(pattern, self.path)]
        for fault in faults:
            if fault(self, request):
                return
        registry.answer(self, request)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Send an answer; names of headers with _ for -."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        """Close the connection without another word."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)

    def log_message(self, format: str, *words: Any) -> None:
        pass


Fault = Callable[[Handler, Request], bool]


class Server(ThreadingHTTPServer):
    daemon_threads = False
    registry: FakeRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class FakeRegistry:
    """Serves images under names.

    Attributes:
        requests: all that were made.
        faults: (pattern of a path, what to do); one that returns True has answered.
        release: set at the end, for faults that hang.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.faults: list[tuple[str, Fault]] = []
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.release = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.registry = self
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()  # waits for its threads
        self._thread.join()

    def name(self, repository: str = "app", tag: str = "") -> str:
        return f"{self.address}/{repository}" + (f":{tag}" if tag else "")

    def add(self, image: OciImage, *which: str, index: bytes = b"", index_type: str = "") -> None:
        """Have an image there, under tags (latest), or behind an index."""
        self.blobs.update(image.blobs)
        self.manifests[image.digest] = (image.manifest, image.media_type)
        for tag in which or ("latest",):
            self.manifests[tag] = (index or image.manifest, index_type or image.media_type)

    def on(self, pattern: str, fault: Fault, times: int = 10**9) -> None:
        """Do something else where a path has a pattern, so many times."""
        left = times

        def limited(handler: Handler, request: Request) -> bool:
            nonlocal left
            with self.lock:
                if left <= 0:
                    return False
                left -= 1
            return fault(handler, request)

        self.faults.append((pattern, limited))

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request.path)) for request in self.requests)

    def answer(self, handler: Handler, request: Request) -> None:
        kind, _, which = request.path.rpartition("/")
        if kind.endswith("/manifests") and which in self.manifests:
            content, media_type = self.manifests[which]
            handler.reply(
                200, content, Content_Type=media_type, Docker_Content_Digest=digest_of(content)
            )
        elif kind.endswith("/blobs") and which in self.blobs:
            self.answer_blob(handler, request, self.blobs[which])
        else:
            handler.reply(404, b'{"errors":[]}')

    @staticmethod
    def answer_blob(handler: Handler, request: Request, content: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if match is None:
            handler.reply(200, content)
        elif int(match[1]) >= len(content):
            handler.reply(416)
        else:
            span = f"bytes {match[1]}-{len(content) - 1}/{len(content)}"
            handler.reply(206, content[int(match[1]) :], Content_Range=span)


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry()
    try:
        yield registry
    finally:
        registry.close()
