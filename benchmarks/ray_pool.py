"""voidbox.ray over two nodes of a Ray cluster on this machine, with stand-ins of virtual machines.

    python benchmarks/ray_pool.py [--rollouts 10000] [--output FILE]

A command and 100 MB each way, by three ways to the same agent: its Unix socket, the node's gateway,
calls of the node's actor; one after another in turn, so that a busy machine is as busy for each.
How much the program and the pools grow while nobody reads 300 MB of a command. And rollouts by
run_near, whose sandboxes are stubs: what is left is what placing costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
BYTES_ROUNDS, STOPPED_S = 5, 5.0
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
            await both_ways(ways, found)
            for name in ("gateway", "actor"):
                found[name]["grown_mb"] = await grown_by_a_stopped_reader(ways[name])
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


async def both_ways(ways: dict[str, Any], found: dict[str, Any]) -> None:
    """Write and read 100 MB; the median of some rounds, each of which has every way."""
    content = os.urandom(1 << 20) * (BYTES >> 20)
    speeds: dict[str, dict[str, list[float]]] = {
        name: {"write_mb_s": [], "read_mb_s": []} for name in ways
    }
    for _ in range(BYTES_ROUNDS):
        for name, sandbox in ways.items():
            began = time.perf_counter()
            await sandbox.files.write("big", content)
            middle = time.perf_counter()
            assert len(await sandbox.files.read("big", "bytes")) == len(content)
            ended = time.perf_counter()
            speeds[name]["write_mb_s"].append(len(content) / 1e6 / (middle - began))
            speeds[name]["read_mb_s"].append(len(content) / 1e6 / (ended - middle))
    for name, each in speeds.items():
        found[name] |= {key: statistics.median(values) for key, values in each.items()}


async def grown_by_a_stopped_reader(sandbox: Any) -> float:
    """Return how many MB this program and Ray's workers grow while nobody reads a command."""
    before = private_bytes()
    handle = await sandbox.commands.start("head -c 300000000 /dev/zero")
    await asyncio.sleep(STOPPED_S)
    after = private_bytes()
    await handle.kill()
    return (after - before) / 1e6


def private_bytes() -> int:
    """Return the memory of this program's and the pools' own, resident and not shared."""
    total = 0
    for pid in ("self", *workers()):
        with contextlib.suppress(OSError):
            _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
            total += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return total


def workers() -> list[str]:
    """Return the processes of this machine's actors."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::St"):
                found.append(pid)
    return found


def cpu_s(pids: list[str]) -> float:
    """Return the processor time of processes; proc(5), utime and stime."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


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
        all_of_them = [str(os.getpid()), *workers()]
        began, cpu, own = time.perf_counter(), cpu_s(all_of_them), time.process_time()
        done = await asyncio.gather(*(pool.run_near(rollout, n) for n in range(count)))
        took_s, own = time.perf_counter() - began, time.process_time() - own
        assert done == list(range(count))
        found["rollouts"] = {
            "count": count,
            "seconds": took_s,
            "per_s": count / took_s,
            "driver_cpu_ms_each": own * 1e3 / count,
            "cpu_ms_each": (cpu_s(all_of_them) - cpu) * 1e3 / count,
        }


def judge(found: dict[str, Any]) -> dict[str, bool]:
    """Return what was to be reached, and whether it was."""
    judged = {"10,000 rollouts in 15 s": found["rollouts"]["per_s"] >= 10_000 / 15}
    if "unix" in found:
        unix, gateway = found["unix"], found["gateway"]
        judged |= {
            "a command within 1 ms": gateway["exec_p50_ms"] <= unix["exec_p50_ms"] + 1.0,
            "written at 0.8": gateway["write_mb_s"] >= 0.8 * unix["write_mb_s"],
            "read at 0.8": gateway["read_mb_s"] >= 0.8 * unix["read_mb_s"],
            "grown by 32 MB at most": max(found[way]["grown_mb"] for way in WAYS[1:]) <= 32.0,
        }
    return judged


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
    found["reached"] = judge(found)
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
