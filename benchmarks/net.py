"""The user-mode network beside libslirp and passt: same kernel, image and guest programs, one run.

Contenders: voidbox, QEMU microvm with `-netdev user` (libslirp), QEMU microvm with passt. A program
in the guest talks to servers on the host's loopback, by way of the gateway: streams in both
directions, one and four at a time; both directions at once; requests and replies of one byte on one
connection; the same with a connection each. Rounds are interleaved; quote medians and their ratios.
A contender that does not come to its end says at what, and is left out from there on.

    python benchmarks/net.py [--rounds N] [--megabytes N] [--limit SECONDS] [--without NAME]
        [--output FILE.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import contenders

from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError
from voidbox.nat.config import NatConfig
from voidbox.sandbox.guest import network_files
from voidbox.vmm.config import MachineConfig

BUFFER_BYTES = 256 << 10
REQUESTS = 2000
CONNECTIONS = 300
# Rows: name, unit, target against libslirp, target against passt.
ROWS = (
    ("to host, 1 stream", "MB/s", 2.0, 1.0),
    ("to host, 4 streams", "MB/s", 2.0, 1.0),
    ("from host, 1 stream", "MB/s", 2.0, 1.0),
    ("from host, 4 streams", "MB/s", 2.0, 1.0),
    ("both ways, to host", "MB/s", 1.0, 0.0),
    ("both ways, from host", "MB/s", 1.0, 0.0),
    ("request/reply", "/s", 0.9, 0.0),
    ("connect/request/reply", "/s", 1.2, 0.0),
)

# In the guest. The first byte of a connection says what the rest of it is.
PROGRAM = """
import json, socket, sys, threading, time
port, megabytes, requests, connections, size = map(int, sys.argv[1:])
buffer = memoryview(bytearray(size))
def dial(kind):
    sock = socket.create_connection(("10.0.2.2", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(kind)
    return sock
def send(total):
    sock = dial(b"t")
    left = total
    while left:
        left -= sock.send(buffer[:left])
    sock.shutdown(socket.SHUT_WR)
    assert int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "little") == total
def receive(total):
    sock = dial(b"m" + total.to_bytes(8, "little"))
    own = bytearray(size)
    left = total
    while left:
        left -= sock.recv_into(own)
def stream(work, streams):
    total = megabytes * 1000000
    threads = [threading.Thread(target=work, args=(total // streams,)) for _ in range(streams)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return megabytes / (time.monotonic() - started)
def both_ways(seconds):
    moved = [0, 0]
    def sender():
        sock = dial(b"t")
        while time.monotonic() < end:
            moved[0] += sock.send(buffer)
    def receiver():
        sock = dial(b"m" + (1 << 40).to_bytes(8, "little"))
        own = bytearray(size)
        while time.monotonic() < end:
            moved[1] += sock.recv_into(own)
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=work) for work in (sender, receiver)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [count / seconds / 1e6 for count in moved]
def request_reply():
    sock = dial(b"e")
    started = time.monotonic()
    for _ in range(requests):
        sock.send(b"x")
        assert sock.recv(1)
    return requests / (time.monotonic() - started)
def connect_request_reply():
    started = time.monotonic()
    for _ in range(connections):
        sock = dial(b"e")
        sock.send(b"x")
        assert sock.recv(1)
        sock.close()
    return connections / (time.monotonic() - started)
send(1000000)
for found in (lambda: [stream(send, 1)], lambda: [stream(send, 4)], lambda: [stream(receive, 1)],
              lambda: [stream(receive, 4)], lambda: both_ways(3), lambda: [request_reply()],
              lambda: [connect_request_reply()]):
    print(json.dumps(found()), flush=True)
"""


def figures(output: bytes | str) -> list[float]:
    """Return what the program has printed, in the order of ROWS."""
    return [figure for line in output.splitlines() for figure in json.loads(line)]


def serve(listener: socket.socket) -> None:
    """Be the host's servers, a thread a connection."""
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(sock,), daemon=True).start()


def _serve_one(sock: socket.socket) -> None:
    buffer = bytearray(BUFFER_BYTES)
    with sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = sock.recv(1)
        if kind == b"t":
            total = 0
            while count := sock.recv_into(buffer):
                total += count
            sock.sendall(total.to_bytes(8, "little"))
        elif kind == b"m":
            left = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "little")
            while left:
                left -= sock.send(memoryview(buffer)[:left])
        elif kind:
            while data := sock.recv(1):
                sock.send(data)


class Work(NamedTuple):
    """What a guest is to do.

    Attributes:
        port: of the servers.
        megabytes: of each stream.
        limit_s: for the whole program.
    """

    port: int
    megabytes: int
    limit_s: float


def measure(work: Work, client: AgentClient) -> list[float]:
    """Run the program in the guest; fewer figures if one does not come to its end, or the guest."""
    arguments = [work.port, work.megabytes, REQUESTS, CONNECTIONS, BUFFER_BYTES]
    command = ["python3", "-c", PROGRAM, *map(str, arguments)]
    process = client.exec(command, timeout_s=work.limit_s)
    output = b""
    try:
        for _, data in process.output():
            output += data
        end = process.wait()
    except AgentError as error:
        print(error, file=sys.stderr)
    else:
        if end.status and not end.timed_out:
            raise SystemExit(f"the guest's program failed:\n{output.decode()}")
    return figures(output)


def run_voidbox(config: MachineConfig, work: Work) -> list[float]:
    """Measure voidbox."""
    config = config._replace(net=NatConfig(allow_host_ports=(work.port,)))
    found: list[float] = contenders.run_voidbox(config, partial(measure, work))
    return found


def run_qemu(config: MachineConfig, options: list[str], work: Work) -> list[float]:
    """Measure QEMU with a network device on the netdev n0."""
    with_net = config._replace(net=NatConfig())
    device = ["-device", "virtio-net-device,netdev=n0,mac=52:54:00:12:34:56"]
    with (
        tempfile.TemporaryDirectory() as folder,
        contenders.run_qemu(
            with_net, Path(folder), [*options, *device], network_files(with_net)
        ) as (client, _),
    ):
        return measure(work, client)


def run_passt(config: MachineConfig, work: Work) -> list[float]:
    """Measure QEMU with passt."""
    with tempfile.TemporaryDirectory() as folder, passt(Path(folder)) as netdev:
        return run_qemu(config, netdev, work)


@contextlib.contextmanager
def passt(folder: Path) -> Iterator[list[str]]:
    """Run passt; yields QEMU's options for it."""
    _ensure_route()
    path = folder / "passt.sock"
    path.unlink(missing_ok=True)
    command = ["passt", "-f", "-q", "--runas", "0", "-s", str(path), "-a", "10.0.2.15", "-n", "24"]
    command += ["-g", "10.0.2.2", "-4", "-t", "none", "-u", "none"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + contenders.LIMIT_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("passt does not start")
            time.sleep(0.05)
        netdev = f"stream,id=n0,server=off,addr.type=unix,addr.path={path}"
        yield ["-netdev", netdev]
    finally:
        process.kill()
        process.wait()


def _ensure_route() -> None:
    """passt does not start without a default route; the lab, a machine of our own, has none."""
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    if "default" not in routes and "VOIDBOX_LAB" in os.environ:
        for command in (
            "tuntap add bench0 mode tap",
            "addr add 192.0.2.1/24 dev bench0",
            "link set bench0 up",
            "route add default via 192.0.2.2",
        ):
            subprocess.run(["ip", *command.split()], check=True)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--limit", type=float, default=240, help="seconds for a guest (240)")
    parser.add_argument("--without", action="append", default=[], choices=("libslirp", "passt"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = contenders.find_config()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    runs: dict[str, Callable[[MachineConfig, Work], list[float]]] = {
        "libslirp": lambda config, work: run_qemu(config, ["-netdev", "user,id=n0"], work),
        "voidbox": run_voidbox,
        "passt": run_passt,
    }
    if not shutil.which("passt"):
        print("passt is missing: apt-get install -y passt", file=sys.stderr)
        del runs["passt"]
    for name in options.without:
        runs.pop(name, None)
    work = Work(port, options.megabytes, options.limit)
    samples: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        for name, run in list(runs.items()):
            sample = run(config, work)
            print(name, *(f"{value:.0f}" for value in sample), file=sys.stderr, flush=True)
            if len(sample) == len(ROWS):
                samples.setdefault(name, []).append(sample)
            else:
                what = ROWS[len(sample)][0]
                print(f"{name} did not finish with: {what}", file=sys.stderr, flush=True)
                del runs[name]
    report(samples, options.output)
    return 0


def report(samples: dict[str, list[list[float]]], output: Path | None) -> None:
    """Print medians, and voidbox's ratios to the others."""
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in samples.items()
    }
    if "voidbox" not in medians:
        raise SystemExit("voidbox did not come to its end once")
    ours = medians["voidbox"]
    others = [name for name in ("libslirp", "passt") if name in medians]
    print(
        f"{'':22}" + "".join(f"{name:>12}" for name in (*others, "voidbox")) + "   ratios, targets"
    )
    for index, (name, unit, *targets) in enumerate(ROWS):
        cells = "".join(f"{medians[other][index]:8.0f}{unit:>4}" for other in (*others, "voidbox"))
        verdicts = []
        for other, target in zip(("libslirp", "passt"), targets, strict=True):
            if other in medians:
                ratio = ours[index] / medians[other][index]
                verdict = (
                    ""
                    if not target
                    else f" ≥{target:g} " + ("met" if ratio >= target else "MISSED")
                )
                verdicts.append(f"{ratio:.2f} of {other}'s{verdict}")
        print(f"{name:22}{cells}   {'; '.join(verdicts)}")
    if output is not None:
        document: dict[str, Any] = {"rows": [row[0] for row in ROWS], "samples": samples}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
