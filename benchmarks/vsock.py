"""Vsock beside QEMU's: the same kernel, image and guest program, in one run.

Contenders: voidbox with its Unix sockets, voidbox with the host kernel's vhost-vsock, and QEMU
microvm with the same. Each runs as a process of its own; a program in the guest takes, makes and
echoes bytes for one on the host. Rounds are interleaved; quote medians and their ratios.

    python benchmarks/vsock.py [--rounds N] [--megabytes N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import contenders

from voidbox.agent.endpoint import UnixEndpoint
from voidbox.sandbox import guest as sandbox_guest
from voidbox.vmm.config import MachineConfig, VsockConfig

PORT = 7
VHOST_CID = 56
ROUND_TRIPS = 2000
BUFFER_BYTES = 256 << 10
LIMIT_S = 120

# Runs in the guest. The first byte says what the rest of the connection is.
SERVER = """
import socket
buffer = bytearray(BUFFER_BYTES)
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, PORT))
listener.listen(8)
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    kind = connection.recv(1)
    if kind == b"t":  # take everything, answer how much it was
        total = 0
        while count := connection.recv_into(buffer):
            total += count
        connection.sendall(total.to_bytes(8, "little"))
    elif kind == b"m":  # make as much as is asked for
        left = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")
        while left:
            left -= connection.send(memoryview(buffer)[:left])
    else:  # echo
        while data := connection.recv(1):
            connection.send(data)
    connection.close()
""".replace("BUFFER_BYTES", str(BUFFER_BYTES)).replace("PORT", str(PORT))


class Sample(NamedTuple):
    """One round."""

    to_guest_mb_s: float
    from_guest_mb_s: float
    round_trips_s: float


# Parts of QEMU's.
TARGETS = {
    "voidbox/vhost": Sample(0.95, 0.95, 0.95),
    "voidbox/unix": Sample(to_guest_mb_s=0.7, from_guest_mb_s=0.7, round_trips_s=0.8),
}


class Contender(NamedTuple):
    """A guest that runs, and how to reach its port."""

    dial: Callable[[], socket.socket]
    first_reply_s: float


def measure(dial: Callable[[], socket.socket], megabytes: int) -> Sample:
    """Move bytes both ways and make round trips."""
    total = megabytes * 1_000_000
    data = memoryview(bytes(BUFFER_BYTES))
    with dial() as sock:
        started = time.monotonic()
        sock.sendall(b"t")
        left = total
        while left:
            left -= sock.send(data[:left])
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(8, socket.MSG_WAITALL)
        to_guest_s = time.monotonic() - started
        assert int.from_bytes(answer, "little") == total
    buffer = bytearray(BUFFER_BYTES)
    with dial() as sock:
        started = time.monotonic()
        sock.sendall(b"m" + total.to_bytes(8, "little"))
        left = total
        while left:
            count = sock.recv_into(buffer)
            assert count, "the guest ended early"
            left -= count
        from_guest_s = time.monotonic() - started
    with dial() as sock:
        sock.sendall(b"e")
        started = time.monotonic()
        for _ in range(ROUND_TRIPS):
            sock.send(b"x")
            assert sock.recv(1) == b"x"
        round_trips_s = ROUND_TRIPS / (time.monotonic() - started)
    return Sample(megabytes / to_guest_s, megabytes / from_guest_s, round_trips_s)


def dial_vhost(cid: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK)
    sock.connect((cid, PORT))
    return sock


@contextlib.contextmanager
def run_voidbox(config: MachineConfig) -> Iterator[Contender]:
    """Run a guest in a child process, as each sandbox is one."""
    assert config.vsock is not None
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        status = 1
        try:
            _serve(config, write_fd)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_fd)
    try:
        with open(read_fd, "rb") as pipe:
            first_reply_s = float(pipe.readline())
        path, cid = config.vsock.path, config.vsock.cid
        if path is not None:
            endpoint = UnixEndpoint(path)
            yield Contender(lambda: endpoint.connect(PORT, LIMIT_S), first_reply_s)
        else:
            yield Contender(lambda: dial_vhost(cid), first_reply_s)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _serve(config: MachineConfig, write_fd: int) -> None:
    started = time.monotonic()
    with sandbox_guest.Guest(config) as guest:
        guest.machine.start()
        with guest.connect() as client:
            client.exec(["true"]).wait()
            first_reply_s = time.monotonic() - started
            server = client.exec(["python3", "-c", SERVER], user="root")
            assert next(server.output()).data == b"up\n"
            os.write(write_fd, b"%f\n" % first_reply_s)
            server.wait()


@contextlib.contextmanager
def run_qemu(config: MachineConfig, folder: Path) -> Iterator[Contender]:
    """Run the same guest under QEMU microvm."""
    with contenders.run_qemu(config, folder) as (client, first_reply_s):
        server = client.exec(["python3", "-c", SERVER], user="root")
        assert next(server.output()).data == b"up\n"
        yield Contender(lambda: dial_vhost(contenders.QEMU_CID), first_reply_s)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = contenders.find_config()
    samples: dict[str, list[Sample]] = {}
    first: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        unix = config._replace(vsock=VsockConfig(path=f"{folder}/v.sock"))
        vhost = config._replace(vsock=VsockConfig(VHOST_CID, is_vhost=True))
        runs = {
            "QEMU/vhost": partial(run_qemu, config, Path(folder)),
            "voidbox/vhost": partial(run_voidbox, vhost),
            "voidbox/unix": partial(run_voidbox, unix),
        }
        for _ in range(options.rounds):
            for name, run in runs.items():
                with run() as contender:  # one at a time: they share two CPUs
                    measure(contender.dial, 1)  # a warm-up
                    sample = measure(contender.dial, options.megabytes)
                samples.setdefault(name, []).append(sample)
                first.setdefault(name, []).append(contender.first_reply_s)
                print(name, sample, file=sys.stderr, flush=True)
    report(samples, first, options.output)
    return 0


def report(
    samples: dict[str, list[Sample]], first: dict[str, list[float]], output: Path | None
) -> None:
    """Print medians and ratios."""
    medians = {
        name: Sample(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in samples.items()
    }
    reference = medians["QEMU/vhost"]
    print(f"{'':14} {'to guest':>16} {'from guest':>16} {'round trips':>16} {'first reply':>12}")
    for name, median in medians.items():
        cells = [
            f"{value:8.0f}{unit} {value / base:5.2f}"
            for value, base, unit in zip(median, reference, ("MB/s", "MB/s", "/s"), strict=True)
        ]
        row = " ".join(f"{cell:>18}" for cell in cells)
        print(f"{name:14} {row} {statistics.median(first[name]):10.2f} s")
    for name, targets in TARGETS.items():
        for what, target in targets._asdict().items():
            part = getattr(medians[name], what) / getattr(reference, what)
            verdict = "met" if part >= target else "MISSED"
            print(f"{name}, {what}: {part:.2f} of QEMU's; target {target}: {verdict}")
    if output is not None:
        document = {
            name: {"samples": [row._asdict() for row in rows], "first_reply_s": first[name]}
            for name, rows in samples.items()
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
