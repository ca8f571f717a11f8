"""The network stack without a VM: Linux as the guest, on a tap device in a namespace of its own.

Frames go straight from the device to the stack and back, with the offloads that the virtio device
has, so that what is measured is the stack, its sockets and Linux on both sides. Needs root.

    python benchmarks/stack.py [--megabytes N] [--rounds N] [--profile TEST]

TEST is one of send, receive, request_reply, connect_request_reply: says where its time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import json
import os
import pstats
import signal
import socket
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import net

from tests.unit.net.tap import TapGuest, why_not
from voidbox.nat.backend import NatConfig

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


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", choices=TESTS)
    options = parser.parse_args()
    if why_not() is not None:
        raise SystemExit(f"benchmarks/stack.py {why_not()}")
    port = start_server()
    sizes = [port, options.megabytes, REQUESTS, CONNECTIONS, net.BUFFER_BYTES]
    with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
        if options.profile is None:
            rows = [
                json.loads(guest.python(net.PROGRAM, *sizes, timeout_s=600))
                for _ in range(options.rounds)
            ]
            for (name, unit, *_), *values in zip(net.ROWS, *rows, strict=True):
                print(f"{name:24}{statistics.median(values):8.0f} {unit}")
            return 0
        profile = cProfile.Profile()
        guest.on_loop(profile.enable)
        program = net.PROGRAM.rsplit("send(1000000)", 1)[0]
        print(guest.python(f"{program}print({TESTS[options.profile]})", *sizes, timeout_s=600))
        guest.on_loop(profile.disable)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
