"""What many sandboxes cost a host: the state folder, a pool's starts, memory, idle wake-ups.

    python benchmarks/density.py [--records N] [--sandboxes N] [--real N]
                                 [--json FILE] [--plot FILE]

Without --real no KVM is needed: sandboxes have everything but the machine, and an agent that is a
program of this host (tests/unit/sandbox/fake_owner.py). With it, so many real ones of one template
are measured, and one that boots.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.sandbox.states import wanted
from voidbox.pool.aio import AsyncPool
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.launch import launch
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching

STAND_IN = "tests.unit.sandbox.fake_owner"
CREATES = 100
IDLE_S = float(os.environ.get("IDLE_S", "30"))
FREED_BYTES = 200 << 20
_IN_KVM_RUN = ["16", "0xae80"]  # ioctl(2) and its request, as /proc/PID/task/TID/syscall has them


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--sandboxes", type=int, default=500, help="stand-ins, by a pool")
    parser.add_argument("--real", type=int, default=0, help="real ones, of one template")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="needs matplotlib")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vbd") as folder:
        if options.records:
            found["state_folder"] = state_folder(folder, options.records)
        if options.sandboxes:
            found["pool"] = asyncio.run(stand_ins(folder, options.sandboxes))
        if options.real:
            found["real"] = asyncio.run(real_ones(options.real))
    print(json.dumps(found, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    if options.plot:
        plot(found, options.plot)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def state_folder(folder: str, records: int) -> dict[str, Any]:
    """Return what create() and its cleaning take beside so many records that live, in ms."""
    path = f"{folder}/records"
    with Store(path) as keeper, Store(path) as store:
        for _ in range(records):
            keeper.create(wanted())
        took_ms, cpu = [], time.process_time()
        for _ in range(CREATES):
            began = time.monotonic()
            store.clean_at_times()
            store.create(wanted())
            took_ms.append(1000 * (time.monotonic() - began))
        cpu = time.process_time() - cpu
        began = time.monotonic()
        store.clean()
        return {
            "records": records,
            "create_and_clean_ms": round(statistics.mean(took_ms), 2),
            "median_ms": round(statistics.median(took_ms), 2),
            "worst_ms": round(max(took_ms), 2),
            "cpu_ms": round(1000 * cpu / CREATES, 2),
            "clean_ms": round(1000 * (time.monotonic() - began), 2),
        }


async def stand_ins(folder: str, count: int) -> dict[str, Any]:
    """Start so many stand-ins by a pool; return how fast, and what they cost."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["VOIDBOX_STATE"] = f"{folder}/s"
    launching.launch = functools.partial(launch, owner=STAND_IN)
    launching.make_zygote = lambda: Zygote(STAND_IN, environment())
    os.mkdir(f"{folder}/work")
    Path(folder, "image").write_text("{}")
    pool = AsyncPool(
        count,
        host_memory=None,
        kernel=f"{folder}/kernel",
        image=Path(folder, "image"),
        workdir=f"{folder}/work",
        memory="64M",
        jail="off",
        block_network=True,
    )
    peak = 0
    async with pool:
        began = time.monotonic()
        calls = [asyncio.create_task(pool.acquire()) for _ in range(count)]
        while not all(call.done() for call in calls):
            stats = pool.stats()
            peak = max(peak, stats.given + stats.warm + stats.starting + stats.ending)
            await asyncio.sleep(0.05)
        span_s = time.monotonic() - began
        given = [call.result() for call in calls if call.exception() is None]
        pids = [one._store.read(one.sandbox_id).pid for one in given[:8]]
        result = {
            "sandboxes": count,
            "starts_per_s": round(count / span_s, 1),
            "failed": count - len(given),
            "most_at_once": peak,
            "starts_at_once": pool.stats().start_limit,
            "start_s": round(pool.stats().start_s, 3),
            "owner_pss_mb": round(statistics.mean(mb_of(pid, "Pss") for pid in pids), 1),
        }
        began = time.monotonic()
    return {
        **result,
        "end_s": round(time.monotonic() - began, 1),
        "folders_left": len(os.listdir(f"{folder}/s/sandboxes")),
    }


