"""What `voidbox serve` costs above the SDK: creates, commands, files, with everything but the VM.

    python benchmarks/serve.py [--rounds N] [--creates N] [--megabytes N] [--json FILE]

The "guest" is an agent that runs as a program of this machine, so that what is measured is the way
there. Both ways are gone in turn, in one run, and share the machine's processors with the
stand-ins: compare the two, and mind `load`. Files lie in memory, so that no disk is measured.

    create   AsyncSandbox.create(detached=True), and POST /v2/sandboxes
    warm     Pool.acquire(), and the same request of a server with --pool: one waits each time
    exec     a command's start to its end
    up, down a file of --megabytes
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.unit.serve.conftest import Box, StandIn, wait_until
from tests.unit.serve.standin import FAKE_OWNER
from voidbox.pool.aio import AsyncPool
from voidbox.sandbox import launch as starting
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching
from voidbox.sdk.aio import AsyncSandbox

_IN_MEMORY = Path("/dev/shm")


class Pair(NamedTuple):
    """What one thing took by both ways, in ms."""

    sdk: list[float]
    server: list[float]

    def told(self) -> dict[str, float]:
        """Return medians and bests; `added_ms` is the median of each round's difference."""
        differences = [b - a for a, b in zip(self.sdk, self.server, strict=True)]
        return {
            "sdk_ms": round(statistics.median(self.sdk), 2),
            "server_ms": round(statistics.median(self.server), 2),
            "added_ms": round(statistics.median(differences), 2),
            "sdk_best_ms": round(min(self.sdk), 2),
            "server_best_ms": round(min(self.server), 2),
            "rounds": len(differences),
        }


async def timed(action: Callable[[], Awaitable[object]]) -> float:
    """Return how many ms something takes."""
    began_at = time.perf_counter()
    await action()
    return 1000 * (time.perf_counter() - began_at)


async def in_turn(
    rounds: int, by_sdk: Callable[[], Awaitable[object]], by_server: Callable[[], object]
) -> Pair:
    """Go both ways so often, each first in every other round; the first round is not counted."""
    sdk, server = [], []
    ways = [(sdk, by_sdk), (server, functools.partial(asyncio.to_thread, by_server))]
    for _ in range(rounds + 1):
        for took, way in ways:
            took.append(await timed(way))
        ways.reverse()
    return Pair(sdk[1:], server[1:])


