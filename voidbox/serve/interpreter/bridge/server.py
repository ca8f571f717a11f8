"""HTTP, on the guest's loopback: the server outside reaches it through the agent."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .contexts import Context, Contexts, TooMany, Unknown
from .kernel import NoKernel
from .messages import Message

_BODY_BYTES_MAX = 32 << 20
_KEEPALIVE_S = 5.0
_AGAIN_S = 5.0  # between interrupts of code that catches them
_STUBBORN_S = 30.0


class Refused(Exception):
    """A request makes no sense."""


class Gone(Exception):
    """Whoever asked has left."""


class Server(ThreadingHTTPServer):
    """The server, with its contexts."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.contexts = Contexts()
        super().__init__(("127.0.0.1", port), Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection. Thread: its own."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """See BaseHTTPRequestHandler."""
        if self.path == "/health":
            self._text(200, "ok")
        elif self.path == "/contexts":
            self._json(self.server.contexts.list())
        else:
            self._text(404, f"no such path: {self.path[:200]}")

    def do_POST(self) -> None:
        """See BaseHTTPRequestHandler."""
        self._answer(self._post)

    def do_DELETE(self) -> None:
        """See BaseHTTPRequestHandler."""
        self._answer(self._delete)

    def _answer(self, handle: Any) -> None:
        try:
            handle()
        except (Refused, NoKernel) as error:
            self._text(400, str(error))
        except Unknown as error:
            self._text(404, str(error))
        except TooMany as error:
            self._text(429, str(error))

    def _post(self) -> None:
        contexts, words = self.server.contexts, self.path.strip("/").split("/")
        fields = self._fields()
        if words == ["execute"]:
            self._execute(fields)
        elif words == ["contexts"]:
            language = _text_of(fields, "language") or "python"
            cwd = os.path.expanduser(_text_of(fields, "cwd") or "~")
            if not os.path.isdir(cwd):
                raise Refused(f"cwd {cwd!r} is no folder")
            self._json(contexts.create(language.lower(), cwd).describe())
        elif len(words) == 3 and words[0] == "contexts" and words[2] == "restart":
            contexts.restart(words[1])
            self._text(200, "")
        else:
            self._text(404, f"no such path: {self.path[:200]}")

    def _delete(self) -> None:
        words = self.path.strip("/").split("/")
        if len(words) != 2 or words[0] != "contexts":
            self._text(404, f"no such path: {self.path[:200]}")
            return
        self.server.contexts.remove(words[1])
        self._text(200, "")

    # Executions.

    def _execute(self, fields: dict[str, Any]) -> None:
        code, env = fields.get("code"), fields.get("env_vars") or {}
        if not isinstance(code, str):
            raise Refused("code: give a text")
        is_map = isinstance(env, dict) and all(isinstance(value, str) for value in env.values())
        if not is_map:
            raise Refused("env_vars: give a map of text to text")
        context_id, language = _text_of(fields, "context_id"), _text_of(fields, "language")
        if context_id and language:
            raise Refused("Only one of context_id or language can be provided")
        contexts = self.server.contexts
        context = contexts.find(context_id) if context_id else None
        context = context or contexts.usual((language or "python").lower())
        stream = _Stream(self)
        while not context.lock.acquire(timeout=_KEEPALIVE_S):
            stream.keep_alive()
        try:
            self._run(context, code, env, stream)
        finally:
            context.lock.release()

    def _run(self, context: Context, code: str, env: dict[str, str], stream: _Stream) -> None:
        kernel = context.kernel
        if env and not kernel.takes_env:
            raise Refused(f"env_vars are for python, not for {context.language}")
        messages = kernel.execute(code, env)
        try:
            for message in messages:
                if message is None:
                    stream.look()
                else:
                    stream.send(message)
            stream.send({"type": "end_of_execution"})
            stream.end()
        except (Gone, OSError):
            self.close_connection = True
            _give_up(context, messages)

    # What is read and written.

    def _fields(self) -> dict[str, Any]:
        body = self._body()
        if not body:
            return {}
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the body is no JSON") from None
        if not isinstance(fields, dict):
            raise Refused("the body is no JSON object")
        return fields

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunks()
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > _BODY_BYTES_MAX:
            self.close_connection = True
            raise Refused(f"a body of more than {_BODY_BYTES_MAX} bytes")
        return self.rfile.read(int(length))

    def _chunks(self) -> bytes:
        body = b""
        while True:
            line = self.rfile.readline(100).partition(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                size = -1
            if size < 0 or len(body) + size > _BODY_BYTES_MAX:
                self.close_connection = True
                raise Refused("the body cannot be read")
            if size == 0:
                while self.rfile.readline(4096).strip():
                    pass  # trailers
                return body
            body += self.rfile.read(size)
            self.rfile.readline(4)

    def _json(self, values: Any) -> None:
        self._whole(200, json.dumps(values).encode(), "application/json")

    def _text(self, status: int, text: str) -> None:
        self._whole(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")

    def _whole(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Stream:
    """An answer that is sent as it is made, a line of JSON each; begun with the first."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._has_begun = False
        self._sent_at = time.monotonic()

    def send(self, message: Message) -> None:
        """Send one. Raises OSError: nobody takes it."""
        if not self._has_begun:
            self._has_begun = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "application/x-ndjson")
            self._handler.send_header("Transfer-Encoding", "chunked")
            self._handler.end_headers()
        line = json.dumps(message, default=str).encode() + b"\n"
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self._sent_at = time.monotonic()

    def end(self) -> None:
        """Say that it is whole."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def look(self) -> None:
        """See whether anybody listens still.

        Raises:
            Gone: nobody does.
        """
        sock = self._handler.connection
        if select.select([sock], [], [], 0)[0] and not sock.recv(1, socket.MSG_PEEK):
            raise Gone
        if time.monotonic() - self._sent_at > _KEEPALIVE_S:
            self.keep_alive()

    def keep_alive(self) -> None:
        """Send a sign of life."""
        self.send({"type": "keepalive"})


def _give_up(context: Context, messages: Any) -> None:
    """End what nobody waits for, and what does not end by an interrupt with its kernel."""
    began_at = last_at = time.monotonic()
    context.interrupt()
    for message in messages:
        now = time.monotonic()
        if now - began_at > _STUBBORN_S:
            messages.close()
            context.kernel.restart()
            return
        if message is None and now - last_at > _AGAIN_S:
            last_at = now
            context.interrupt()


def _text_of(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{name}: give a text")
    return value or None


def serve(port: int) -> None:
    """Serve for ever."""
    server = Server(port)
    usual = server.contexts.usual("python")

    def warm_up() -> None:
        with usual.lock:
            assert usual.kernel is not None

    import threading

    threading.Thread(target=warm_up, daemon=True).start()
    server.serve_forever()
