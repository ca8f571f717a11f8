"""Real sandboxes under faults: killed at random, full disk, no descriptors, a clock that jumps.

One round of each in every run of the tests; VOIDBOX_SOAK=100 makes it a hundred rounds, and
VOIDBOX_SEED=7 chooses others.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.boot

ROUNDS = int(os.environ.get("VOIDBOX_SOAK", "5"))
SEED = int(os.environ.get("VOIDBOX_SEED", "1"))
STATE_BYTES = 24 << 20
DAY_S = 86400
VERB_S = 120


class Soak:
    """One state folder, on a small disk of its own, and what is done to it."""

    def __init__(self, folder: Path, machine: list[str], chance: random.Random) -> None:
        self.folder = folder
        self.machine = machine
        self.chance = chance
        self.environment = {**os.environ, "VOIDBOX_STATE": str(folder)}
        self.count = 0
        self.told: list[str] = []

    def start(self, *words: str, files_max: int = 0) -> subprocess.Popen[str]:
        def limit() -> None:
            if files_max:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

        return subprocess.Popen(
            [sys.executable, "-m", "voidbox", *words], cwd=ROOT, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=limit,
        )  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> str:
        """Wait for a verb; whatever happens to it, it never shows a traceback."""
        try:
            output, errors = process.communicate(timeout=VERB_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            raise AssertionError(f"{process.args} hangs: {errors}") from None
        assert "Traceback" not in errors, (process.args, errors)
        assert process.returncode != 125, (process.args, errors)
        self.told.append(errors)
        return output

    def ok(self, *words: str) -> str:
        process = self.start(*words)
        output = self.end(process)
        assert process.returncode == 0, (words, self.told[-1], self.log())
        return output

    def any_verb(self) -> list[str]:
        """A verb, on a sandbox that runs if there is one."""
        self.count += 1
        names = [record["name"] for record in self.records() if record["state"] == "running"]
        if not names or (len(names) < 3 and self.chance.random() < 0.4):
            return ["run", "-d", "--name", f"box{self.count}", *self.machine]
        name = self.chance.choice(names)
        return self.chance.choice(
            [
                ["exec", name, "--", "sh", "-c", "echo hello; sleep 1; echo bye"],
                ["cp", sys.executable, f"{name}:/tmp/copy{self.count}"],
                ["stop", name],
                ["kill", name],
                ["rm", "-f", name],
                ["rename", name, f"renamed{self.count}"],
            ]
        )

    def records(self) -> list[dict[str, object]]:
        return list(json.loads(self.ok("ps", "-a", "--json")))

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("sandboxes/*/owner.log"))

    # faults

    def kill_a_verb(self) -> None:
        process = self.start(*self.any_verb())
        time.sleep(self.chance.random() * 4)
        process.kill()
        self.end(process)

    def kill_an_owner(self) -> None:
        process = self.start(*self.any_verb())
        time.sleep(self.chance.random() * 4)
        owners = self.owners()
        if owners:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(owners), signal.SIGKILL)
        self.end(process)

    def fill_the_disk(self) -> None:
        filler = self.folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        try:
            for _ in range(2):
                self.end(self.start(*self.any_verb()))
        finally:
            filler.unlink()

    def take_the_descriptors(self) -> None:
        self.end(self.start(*self.any_verb(), files_max=self.chance.randrange(6, 40)))

    def move_the_clock(self) -> None:
        jump_s = self.chance.choice([-DAY_S, DAY_S])
        process = self.start(*self.any_verb())
        time.clock_settime(time.CLOCK_REALTIME, time.time() + jump_s)
        try:
            self.end(process)
            self.end(self.start(*self.any_verb()))
        finally:
            time.clock_settime(time.CLOCK_REALTIME, time.time() - jump_s)

    def owners(self) -> list[int]:
        """The processes of this folder's sandboxes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if any(word.startswith(f"{self.folder}/sandboxes/".encode()) for word in words):
                    found.append(int(path.parent.name))
        return found

    def check(self) -> None:
        """Nothing is corrupt, and the next command works."""
        records = self.records()
        aside = self.folder / "set-aside"
        assert not aside.exists() or not list(aside.iterdir())
        alive = [r for r in records if r["state"] in ("creating", "running", "stopping", "paused")]
        cids = [record["cid"] for record in alive]
        assert len(set(cids)) == len(cids), records
        assert len(self.owners()) <= len(alive) + 1, records  # one may be ending

    def begin_anew(self) -> None:
        names = [str(record["name"]) for record in self.records()]
        if names:
            self.ok("rm", "-f", *names)
        assert list((self.folder / "sandboxes").iterdir()) == []
        assert self.owners() == []
        self.count += 1
        assert self.ok("run", "-d", "--name", f"new{self.count}", *self.machine)
        assert self.ok("exec", f"new{self.count}", "echo", "works") == "works\n"
        (record,) = self.records()
        assert record["cid"] == 3, record  # all others were given back


@pytest.fixture
def small_disk() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root for a small file system and the clock: run it in the lab")
    folder = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES},mode=0700", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # logs are still followed
    folder.rmdir()


def test_the_state_survives_faults(
    kernels: dict[str, str], guest_images: dict[str, str], small_disk: Path
) -> None:
    machine = ["--kernel", kernels["minimal"], "--initramfs", guest_images["minimal"]]
    soak = Soak(small_disk, [*machine, "--memory", "256M"], random.Random(SEED))
    faults: list[Callable[[], None]] = [
        soak.kill_a_verb,
        soak.kill_an_owner,
        soak.fill_the_disk,
        soak.take_the_descriptors,
        soak.move_the_clock,
    ]
    for number in range(ROUNDS):
        fault = faults[number % len(faults)] if number < len(faults) else soak.chance.choice(faults)
        print(f"round {number}: {fault.__name__}", flush=True)
        fault()
        soak.check()
        if number % 5 == 4:
            soak.begin_anew()
    soak.begin_anew()
    soak.ok("rm", "-f", f"new{soak.count}")
    assert soak.owners() == []
