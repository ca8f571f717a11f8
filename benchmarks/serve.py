"""What `voidbox serve` costs above the SDK: commands and files, with everything but the VM.

    python benchmarks/serve.py [--rounds 50] [--megabytes 64]

The "guest" is an agent that runs as a program of this machine, so that what is measured is the way
there. Both ways are measured in turn, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.unit.serve.conftest import Box, StandIn
from voidbox.sdk.aio import AsyncSandbox


def by_server(box: Box) -> float:
    """Run a command through the server; return the milliseconds."""
    began_at = time.perf_counter()
    box.run("/bin/true", stdin=False)
    return 1000 * (time.perf_counter() - began_at)


async def by_sdk(sandbox: AsyncSandbox) -> float:
    """Run the same by the SDK."""
    began_at = time.perf_counter()
    await sandbox.commands.run(["/bin/true"])
    return 1000 * (time.perf_counter() - began_at)


async def measure_commands(box: Box, rounds: int, state: str) -> None:
    sandbox = await AsyncSandbox.connect(box.id, state_folder=state)
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(await by_sdk(sandbox))
        ours.append(by_server(box))
    await sandbox.close()
    server, sdk = statistics.median(ours), statistics.median(theirs)
    print(f"a command: SDK {sdk:.1f} ms, server {server:.1f} ms: {server - sdk:+.1f} ms (medians)")


def measure_files(box: Box, path: str, megabytes: int) -> None:
    data = os.urandom(1 << 20) * megabytes
    connection = http.client.HTTPConnection("127.0.0.1", box.server.port)
    headers = box.headers(**{"Content-Type": "application/octet-stream"})
    for method, body in (("POST", data), ("GET", None)):
        began_at = time.perf_counter()
        connection.request(method, f"/files?path={path}", body, headers)
        answer = connection.getresponse()
        size = len(answer.read())
        assert answer.status == 200 and (method == "POST" or size == len(data))
        speed = len(data) / (time.perf_counter() - began_at) / 1e6
        print(f"a file of {megabytes} MiB {'up' if body else 'down'}: {speed:.0f} MB/s")
    connection.close()


async def measure_files_by_sdk(box: Box, path: str, megabytes: int, state: str) -> None:
    data = os.urandom(1 << 20) * megabytes
    sandbox = await AsyncSandbox.connect(box.id, state_folder=state)
    began_at = time.perf_counter()
    await sandbox.files.write(path, data)
    written_at = time.perf_counter()
    await sandbox.files.read(path, format="bytes")
    ended_at = time.perf_counter()
    await sandbox.close()
    up, down = (len(data) / s / 1e6 for s in (written_at - began_at, ended_at - written_at))
    print(f"by the SDK: up {up:.0f} MB/s, down {down:.0f} MB/s")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {})
        try:
            began_at = time.perf_counter()
            box = server.create(timeout=600)
            print(f"create: {time.perf_counter() - began_at:.2f} s, most of it the stand-in's own")
            by_server(box)
            asyncio.run(measure_commands(box, options.rounds, str(Path(folder) / "state")))
            measure_files(box, f"{folder}/file", options.megabytes)
            path, state = f"{folder}/other", str(Path(folder) / "state")
            asyncio.run(measure_files_by_sdk(box, path, options.megabytes, state))
        finally:
            server.close()


if __name__ == "__main__":
    main()
