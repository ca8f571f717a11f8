"""Boot time beside QEMU microvm: the same kernel, initramfs and command line, in one run.

Every contender boots a guest that writes the boot-timer port from its init and powers off at once.
Two clocks, both from the start of the process: until the boot-timer write, and until the process
has ended. Rounds are interleaved, so that a machine that changes speed changes it for all; medians
and their ratios are what to quote. Then a sandbox of a Debian on a disk, whose PID 1 is the agent
or the image's own init: until create() returns, and until the init has started all its services.

    python benchmarks/boot.py [--rounds N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.e2e import disk_images
from voidbox import Sandbox
from voidbox.vmm.config import DEFAULT_CMDLINE

ROOT = Path(__file__).parents[1]
MEMORY_MIB = 512
LIMIT_S = 120
BOOT_TIMER_PORT = "0x3f0"
# What QEMU's own documentation (docs/system/i386/microvm.rst) names as the smallest machine.
TUNED_MICROVM = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on"
QEMU_RATIO_TARGET = 0.6
EXITS_TARGET = 10_000


class Sample(NamedTuple):
    """One boot, in seconds from the start of the process."""

    boot_s: float
    total_s: float
    exits: int | None = None


class Guest(NamedTuple):
    """A kernel with its initramfs and command line."""

    name: str
    kernel: str
    initramfs: str
    cmdline: str


# It says "offline" at first, whoever waits.
SYSTEMD_RUNS = "until systemctl is-system-running --wait 2>&- | grep -x running; do sleep .1; done"
Contender = Callable[[Guest], Sample]


def run_voidbox(guest: Guest) -> Sample:
    """Boot with this tree's voidbox; the boot timer's clock is the system's monotonic one."""
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.json"
        command = [sys.executable, "-m", "voidbox", "run", "--kernel", guest.kernel]
        command += ["--initramfs", guest.initramfs, "--cmdline", guest.cmdline]
        command += ["--no-default-cmdline", "--memory", f"{MEMORY_MIB}M", "--stats", str(stats)]
        start_ns = time.monotonic_ns()
        subprocess.run(
            command,
            check=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        total_s = (time.monotonic_ns() - start_ns) / 1e9
        document = json.loads(stats.read_text())
    boot_s = (document["boot_timer_monotonic_ns"] - start_ns) / 1e9
    return Sample(boot_s, total_s, sum(document["exits"].values()))


def run_qemu(machine: str) -> Contender:
    """Make a contender: QEMU with `-M machine`, its boot timer an isa-debugcon on a pipe."""

    def run(guest: Guest) -> Sample:
        with tempfile.TemporaryDirectory() as folder:
            fifo = Path(folder) / "boot-timer"
            os.mkfifo(fifo)
            reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            command = ["qemu-system-x86_64", "-M", machine, "-accel", "kvm", "-cpu", "host"]
            command += ["-m", str(MEMORY_MIB), "-kernel", guest.kernel, "-initrd", guest.initramfs]
            command += ["-append", guest.cmdline, "-nodefaults", "-no-user-config"]
            command += ["-display", "none", "-no-reboot", "-serial", "stdio"]
            command += ["-chardev", f"file,id=timer,path={fifo}"]
            command += ["-device", f"isa-debugcon,iobase={BOOT_TIMER_PORT},chardev=timer"]
            start = time.monotonic()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                boot_s = _wait_for_byte(reader, start)
                process.wait(LIMIT_S)
                return Sample(boot_s, time.monotonic() - start)
            finally:
                process.kill()
                process.wait()
                os.close(reader)

    return run


def _wait_for_byte(fd: int, start: float) -> float:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while time.monotonic() - start < LIMIT_S:
        # Before QEMU opens the pipe there is no writer: POLLHUP is not yet the end.
        if any(events & select.POLLIN for _, events in poller.poll(1000)):
            elapsed = time.monotonic() - start
            if os.read(fd, 1) == b"\x7b":
                return elapsed
    raise TimeoutError("the guest never reached its init")


def find_guests() -> list[Guest]:
    """The kernels that the project's own scripts provide."""

    def script(*command: str) -> str:
        return subprocess.run(
            command, check=True, cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    initramfs = script("scripts/build_first_guest.sh")
    cmdline = f"{DEFAULT_CMDLINE} voidbox.run=poweroff"
    minimal = script("kernel/build_minimal.sh")
    kernels = [
        ("Debian cloud", script("kernel/fetch_debian.sh", "cloud")),
        ("minimal bzImage", f"{minimal}/bzImage"),
        ("minimal vmlinux", f"{minimal}/vmlinux"),
    ]
    return [Guest(name, kernel, initramfs, cmdline) for name, kernel in kernels]


def measure(guest: Guest, rounds: int) -> dict[str, object]:
    """Run all contenders in turn, `rounds` times after a round that is not counted."""
    contenders: dict[str, Contender] = {
        "voidbox": run_voidbox,
        "QEMU microvm": run_qemu("microvm"),
        "QEMU microvm, tuned": run_qemu(TUNED_MICROVM),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, contender in contenders.items():
            sample = contender(guest)
            if round_number:
                samples[name].append(sample)
    rows = {
        name: {
            "boot_s": statistics.median(sample.boot_s for sample in taken),
            "total_s": statistics.median(sample.total_s for sample in taken),
            "exits": taken[-1].exits,
            "samples": [sample._asdict() for sample in taken],
        }
        for name, taken in samples.items()
    }
    return {"guest": guest._asdict(), "rows": rows}


def run_init(guest: Guest, image: Path, init: str, until: str) -> Sample:
    """Have a sandbox with this init; `until` returns when it has started what it starts."""
    start = time.monotonic()
    with Sandbox.create(
        kernel=guest.kernel, image=image, init=init, memory=f"{MEMORY_MIB}M", cold=True,
        timeout=LIMIT_S, request_timeout=LIMIT_S,
    ) as sandbox:  # fmt: skip
        boot_s = time.monotonic() - start
        sandbox.commands.run(until, timeout=LIMIT_S)
        return Sample(boot_s, time.monotonic() - start)


def measure_inits(guest: Guest, rounds: int) -> dict[str, dict[str, float]]:
    """Boot the same Debian with each init in turn; returns medians."""
    systemd, openrc = (disk_images.init_image(name) for name in ("systemd", "openrc"))
    inits = {
        "the agent": (systemd, "agent", "true"),
        "systemd": (systemd, "/lib/systemd/systemd", SYSTEMD_RUNS),
        "OpenRC": (openrc, "/sbin/init", "until rc-status -r | grep -x default; do sleep .1; done"),
    }  # fmt: skip
    samples: dict[str, list[Sample]] = {name: [] for name in inits}
    for _ in range(rounds):
        for name, (image, init, until) in inits.items():
            samples[name].append(run_init(guest, image, init, until))
            print(f"{guest.name}, {name}: {samples[name][-1]}", file=sys.stderr)
    return {
        name: {
            "create_s": statistics.median(sample.boot_s for sample in taken),
            "services_s": statistics.median(sample.total_s for sample in taken),
        }
        for name, taken in samples.items()
    }


def print_inits(guest: Guest, rows: dict[str, dict[str, float]]) -> None:
    """Print one guest's table of inits, with ratios to the agent's."""
    agent = rows["the agent"]
    print(f"\n{guest.name}, a Debian on a disk")
    print(f"  {'PID 1':22}{'create()':>10}{'services':>10}{'it/the agent':>24}")
    for name, row in rows.items():
        ratio = row["services_s"] / agent["services_s"]
        print(f"  {name:22}{row['create_s']:9.2f}s{row['services_s']:9.2f}s{ratio:24.2f}")


def print_table(result: dict[str, object]) -> None:
    """Print one guest's table, with ratios of voidbox to each peer."""
    rows: dict[str, dict[str, float]] = result["rows"]  # type: ignore[assignment]
    mine = rows["voidbox"]
    print(f"\n{result['guest']['name']}")  # type: ignore[index]
    print(f"  {'':22}{'to init':>10}{'whole':>10}{'voidbox/it':>24}")
    for name, row in rows.items():
        ratios = ""
        if name != "voidbox":
            boot, total = mine["boot_s"] / row["boot_s"], mine["total_s"] / row["total_s"]
            ratios = f"init {boot:.2f}  whole {total:.2f}"
        print(f"  {name:22}{row['boot_s']:9.2f}s{row['total_s']:9.2f}s{ratios:>24}")
    print(f"  exits of voidbox's guest: {mine['exits']} (target < {EXITS_TARGET})")


def main() -> None:
    """Measure every guest; print tables; write JSON if asked."""
    parser = argparse.ArgumentParser(description="Boot time beside QEMU microvm.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="NAME", help="guests with NAME in theirs")
    parser.add_argument("--inits", action="store_true", help="only the images' own inits")
    parser.add_argument("--output", type=Path, help="write all samples there, as JSON")
    options = parser.parse_args()
    print(f"{options.rounds} rounds, medians; target: voidbox/QEMU microvm ≤ {QEMU_RATIO_TARGET}")
    results, inits = [], {}
    guests = [guest for guest in find_guests() if options.only in guest.name]
    for guest in guests:
        if not options.inits:
            results.append(measure(guest, options.rounds))
            print_table(results[-1])
    for guest in guests:
        if guest.name == "minimal vmlinux":
            continue  # the minimal kernel once more
        inits[guest.name] = measure_inits(guest, options.rounds)
        print_inits(guest, inits[guest.name])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        document = {"kernel": platform.release(), "results": results, "inits": inits}
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
