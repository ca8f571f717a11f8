"""What a server may answer where a WebSocket is wanted; unit/serve has servers that open one."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from voidbox.remote import tunnel
from voidbox.remote.address import parse
from voidbox.remote.server import Server

LIMIT_S = 60.0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, §1.3


@contextmanager
def answering(answer: bytes, frames: bytes = b"") -> Iterator[Server]:
    """Have a server that answers one request so; `frames` once it has opened the WebSocket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock = listener.accept()[0]
        with sock, suppress(OSError):  # who has read enough hangs up
            request = b""
            while b"\r\n\r\n" not in request:
                request += sock.recv(65536)
            key = re.search(rb"(?i)sec-websocket-key: (.*)\r\n", request)
            assert key is not None
            digest = base64.b64encode(hashlib.sha1(key[1] + GUID, usedforsecurity=False).digest())
            sock.sendall(answer.replace(b"ACCEPT", digest) + frames)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Server(parse(f"http://127.0.0.1:{listener.getsockname()[1]}", "vbx_key"))
    finally:
        thread.join(LIMIT_S)
        listener.close()


OPENED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: ACCEPT\r\n\r\n"
)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "the connection: 404"),
        (
            b'HTTP/1.1 404 Not Found\r\nContent-Length: 22\r\n\r\n{"message": "no such"}',
            "no such",
        ),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "connection: 403"),
        (OPENED.replace(b"ACCEPT", b"wrong"), "speaks no WebSocket"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "speaks no WebSocket"),
        (b"x" * 300_000, "speaks no WebSocket"),
        (b"HTTP/1.1 500 Oh\r\n\r\n" + b"y" * 300_000, "the server refuses the connection: 500"),
        (b"", "the server closed the connection"),
    ],
)
def test_answers_that_open_nothing(answer: bytes, why: str) -> None:
    with answering(answer) as server, pytest.raises(ConnectionRefusedError, match=why):
        tunnel.connect(server, "/sandboxes/x/agent", LIMIT_S)


@pytest.mark.parametrize(
    ("frames", "arrives"),
    [
        (b"\x82\x03abc\x82\x7e\x01\x00" + b"d" * 256, b"abc" + b"d" * 256),
        (b"\x02\x01a\x00\x01b\x80\x01c", b"abc"),  # one message in three frames
        (b"\x82\x01a\x88\x00", b"a"),  # and it closes
        (b"\x82\x01a\xc2\x00", b"a"),  # an extension that nobody asked for
        (b"\x82\x01a\x82\x80abcd", b"a"),  # masked, as only a client's may be
        (b"\x82\x01a\x82\x7f" + (1 << 62).to_bytes(8, "big") + b"bc", b"abc"),  # without end
    ],
)
def test_frames_of_the_servers(frames: bytes, arrives: bytes) -> None:
    with answering(OPENED, frames) as server:
        sock = tunnel.connect(server, "/sandboxes/x/agent", LIMIT_S)
        with sock:
            sock.settimeout(LIMIT_S)
            got = b""
            while data := sock.recv(65536):
                got += data
    assert got == arrives


def test_without_its_package() -> None:
    code = (
        "import sys; sys.modules['wsproto'] = None\n"
        "import voidbox\n"
        "try: voidbox.Sandbox.create(remote='http://127.0.0.1:1')\n"
        "except voidbox.VoidboxError as error: print(error)"
    )
    environment = {**os.environ, "VOIDBOX_API_KEY": "vbx_key"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "the package wsproto is missing: pip install 'voidbox-kvm[remote]'\n"
