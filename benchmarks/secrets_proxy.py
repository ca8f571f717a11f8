"""What a guarded connection costs: the same client and server, with and without a guard between.

    python benchmarks/secrets_proxy.py [--size MIB] [--runs N] [--json PATH]

direct      client ── TLS ── server
relayed     client ── TLS ── server, through a process that copies, as the guest's network does
spliced     through a guard, to a host at a guarded address that is not guarded itself
http1, h2   through a guard that ends TLS, judges, puts in, and looks for the secret in the answer

All on the loopback. Hosts at other addresses do not pass a guard at all: they cost nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from h2.config import H2Configuration
from h2.connection import H2Connection

from voidbox.secrets.authority import Authority, issue, make_authority, server_context
from voidbox.secrets.guard import Guard
from voidbox.secrets.spec import Secret, resolve

GUARDED, OTHER = "guarded.test", "other.test"
CHUNK = bytes(256 << 10)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--size", type=int, default=1024, help="MiB of one download")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world = make_authority([GUARDED, OTHER])
    own = make_authority([GUARDED])
    server = start(serve, world, GUARDED)
    other = start(serve, world, OTHER)
    relay = start(relay_to, server)
    guard = start(guard_between, own, world, server, other)
    trusted = {"world": world, "own": own}
    cases: dict[str, tuple[int, str, str, str]] = {
        "direct": (server, GUARDED, "world", "http/1.1"),
        "relayed": (relay, GUARDED, "world", "http/1.1"),
        "spliced": (guard, OTHER, "world", "http/1.1"),
        "http1": (guard, GUARDED, "own", "http/1.1"),
        "h2": (guard, GUARDED, "own", "h2"),
        "direct_h2": (server, GUARDED, "world", "h2"),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.runs):  # in turn, so that what disturbs disturbs all
        for name, (port, host, ca, protocol) in cases.items():
            found[name].append(download(port, host, trusted[ca], protocol, options.size << 20))
    result: dict[str, Any] = {
        "mib": options.size,
        "runs": options.runs,
        "mib_s": {name: round(statistics.median(runs), 1) for name, runs in found.items()},
    }
    base = result["mib_s"]
    result["ratio_to_direct"] = {
        "relayed": round(base["relayed"] / base["direct"], 3),
        "spliced": round(base["spliced"] / base["direct"], 3),
        "http1": round(base["http1"] / base["direct"], 3),
        "h2": round(base["h2"] / base["direct_h2"], 3),
    }
    result["ratio_to_relayed"] = {
        name: round(base[name] / base["relayed"], 3) for name in ("spliced", "http1")
    }
    result["seconds_of_a_connection"] = {
        name: round(connect(*cases[name][:2], trusted[cases[name][2]]), 5)
        for name in ("direct", "http1")
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    for child in multiprocessing.active_children():
        child.terminate()


def start(target: Callable[..., None], *args: Any) -> int:
    """Start a process that listens; return its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port: int = listener.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(
        target=target, args=(listener, *args), daemon=True
    )
    process.start()
    listener.close()
    return port


def accept_all(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=handle, args=(sock,), daemon=True).start()


def serve(listener: socket.socket, world: Authority, host: str) -> None:
    """Answer GET /SIZE with so many bytes, by whatever protocol is chosen."""
    context = server_context(issue(world, host), ["h2", "http/1.1"])

    def handle(raw: socket.socket) -> None:
        try:
            with context.wrap_socket(raw, server_side=True) as sock:
                if sock.selected_alpn_protocol() == "h2":
                    serve_h2(sock)
                else:
                    serve_http1(sock)
        except OSError:
            pass

    accept_all(listener, handle)


def serve_http1(sock: ssl.SSLSocket) -> None:
    while head := sock.recv(1 << 16):
        left = int(head.split(b" ")[1].split(b"/")[1])
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
        while left:
            size = min(left, len(CHUNK))
            sock.sendall(CHUNK[:size])
            left -= size