async def real_ones(count: int) -> dict[str, Any]:
    """Measure real sandboxes: of one template, idle; and one whose guest has freed memory."""
    os.environ.pop("VOIDBOX_STATE", None)
    found: dict[str, Any] = {"sandboxes": count}
    async with AsyncPool(1, host_memory=None, cold=True) as pool:
        booted = await pool.acquire()
        await booted.commands.run("true")
        found["booted"] = cost_of(booted)
        print("booted", found["booted"], file=sys.stderr)
        found["freed"] = await freed(booted)
        print("freed", found["freed"], file=sys.stderr)
    async with AsyncPool(1, host_memory=None) as pool:
        await pool.acquire()  # leaves the template that all of the next are of
    async with AsyncPool(count, host_memory=None) as pool:
        given = [await pool.acquire() for _ in range(count)]
        for one in given:
            await one.commands.run("true")
        costs = [cost_of(one) for one in given]
        found["restored"] = {
            key: round(statistics.mean(c[key] for c in costs), 1) for key in costs[0]
        }
        print("restored", found["restored"], file=sys.stderr)
        await asyncio.sleep(2 * IDLE_S)  # until nobody has used them for a while
        before = [wake_ups(one) for one in given]
        await asyncio.sleep(IDLE_S)
        after = [wake_ups(one) for one in given]
        found["idle_wake_ups_per_s"] = {
            name: round(
                statistics.mean(b[name] - a[name] for a, b in zip(before, after, strict=True))
                / IDLE_S,
                2,
            )
            for name in before[0]
        }
    return found


async def freed(sandbox: Any) -> dict[str, float]:
    """Have a guest write and delete a file of memory; return what the host pays, in MB."""
    before = guest_mb(sandbox)
    size = FREED_BYTES >> 20
    await sandbox.commands.run(
        f"dd if=/dev/zero of=/dev/shm/big bs=1M count={size} 2>/dev/null", user="root", check=True
    )
    full = guest_mb(sandbox)
    await sandbox.commands.run("rm /dev/shm/big", user="root", check=True)
    deadline = time.monotonic() + IDLE_S
    while (now := guest_mb(sandbox)) > before + 30 and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    waited_s = IDLE_S - (deadline - time.monotonic())
    return {"before_mb": before, "full_mb": full, "after_mb": now, "after_s": round(waited_s, 1)}


def processes_of(sandbox: Any) -> list[int]:
    """Return the processes of a sandbox: its own, and those that it has started."""
    return _family(sandbox._store.read(sandbox.sandbox_id).pid)


def _family(pid: int) -> list[int]:
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [pid, *(each for child in children for each in _family(child))]


def cost_of(sandbox: Any) -> dict[str, float]:
    """Return what a sandbox takes of the host's memory, in MB of proportional set size.

    Its keeper's share apart; and of all that what is in huge pages, which are nobody's but its own.
    """
    guest = guest_mb(sandbox)
    keeper, *others = processes_of(sandbox)
    keeper_mb = mb_of(keeper, "Pss")
    return {
        "pss_mb": keeper_mb + sum(mb_of(pid, "Pss") for pid in others) - guest,
        "keeper_pss_mb": keeper_mb,
        "guest_pss_mb": guest,
        "huge_mb": sum(mb_of(pid, "AnonHugePages") for pid in (keeper, *others)),
    }


def mb_of(pid: int, what: str) -> float:
    """Return what a process has of one kind of memory, such as Pss; see proc(5), smaps."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def guest_mb(sandbox: Any) -> float:
    """Return the proportional set size of a guest's memory: the largest mapping there is."""
    best = 0.0
    for pid in processes_of(sandbox):
        size = pss = 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Size":
                size = int(rest.split()[0])
            elif name == "Pss" and size >= 256 << 10:
                pss = int(rest.split()[0])
                best = max(best, pss / 1024)
    return round(best, 1)


def wake_ups(sandbox: Any) -> dict[str, int]:
    """Return how often the threads of a sandbox's processes went to sleep: vCPUs, and others."""
    found = {"owner": 0, "vcpus": 0}
    for pid in processes_of(sandbox):
        for task in Path(f"/proc/{pid}/task").iterdir():
            is_vcpu = (task / "syscall").read_text().split()[::2][:2] == _IN_KVM_RUN
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    found["vcpus" if is_vcpu else "owner"] += int(line.split()[1])
    return found


def plot(found: dict[str, Any], path: str) -> None:
    """Draw what a sandbox takes of memory."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        return
    kinds = [kind for kind in ("booted", "restored") if kind in found.get("real", {})]
    if not kinds:
        print("no plot: it shows --real ones", file=sys.stderr)
        return
    figure, axes = pyplot.subplots()
    guests = [found["real"][kind]["guest_pss_mb"] for kind in kinds]
    owners = [found["real"][kind]["pss_mb"] for kind in kinds]
    axes.bar(kinds, guests, label="guest")
    axes.bar(kinds, owners, bottom=guests, label="processes")
    axes.set_ylabel("MB of proportional set size")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
