"""The network stack without a VM, beside libslirp: Linux as the guest, on a tap device in a
network namespace of its own.

Frames go straight from the device to the stack and back, with the offloads that the virtio device
has (libslirp takes none), so that what is measured is the stack, its sockets and Linux on both
sides. libslirp runs in a QEMU without a machine. Needs root.

    python benchmarks/stack.py [--megabytes N] [--rounds N] [--profile TEST]

TEST is one of send, receive, request_reply, connect_request_reply: says where its time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import os
import pstats
import signal
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import net

from tests.unit.net.tap import Namespace, TapGuest, why_not
from voidbox.nat.config import NatConfig

REQUESTS, CONNECTIONS = 5000, 2000
PR_SET_PDEATHSIG = 1
TESTS = {
    "send": "stream(send, 1)",
    "receive": "stream(receive, 1)",
    "request_reply": "request_reply()",
    "connect_request_reply": "connect_request_reply()",
}


def start_server() -> int:
    """Run the servers in a process of their own, as the far end is one; returns their port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        net.serve(listener)
        os._exit(0)
    port: int = listener.getsockname()[1]
    listener.close()
    return port


def measure(guest: Namespace, sizes: list[int]) -> list[float]:
    """Run the guest's program."""
    return net.figures(guest.python(net.PROGRAM, *sizes, timeout_s=600))


def measure_voidbox(sizes: list[int]) -> list[float]:
    """Measure our stack."""
    with TapGuest(NatConfig(allow_host_ports=(sizes[0],))) as guest:
        return measure(guest, sizes)


def measure_libslirp(sizes: list[int]) -> list[float]:
    """Measure libslirp."""
    with Namespace(has_vnet_hdr=False) as guest:
        command = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
        command += ["-netdev", "user,id=u0", "-netdev", f"tap,id=t0,fd={guest.fd}"]
        command += ["-netdev", "hubport,id=a,hubid=0,netdev=u0"]
        command += ["-netdev", "hubport,id=b,hubid=0,netdev=t0"]
        process = subprocess.Popen(command, pass_fds=[guest.fd])
        try:
            return measure(guest, sizes)
        finally:
            process.kill()
            process.wait()


def profile(name: str, sizes: list[int]) -> None:
    """Print where our stack's time goes in one test."""
    profiler = cProfile.Profile()
    program = net.PROGRAM.rsplit("send(1000000)", 1)[0]
    with TapGuest(NatConfig(allow_host_ports=(sizes[0],))) as guest:
        guest.on_loop(profiler.enable)
        print(guest.python(f"{program}print({TESTS[name]})", *sizes, timeout_s=600))
        guest.on_loop(profiler.disable)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", choices=TESTS)
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"benchmarks/stack.py {reason}")
    sizes = [start_server(), options.megabytes, REQUESTS, CONNECTIONS, net.BUFFER_BYTES]
    if options.profile is not None:
        profile(options.profile, sizes)
        return 0
    samples: dict[str, list[list[float]]] = {"libslirp": [], "voidbox": []}
    for _ in range(options.rounds):
        samples["libslirp"].append(measure_libslirp(sizes))
        samples["voidbox"].append(measure_voidbox(sizes))
    net.report(samples, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