class Bench:
    """A server of stand-ins in a folder, and the SDK beside it on the same state folder."""

    def __init__(self, folder: Path, waiting: int) -> None:
        self.server = StandIn(folder, {"waiting": waiting})
        self.state = str(folder / "state")
        self.options = {
            "image": str(folder / "image.cpio"),
            "kernel": str(folder / "kernel"),
            "jail": "off",
            "user": str(os.getuid()),
        }

    async def create(self, rounds: int) -> Pair:
        """Measure starts of a sandbox."""
        made: list[AsyncSandbox] = []
        boxes: list[Box] = []

        async def by_sdk() -> None:
            made.append(
                await AsyncSandbox.create(
                    **self.options, detached=True, timeout=600, state_folder=self.state
                )
            )

        def by_server() -> None:
            boxes.append(self.server.create(timeout=600))

        pair = await in_turn(rounds, by_sdk, by_server)
        for sandbox in made:
            await sandbox.kill()
        for box in boxes:
            await asyncio.to_thread(box.kill)
        return pair

    async def warm(self, rounds: int) -> Pair:
        """Measure how long who wants one that waits has to wait."""
        boss = self.server.add_key("boss", "admin")

        def one_waits() -> bool:
            figures = self.server.api("GET", "/metrics", key=boss).body.decode()
            return 'voidbox_pool_sandboxes{state="warm"} 1\n' in figures

        took = Pair([], [])

        async def all_wait(pool: AsyncPool) -> None:
            """Wait until nothing is being started, which would take the processor's time."""
            while pool.stats().warm < 1:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(wait_until, one_waits, "none waits")

        async with AsyncPool(3, warm=1, state_folder=self.state, **self.options) as pool:
            for _ in range(rounds + 1):
                await all_wait(pool)
                began_at = time.perf_counter()
                sandbox = await pool.acquire()
                took.sdk.append(1000 * (time.perf_counter() - began_at))
                await sandbox.kill()
                await all_wait(pool)
                began_at = time.perf_counter()
                box = await asyncio.to_thread(self.server.create, timeout=600)
                took.server.append(1000 * (time.perf_counter() - began_at))
                await asyncio.to_thread(box.kill)
        return Pair(took.sdk[1:], took.server[1:])

    async def exec(self, rounds: int) -> Pair:
        """Measure a command from its start to its end."""
        box = self.server.create(timeout=600)
        sandbox = await AsyncSandbox.connect(box.id, state_folder=self.state)
        pair = await in_turn(
            rounds,
            lambda: sandbox.commands.run(["/bin/true"]),
            lambda: box.run("/bin/true", stdin=False),
        )
        await sandbox.close()
        box.kill()
        return pair

    async def files(self, rounds: int, path: str, data: bytes) -> dict[str, Pair]:
        """Measure a file there and back."""
        box = self.server.create(timeout=600)
        sandbox = await AsyncSandbox.connect(box.id, state_folder=self.state)
        up = await in_turn(
            rounds, lambda: sandbox.files.write(path, data), lambda: send(box, path, data)
        )
        down = await in_turn(
            rounds,
            lambda: sandbox.files.read(path, format="bytes"),
            lambda: fetch(box, path, len(data)),
        )
        await sandbox.close()
        box.kill()
        return {"up": up, "down": down}


def send(box: Box, path: str, data: bytes) -> None:
    """Write a file through the server."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = box.server.request("POST", f"/files?path={path}", data, box.headers(**headers))
    assert answer.status == 200, answer


def fetch(box: Box, path: str, size: int) -> None:
    """Read one, and keep no more of it than a client must."""
    connection = http.client.HTTPConnection("127.0.0.1", box.server.port)
    connection.request("GET", f"/files?path={path}", headers=box.headers())
    answer, buffer, count = connection.getresponse(), bytearray(1 << 20), 0
    while number := answer.readinto(buffer):
        count += number
    connection.close()
    assert answer.status == 200 and count == size


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Return what was measured, by its name."""
    found: dict[str, dict[str, float]] = {}
    (folder / "cold").mkdir()
    (folder / "warm").mkdir()
    bench = Bench(folder / "cold", waiting=0)
    try:
        found["create"] = (await bench.create(options.creates)).told()
        found["exec"] = (await bench.exec(options.rounds)).told()
        data = os.urandom(1 << 20) * options.megabytes
        for name, pair in (
            await bench.files(options.rounds // 10 + 2, f"{folder}/file", data)
        ).items():
            told = pair.told()
            for way in ("sdk", "server"):
                for which in ("", "_best"):
                    speed = len(data) / told[f"{way}{which}_ms"] / 1000
                    told[f"{way}{which}_mb_s"] = round(speed, 1)
            found[name] = told
    finally:
        bench.server.close()
    bench = Bench(folder / "warm", waiting=1)
    try:
        found["warm"] = (await bench.warm(options.creates)).told()
    finally:
        bench.server.close()
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--creates", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    launching.launch = functools.partial(starting.launch, owner=FAKE_OWNER)
    launching.make_zygote = lambda: Zygote(FAKE_OWNER, environment())
    with tempfile.TemporaryDirectory(
        prefix="vbx", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None
    ) as folder:
        before = os.getloadavg()[0]
        found = asyncio.run(measure(options, Path(folder)))
    for name, told in found.items():
        print(f"{name:7}", ", ".join(f"{word} {value:g}" for word, value in told.items()))
    document = {"load": before, "cpus": os.cpu_count(), "medians": found}
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
