"""What the jail costs: a machine's start, and a connection, beside the same without, in one run.

    python -m benchmarks.jail [--rounds N] [--real] [--json FILE]

The guest is a few bytes of machine code, so that any KVM will do: a start is from the asking to the
guest's first byte on the console, and an end to the free folder. A connection is to a listener on
the loopback: made by the keeper and handed over, beside one made in the same process.

--real adds sandboxes that boot, which take turns: create(), an exec, HTTP and connections from the
guest to this host, and a write to its disk. It needs a KVM that boots Linux, and `voidbox setup`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.guest import tiny
from voidbox.event_loop import EventLoop
from voidbox.nat.config import NatConfig
from voidbox.nat.sockets import open_connected
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.keeper.channel import Channel
from voidbox.sandbox.keeper.outside import KeptNetwork
from voidbox.sandbox.keeper.serving import Serving
from voidbox.sandbox.worker.machine import start_machine
from voidbox.sandbox.worker.orders import JAIL_LOG
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import CallbackOutput

_LOOPBACK = 0x7F00_0001
_LEVELS = ("off", "default", "strict")
_LIMIT_S, _LIMIT_REAL_S = 60.0, 300.0


def start_ms(kernel: str, level: str) -> float:
    """Return how long it takes to a guest's first byte."""
    started = time.perf_counter()
    with closing(start_machine(MachineConfig(kernel, memory_bytes=64 << 20), level)) as machine:
        said = threading.Event()
        machine.console.attach(CallbackOutput(lambda data: said.set()))
        machine.start()
        if not said.wait(_LIMIT_S):
            raise SystemExit(f"{level}: the guest says nothing")
        return (time.perf_counter() - started) * 1e3


def _time_us(connect: Callable[[], socket.socket | int], count: int) -> float:
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        sock = connect()
        times.append((time.perf_counter() - begun) * 1e6)
        if isinstance(sock, int):
            raise SystemExit(f"no connection: {os.strerror(sock)}")
        sock.close()
    return statistics.median(times)


def connections_us(count: int) -> dict[str, float]:
    """Return the median of a connection's making, without a keeper and by one."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        port = server.getsockname()[1]
        config = NatConfig(allow_host_ports=(port,), resolvers=())
        asks, queries = channel.pair(), channel.pair()
        with closing(EventLoop(lambda error: None)) as loop:
            serving = Serving(loop, asks[0], queries[0], config, None)
            loop.start()
            kept = KeptNetwork(Channel(asks[1]), queries[1], config.make_policy())
            kind = socket.SOCK_STREAM
            found = {
                "here": _time_us(lambda: open_connected(kind, 0, _LOOPBACK, port), count),
                "by the keeper": _time_us(
                    lambda: kept.open_connected(kind, 0, _LOOPBACK, port), count
                ),
            }
            loop.stop()
            serving.close()
        for sock in (*asks, *queries):
            sock.close()
    return found


_EXECS, _CONNECTS, _LONG = 20, 40, 5  # of HTTP and writes, that many
_HTTP_BYTES, _DISK_MB = 16 << 20, 32
_HOST = "10.0.2.2"  # the gateway
_IN_GUEST = """
import os, socket, statistics, sys, time
host, port, connects, size, https = sys.argv[1], *map(int, sys.argv[2:])
def timed(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
def connect():
    socket.create_connection((host, port), 60).close()
def http():
    with socket.create_connection((host, port), 60) as sock:
        sock.sendall(b"GET /big HTTP/1.0\\r\\n\\r\\n")
        left, buffer = size, bytearray(1 << 18)
        while left > 0:
            got = sock.recv_into(buffer)
            if not got:
                raise SystemExit(f"{left} bytes are missing")
            left -= got
timed(connect)
for call, count in ((connect, connects), (http, https)):
    print(statistics.median(timed(call) for _ in range(count)))
"""


def _serve(server: socket.socket) -> None:
    """Send all bytes to whoever asks for something."""
    content = bytes(_HTTP_BYTES + 1024)
    while True:
        try:
            sock, _ = server.accept()
        except OSError:
            return
        with sock:
            if sock.recv(1024):
                sock.sendall(content)


def real_s(level: str, port: int) -> dict[str, float]:
    """Return what one sandbox takes for each thing, in seconds."""
    from voidbox import Sandbox

    began = time.perf_counter()
    with Sandbox.create(
        jail=level, cold=True, allow_host_ports=[port], request_timeout=_LIMIT_REAL_S
    ) as sandbox:
        found = {"create": time.perf_counter() - began}
        found["exec"] = _median_s(_EXECS, lambda: sandbox.commands.run(["true"]))
        arguments = [_HOST, *map(str, (port, _CONNECTS, _HTTP_BYTES, _LONG))]
        said = sandbox.commands.run(["python3", "-c", _IN_GUEST, *arguments], check=True).stdout
        found["connect"], found["http"] = map(float, said.split())
        write = f"dd if=/dev/zero of=/root/big bs=1M count={_DISK_MB} conv=fsync 2>/dev/null"
        found["disk"] = _median_s(
            _LONG, lambda: sandbox.commands.run(write, user="root", check=True)
        )
    return found


def _median_s(count: int, call: Callable[[], object]) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def measure_real(rounds: int) -> dict[str, Any]:
    """Return the medians of each level, and what the default is beside "off"."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        found: dict[str, list[dict[str, float]]] = {level: [] for level in _LEVELS[:2]}
        for _ in range(rounds):
            for level, of_level in found.items():
                of_level.append(real_s(level, port))
    medians = {
        level: {name: statistics.median(one[name] for one in of_level) for name in of_level[0]}
        for level, of_level in found.items()
    }
    off, default = medians["off"], medians["default"]
    ratios = {name: round(default[name] / off[name], 3) for name in off}
    return {"seconds": found, "medians": medians, "ratios": ratios}


def measure(rounds: int) -> dict[str, Any]:
    """Return all of it; the levels take turns, so that a busy host treats them alike."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = tiny.write_elf(Path(folder, "tiny.elf"), tiny.say("x") + tiny.SPIN)
        times: dict[str, list[float]] = {level: [] for level in _LEVELS}
        for _ in range(rounds):
            for level in _LEVELS:
                times[level].append(start_ms(kernel, level))
    start = {level: round(statistics.median(found), 1) for level, found in times.items()}
    connection = {name: round(value, 1) for name, value in connections_us(300).items()}
    return {
        "start_ms": start,
        "start_ratio": round(start["default"] / start["off"], 3),
        "connection_us": connection,
    }


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description="What the jail costs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--real", action="store_true", help="sandboxes that boot, too")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    logging.getLogger(JAIL_LOG).setLevel(logging.ERROR)  # that it is off
    measured = measure(options.rounds)
    if options.real:
        measured["real"] = measure_real(options.rounds)
    text = json.dumps(measured, indent=1)
    print(text)
    if options.json is not None:
        Path(options.json).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
