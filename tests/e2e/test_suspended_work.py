"""A sandbox at work that is suspended and woken at random moments: nothing of it notices."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from voidbox import Sandbox
from voidbox.vmm.config import DEFAULT_CMDLINE

pytestmark = [pytest.mark.boot, pytest.mark.slow]

SUSPENSIONS = int(os.environ.get("VOIDBOX_SUSPENSIONS", "30"))
PATIENCE_S = 300.0
WORK = Path(__file__).with_name("guest_workload.py")
PARTS = ("compile", "payments", "audits", "timers")
PLACE = "/mnt/work"
CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
SEED = 12


class Kind(NamedTuple):
    """What works and is suspended; how often, of SUSPENSIONS, and where its clock comes from."""

    kernel: str
    cpus: int
    memory: str
    vsock: Literal["unix", "vhost"]
    clocksource: str
    share: int


# Busy guests, those with two CPUs above all, may crash in the lab within minutes: docs/lab.md.
KINDS = {
    "minimal-1": Kind("minimal", 1, "192M", "unix", "kvm-clock", 1),
    "minimal-2": Kind("minimal", 2, "192M", "unix", "kvm-clock", 6),
    "cloud-1-tsc-vhost": Kind("cloud", 1, "256M", "vhost", "tsc", 3),
    "minimal-2-tsc-large": Kind("minimal", 2, "4G", "unix", "tsc", 10),
}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as folder:
        os.environ["VOIDBOX_STATE"] = f"{folder}/state"
        yield Path(folder)
        del os.environ["VOIDBOX_STATE"]


def counts(box: Sandbox) -> dict[str, int]:
    """Return how far each part has come."""
    found = {}
    for part in PARTS:
        text = box.files.read(f"{PLACE}/{part}.count")
        found[part] = int(text)
    return found


def doubled(box: Sandbox, number: int) -> int | None:
    """Ask the guest's server, by its published port; None if the connection fails."""
    (port,) = box.ports.list()
    try:
        with socket.create_connection((port.host_ip, port.host_port), 60) as client:
            client.settimeout(60)
            client.sendall(b"%d\n" % number)
            return int(client.makefile("rb").readline())
    except (OSError, ValueError):
        return None


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nobody_notices(
    kind: Kind, place: Path, kernels: dict[str, str], guest_images: dict[str, str]
) -> None:
    suspensions = max(1, SUSPENSIONS // kind.share)
    disk = place / "disk.img"
    with open(disk, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
    chance = random.Random(SEED)
    with Sandbox.create(
        kernel=kernels[kind.kernel],
        image=guest_images[kind.kernel],
        memory=kind.memory,
        cpus=kind.cpus,
        vsock=kind.vsock,
        cmdline=f"{DEFAULT_CMDLINE} clocksource={kind.clocksource}",
        disks=[f"{disk},serial=work"],
        publish=["0:8000"],
        timeout=30_000,
        request_timeout=PATIENCE_S,
    ) as box:
        clock = box.files.read(CLOCKSOURCE, user="root")
        assert clock.strip() == kind.clocksource
        ports = box.ports.list()
        box.files.write("/root/work.py", WORK.read_bytes(), user="root")
        box.commands.run(
            f"mkdir -p {PLACE} && mount /dev/$(basename $(dirname $(grep -l work "
            f"/sys/block/vd*/serial))) {PLACE} && chmod 777 {PLACE}",
            user="root",
            check=True,
        )
        box.commands.run(f"python3 /root/work.py {PLACE}", user="root", background=True)
        shell = box.pty.create(cmd=["/bin/sh"])
        shell.send_input("N=0\n")
        wait_for(lambda: all(box.files.exists(f"{PLACE}/{part}.count") for part in PARTS), "parts")
        wait_for(lambda: doubled(box, 21) == 42, "the server")
        before = counts(box)
        for number in range(1, suspensions + 1):
            time.sleep(chance.uniform(0, 3))
            print(f"{number}: {counts(box)}", flush=True)
            box.suspend()
            box.resume()
            with box.commands.connect(shell.pid) as handle:
                handle.send_stdin(f"N=$((N+1)); echo $N > {PLACE}/shell\n")
                wait_for(
                    lambda number=number: (
                        box.files.exists(f"{PLACE}/shell")  # type: ignore[misc]
                        and box.files.read(f"{PLACE}/shell").strip() == str(number)
                    ),
                    "the shell has forgotten",
                )
                handle.detach()
            wait_for(lambda number=number: doubled(box, number) == 2 * number, "the server")  # type: ignore[misc]
            assert box.ports.list() == ports
            assert not box.files.exists(f"{PLACE}/wrong"), box.files.read(f"{PLACE}/wrong")
        wait_for(
            lambda: all(now > before[part] for part, now in counts(box).items()), "a part stands"
        )
        box.files.write(f"{PLACE}/stop", b"", user="root")
        wait_for(lambda: "work.py" not in _running(box), "the parts do not end")
        assert not box.files.exists(f"{PLACE}/wrong"), box.files.read(f"{PLACE}/wrong")
        print(f"\n{suspensions} times: {before} → {counts(box)}")
        box.commands.run(f"rm {PLACE}/stop && umount {PLACE}", user="root", check=True)
        log = box.commands.run("dmesg", user="root").stdout
        assert "stall" not in log and "lockup" not in log and "I/O error" not in log, log
    check = subprocess.run(["e2fsck", "-fn", disk], check=False, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def _running(box: Sandbox) -> str:
    return " ".join(str(one) for one in box.commands.list() if one.exit_code is None)
