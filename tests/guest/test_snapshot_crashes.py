"""A snapshot that fails or is killed at each of its steps: the machine goes on, no half is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest import tiny
from tests.guest.test_machine import MEMORY_BYTES
from tests.guest.test_pause import attach_counter, counting_guest, wait_for_reads
from tests.unit.snapshot.test_memory import children
from voidbox.errors import HostError
from voidbox.snapshot import files, folder, helper
from voidbox.storage.locking import is_held
from voidbox.vmm import snapshot as vmm_snapshot
from voidbox.vmm.config import DiskConfig, MachineConfig
from voidbox.vmm.machine import Machine

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

# What a snapshot does, in order: (where, name).
STEPS: dict[str, tuple[Any, str]] = {
    "folder made": (folder.Draft, "_make"),
    "paused": (Machine, "pause"),
    "state collected": (vmm_snapshot, "collect"),
    "forked": (vmm_snapshot, "Helper"),
    "gone on": (Machine, "_resume_but_disks"),
    "disk copied": (files, "clone"),
    "memory written": (helper.Helper, "wait"),
    "state written": (files, "write"),
    "on the disk": (files, "settle"),
    "named": (os, "rename"),
}


def config_of(tmp_path: Path) -> MachineConfig:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", counting_guest())
    base = tmp_path / "base"
    if not base.exists():
        base.write_bytes(bytes(1 << 20))
    disk = DiskConfig(str(base), overlay=str(tmp_path / "overlay"))
    return MachineConfig(kernel=kernel, memory_bytes=MEMORY_BYTES, disks=(disk,))


def break_step(
    step: str, how: Callable[[], None], set_attribute: Callable[..., None], is_done: bool
) -> None:
    """Have something happen in place of a step, or after it `is_done`."""
    where, name = STEPS[step]
    original = getattr(where, name)

    def broken(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options) if is_done else None
        how()
        return result

    set_attribute(where, name, broken)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_at_each_step(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "snaps").mkdir()
    config = config_of(tmp_path)
    with Machine(config) as machine:
        counter = attach_counter(machine)
        machine.start()
        wait_for_reads(counter, 10)
        machine.snapshot(str(tmp_path / "snaps" / "warm"))  # whatever is imported and opened once
        before, others = len(os.listdir("/proc/self/fd")), children()
        with monkeypatch.context() as patch:
            break_step(step, fail, patch.setattr, is_done=False)
            with pytest.raises(HostError, match="No space left") as caught:
                machine.snapshot(str(tmp_path / "snaps" / "snap"))
            assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path / "snaps") == ["warm"]
        assert not machine.is_paused
        wait_for_reads(counter, counter.reads + 20)
        assert counter.wrong_writes == 0
        assert children() <= others
        assert len(os.listdir("/proc/self/fd")) <= before
        machine.snapshot(str(tmp_path / "snaps" / "next"))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.guest import test_snapshot_crashes as here
from tests.guest.test_pause import attach_counter, wait_for_reads
from voidbox.storage.locking import Hold
from voidbox.vmm.machine import Machine
place, step = Path(sys.argv[1]), sys.argv[2]
alive = Hold(str(place / "alive"))
with Machine(here.config_of(place)) as machine:
    counter = attach_counter(machine)
    machine.start()
    wait_for_reads(counter, 10)
    if step == "helper":
        from voidbox.snapshot import memory as memory_file
        write = memory_file.write
        def stopped(*arguments):  # the helper is at it when the machine's process ends
            os.kill(os.getppid(), signal.SIGKILL)
            return write(*arguments)
        memory_file.write = stopped
    else:
        here.break_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr, True)
    machine.snapshot(str(place / "snaps" / "snap"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [*STEPS, "helper"])
def test_a_kill_at_each_step(tmp_path: Path, step: str) -> None:
    snaps = tmp_path / "snaps"
    snaps.mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path), step]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not is_held(str(tmp_path / "alive")), "a dead machine looks alive"
    left = os.listdir(snaps)
    assert left == (["snap"] if step == "named" else ["snap.part"])
    folder.sweep(str(snaps))
    assert os.listdir(snaps) == (["snap"] if step == "named" else [])
    with Machine(config_of(tmp_path)) as machine:  # the overlay is free too
        attach_counter(machine)
        machine.start()
