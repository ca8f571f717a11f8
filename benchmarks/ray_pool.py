"""voidbox.ray over two nodes of a Ray cluster on this machine, with stand-ins of virtual machines.

    python benchmarks/ray_pool.py [--rollouts 10000] [--output FILE]

A command and 100 MB each way, by three ways to the same agent: its Unix socket, the node's gateway,
calls of the node's actor; one after another in turn, so that a busy machine is as busy for each.
And so many rollouts by run_near, whose sandboxes are stubs: what is left is what placing costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # this folder has modules that are called as others are
os.environ["PYTHONPATH"] = str(ROOT)  # of Ray's workers

from tests.unit.ray.cluster import started

ROUNDS, BYTES = 200, 100_000_000
WAYS = ("unix", "gateway", "actor")


def options(folder: str) -> dict[str, Any]:
    """Return create()'s, for stand-ins."""
    Path(folder, "image").write_text(json.dumps({"mode": ""}))
    Path(folder, "work").mkdir()
    return {
        "kernel": f"{folder}/kernel", "image": f"{folder}/image", "user": str(os.getuid()),
        "workdir": f"{folder}/work", "memory": "64M", "block_network": True, "host_memory": None,
        "jail": "off", "state_folder": f"{folder}/state",
    }  # fmt: skip


async def data(found: dict[str, Any]) -> None:
    """Measure commands and bytes."""
    from tests.unit.ray.stand_ins import StandInPool
    from voidbox.ray.calls import ActorCarrier
    from voidbox.ray.remote import RemoteSandbox
    from voidbox.ray.ticket import Ticket
    from voidbox.sdk.aio import AsyncSandbox

    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        own = options(folder)
        async with StandInPool(per_node=2, **own) as pool, pool.sandbox() as far:
            member = next(one for one in pool._members.values() if one.name == far.node)
            place = far._remote
            ticket = Ticket(
                place.peek(), place._token, place.secret, dict(place.envs), (), False, ""
            )
            called = RemoteSandbox(ActorCarrier(member.actor, member.address), ticket, far.node)
            near = await AsyncSandbox.connect(far.sandbox_id, state_folder=own["state_folder"])
            ways = dict(zip(WAYS, (near, far, called), strict=True))
            await commands(ways, found)
            for name, sandbox in ways.items():
                found[name] |= await both_ways(sandbox)
            await near.close()
            await called.close()


async def commands(ways: dict[str, Any], found: dict[str, Any]) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for sandbox in ways.values():
        await sandbox.commands.run(["true"])
    for _ in range(ROUNDS):
        for name, sandbox in ways.items():
            began = time.perf_counter()
            await sandbox.commands.run(["true"])
            times[name].append((time.perf_counter() - began) * 1e3)
    for name, each in times.items():
        found[name] = {
            "exec_p50_ms": statistics.median(each),
            "exec_p95_ms": statistics.quantiles(each, n=20)[-1],
        }


async def both_ways(sandbox: Any) -> dict[str, float]:
    """Write and read 100 MB; the best of three."""
    content = os.urandom(1 << 20) * (BYTES >> 20)
    best = {"write_mb_s": 0.0, "read_mb_s": 0.0}
    for _ in range(3):
        began = time.perf_counter()
        await sandbox.files.write("big", content)
        middle = time.perf_counter()
        assert len(await sandbox.files.read("big", "bytes")) == len(content)
        took = {"write_mb_s": middle - began, "read_mb_s": time.perf_counter() - middle}
        best = {name: max(best[name], len(content) / 1e6 / took[name]) for name in best}
    return best


async def rollout(sandbox: Any, number: int) -> int:
    """Five commands of a stub."""
    for _ in range(5):
        await sandbox.exec()
    return number


async def rollouts(count: int, found: dict[str, Any]) -> None:
    """Measure what placing rollouts costs."""
    from tests.unit.ray.stand_ins import StubPool

    async with StubPool(per_node=340) as pool:
        await asyncio.gather(*(pool.run_near(rollout, n) for n in range(50)))  # all is there
        began, cpu = time.perf_counter(), time.process_time()
        done = await asyncio.gather(*(pool.run_near(rollout, n) for n in range(count)))
        took_s = time.perf_counter() - began
        assert done == list(range(count))
        found["rollouts"] = {
            "count": count,
            "seconds": took_s,
            "per_s": count / took_s,
            "driver_cpu_ms_each": (time.process_time() - cpu) * 1e3 / count,
        }


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--only-rollouts", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0]}
    with started(2, kvm=400):
        if not arguments.only_rollouts:
            asyncio.run(data(found))
        asyncio.run(rollouts(arguments.rollouts, found))
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