def serve_h2(sock: ssl.SSLSocket) -> None:
    h2: Any = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    h2.initiate_connection()
    sock.sendall(h2.data_to_send())
    stream, left = 0, 0
    while data := sock.recv(1 << 16):
        for event in h2.receive_data(data):
            if type(event).__name__ == "RequestReceived":
                stream, left = event.stream_id, int(dict(event.headers)[":path"][1:])
                h2.send_headers(stream, [(":status", "200")])
        while stream and left:
            window = h2.local_flow_control_window(stream)
            size = min(window, h2.max_outbound_frame_size, left, len(CHUNK))
            if size <= 0:
                break
            h2.send_data(stream, CHUNK[:size], end_stream=size == left)
            left -= size
        sock.sendall(h2.data_to_send())


def relay_to(listener: socket.socket, port: int) -> None:
    """Copy bytes."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(256 << 10):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def handle(sock: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=copy, args=(far, sock), daemon=True).start()
        copy(sock, far)

    accept_all(listener, handle)


def guard_between(
    listener: socket.socket, own: Authority, world: Authority, server: int, other: int
) -> None:
    """Guard connections; those that are for OTHER lead there."""
    kept, values = resolve([Secret("KEY", [GUARDED], "k3y-" + os.urandom(20).hex())])
    clients = {}
    for key, protocols in (("any", ["h2", "http/1.1"]), ("http/1.1", ["http/1.1"])):
        clients[key] = ssl.create_default_context(cadata=world.certificate)
        clients[key].set_alpn_protocols(protocols)
    guard = Guard(kept, values, (), own, None, "bench", lambda line: None, clients)

    def handle(sock: socket.socket) -> None:
        is_other = OTHER.encode() in sock.recv(4096, socket.MSG_PEEK)
        far = socket.create_connection(("127.0.0.1", other if is_other else server))
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guard.serve(sock, far, 443)

    accept_all(listener, handle)


def client_context(ca: Authority, protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca.certificate)
    context.set_alpn_protocols([protocol])
    return context


def download(port: int, host: str, ca: Authority, protocol: str, size: int) -> float:
    """Return MiB a second."""
    raw = socket.create_connection(("127.0.0.1", port))
    with client_context(ca, protocol).wrap_socket(raw, server_hostname=host) as sock:
        start_s = time.perf_counter()
        if protocol == "h2":
            download_h2(sock, host, size)
        else:
            sock.sendall(b"GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n" % (size, host.encode()))
            left, buffer = size, bytearray(1 << 16)
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1 << 14)
            left -= len(head.partition(b"\r\n\r\n")[2])
            while left:
                left -= sock.recv_into(buffer)
        return size / (1 << 20) / (time.perf_counter() - start_s)


def download_h2(sock: ssl.SSLSocket, host: str, size: int) -> None:
    h2: Any = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    h2.initiate_connection()
    h2.increment_flow_control_window(16 << 20)
    h2.send_headers(
        1,
        [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", f"/{size}")],
        end_stream=True,
    )
    h2.increment_flow_control_window(4 << 20, 1)
    sock.sendall(h2.data_to_send())
    left = size
    while left:
        for event in h2.receive_data(sock.recv(1 << 16)):
            if type(event).__name__ == "DataReceived":
                left -= len(event.data)
                h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        sock.sendall(h2.data_to_send())


def connect(port: int, host: str, ca: Authority) -> float:
    """Return the median seconds from connect(2) to a small answer."""
    context, found = client_context(ca, "http/1.1"), []
    for _ in range(30):
        start_s = time.perf_counter()
        raw = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(raw, server_hostname=host) as sock:
            sock.sendall(b"GET /1 HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode())
            sock.recv(1 << 14)
            found.append(time.perf_counter() - start_s)
    return statistics.median(found)


if __name__ == "__main__":
    main()
