"""Snapshots beside a cold boot: how long a guest stands still, and how soon it is back.

A guest with the agent boots and is saved while it runs; the snapshot is restored each way in turn.
Every time is from the moment that the machine is asked for: until it is built, until its vCPUs run,
until its agent answers, until a first command's answer. Rounds are interleaved; medians and ratios
to the boot of the same guest are what to quote. All is in one process, whose start is not counted.

Then as users have it: `Sandbox.create()` and a first command, booted (`cold=True`) and restored
from a template, each in a process of its own; when it logged what says where the time goes.

    python benchmarks/snapshot.py [--rounds N] [--memory MIB] [--cpus N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from glob import glob
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.in_process import InProcessGuest as Guest
from voidbox.agent import connect
from voidbox.agent.client import AgentClient
from voidbox.sandbox.guest import MachineEndpoint
from voidbox.snapshot import folder as snapshot_folder
from voidbox.snapshot import working_set
from voidbox.snapshot.working_set import BYTES_MAX
from voidbox.vmm.config import MachineConfig, VsockConfig
from voidbox.vmm.machine import Machine

ROOT = Path(__file__).parents[1]
LIMIT_S = 300.0
RESTORE_TARGET = 0.15  # of a boot, until the agent answers
CREATE_TARGET = 0.35  # of a boot, from create() to the first command's answer
PAUSE_TARGET_S = 0.2

Sample = dict[str, float]


def find_guest(options: argparse.Namespace) -> MachineConfig:
    """The minimal kernel and the default image, from the project's own scripts."""

    def script(command: str) -> str:
        return subprocess.run(
            [command], check=True, cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    kernel = options.kernel or f"{script('kernel/build_minimal.sh')}/bzImage"
    image = options.image or script("scripts/build_guest_image.sh")
    return MachineConfig(kernel, image, memory_bytes=options.memory << 20, cpus=options.cpus)


def until_answers(start: float, machine: Machine, secret: bytes, sample: Sample) -> AgentClient:
    """Start a machine and note when its agent and a first command have answered."""
    sample["built_s"] = time.monotonic() - start
    machine.start()
    sample["runs_s"] = time.monotonic() - start
    client = connect.connect(MachineEndpoint(machine), secret, LIMIT_S)
    sample["agent_s"] = time.monotonic() - start
    run(client, "true")
    sample["exec_s"] = time.monotonic() - start
    return client


def run(client: AgentClient, line: str) -> None:
    """Run a command and wait for its end."""
    process = client.exec(shell=line)
    for _ in process.output():
        pass
    process.wait()


@contextmanager
def boot(config: MachineConfig, sample: Sample) -> Iterator[tuple[Guest, AgentClient]]:
    """A guest that has booted."""
    start = time.monotonic()
    with Guest(config) as guest:
        client = until_answers(start, guest.machine, guest.secret, sample)
        try:
            yield guest, client
        finally:
            client.close()


def restore(guest: Guest, folder: str, memory: str, record: bool = False) -> Sample:
    """Restore a snapshot once."""
    sample: Sample = {}
    config = guest.machine.config._replace(vsock=VsockConfig())
    start = time.monotonic()
    with Machine.from_snapshot(folder, config, memory=memory) as machine:  # type: ignore[arg-type]
        until_answers(start, machine, guest.secret, sample).close()
        if record:
            machine.record_working_set(os.path.join(folder, working_set.NAME), BYTES_MAX)
    return sample


def save(guest: Guest, folder: str) -> Sample:
    """Save a running guest once."""
    report = guest.machine.snapshot(folder)
    sizes = snapshot_folder.sizes(folder)
    return {
        "pause_s": report.pause_ns / 1e9,
        "fork_s": report.fork_ns / 1e9,
        "total_s": report.total_ns / 1e9,
        "memory_mib": report.memory_bytes / 2**20,
        "on_disk_mib": sizes.disk_bytes / 2**20,
    }


def measure(config: MachineConfig, rounds: int) -> dict[str, list[Sample]]:
    """Take every measurement `rounds` times after a round that is not counted."""
    samples: dict[str, list[Sample]] = {}

    def add(name: str, sample: Sample) -> None:
        if number:
            samples.setdefault(name, []).append(sample)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        for number in range(rounds + 1):
            booted: Sample = {}
            with boot(config, booted) as (guest, client):
                add("cold boot", booted)
                bare, warm = f"{place}/bare{number}", f"{place}/warm{number}"
                add("snapshot", save(guest, bare))
                run(client, "true")  # the original goes on
                save(guest, warm)
                add("restore, lazy", restore(guest, bare, "lazy"))
                restore(guest, warm, "lazy", record=True)
                add("restore, fetched", restore(guest, warm, "lazy"))
                add("restore, eager", restore(guest, bare, "eager"))
            for folder in (bare, warm):
                shutil.rmtree(folder)
    return samples


# What owner.log says when, and what it is the end of.
PHASES = {
    "the sandbox's process begins": "process_s",
    "the machine is made": "built_s",
    "connect OK": "connected_s",
    "handshake OK": "agent_s",
    "restored from": "adopted_s",
}


def create(
    config: MachineConfig, cold: bool | None, until: Callable[[], bool] = lambda: True
) -> Sample:
    """Create a sandbox, and run a command in it.

    Args:
        cold: whether it is to boot; None for either.
        until: what to wait for before it ends.
    """
    from voidbox import Sandbox

    began = time.time()
    with Sandbox.create(
        kernel=config.kernel,
        image=str(config.initramfs),
        memory=f"{config.memory_bytes >> 20}M",
        cpus=config.cpus,
        cold=bool(cold),
        request_timeout=LIMIT_S,
    ) as sandbox:
        created = time.time()
        sandbox.commands.run("true")
        answered = time.time()
        lines = list(sandbox.logs(source="voidbox"))
        if cold is not None:
            assert any("restored from" in line for line in lines) is not cold, lines
        while not until():
            if time.time() > answered + LIMIT_S:
                raise TimeoutError("\n".join(sandbox.logs(source="voidbox")))
            time.sleep(0.1)
    return {**_phases(lines, began), "created_s": created - began, "exec_s": answered - began}


def _phases(lines: Iterable[str], began: float) -> Sample:
    found: Sample = {}
    for line in lines:
        stamp, message = line[:23], line[24:]
        for mark, name in PHASES.items():
            if mark in message:
                at = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").timestamp()
                found.setdefault(name, at - began)
    return found


def measure_create(config: MachineConfig, rounds: int) -> dict[str, list[Sample]]:
    """Create sandboxes in turn, after a round that leaves the template and its working set."""
    samples: dict[str, list[Sample]] = {"create, cold": [], "create, restored": []}
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as place:
        os.environ["VOIDBOX_STATE"] = place
        for file in ("machine.bin", "working-set"):  # the first leaves one, the second the other
            create(config, None, lambda file=file: bool(glob(f"{place}/templates/*/{file}")))  # type: ignore[misc]
        for _ in range(rounds):
            samples["create, cold"].append(create(config, cold=True))
            samples["create, restored"].append(create(config, cold=False))
        del os.environ["VOIDBOX_STATE"]
    return samples


def medians(samples: list[Sample]) -> Sample:
    """Return the median of each quantity."""
    return {key: statistics.median(each[key] for each in samples) for key in samples[0]}


def print_table(rows: dict[str, Sample]) -> None:
    """Print what was measured, and its ratio to the boot."""
    cold, saved = rows["cold boot"], rows["snapshot"]
    keys = ("built_s", "runs_s", "agent_s", "exec_s")
    print("  " + "".join(f"{word:>9}" for word in (" " * 11, *keys, "agent", "exec")) + " / boot's")
    for name, row in rows.items():
        if name != "snapshot":
            times = "".join(f"{row[key]:8.2f}s" for key in keys)
            ratios = "".join(f"{row[key] / cold[key]:9.3f}" for key in keys[2:])
            print(f"  {name:18}{times}{ratios}")
    print(f"  target: agent/boot ≤ {RESTORE_TARGET}")
    print(
        f"  snapshot: stands still {saved['pause_s'] * 1000:.0f} ms (target ≤ "
        f"{PAUSE_TARGET_S * 1000:.0f}), of them fork {saved['fork_s'] * 1000:.0f}; whole "
        f"{saved['total_s']:.2f} s; {saved['memory_mib']:.0f} MiB of data"
    )


def print_create(rows: dict[str, Sample]) -> None:
    """Print where the time of create() goes."""
    phases = [*PHASES.values(), "created_s", "exec_s"]
    print("  " + "".join(f"{word:>12}" for word in (" " * 18, *phases, "exec/cold's")))
    for name, row in rows.items():
        times = "".join(f"{row[key]:11.2f}s" if key in row else f"{'-':>12}" for key in phases)
        ratio = row["exec_s"] / rows["create, cold"]["exec_s"]
        print(f"  {name:18}{times}{ratio:12.3f}")
    print(f"  target: exec/cold's ≤ {CREATE_TARGET}")


def main() -> None:
    """Measure; print a table; write JSON if asked."""
    parser = argparse.ArgumentParser(description="Snapshots beside a cold boot.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--kernel", default="", help="another than the minimal one")
    parser.add_argument("--image", default="", help="another initramfs with the agent")
    parser.add_argument("--output", type=Path, help="write all samples there, as JSON")
    options = parser.parse_args()
    print(f"{options.memory} MiB, {options.cpus} CPUs, {options.rounds} rounds, medians")
    config = find_guest(options)
    samples: dict[str, list[Sample]] = {}
    rows: dict[str, Sample] = {}
    for measured, show in ((measure, print_table), (measure_create, print_create)):
        taken = measured(config, options.rounds)
        shown = {name: medians(each) for name, each in taken.items()}
        show(shown)
        samples |= taken
        rows |= shown
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "kernel": platform.release(),
            "memory_mib": options.memory,
            "cpus": options.cpus,
            "rows": rows,
            "samples": samples,
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
