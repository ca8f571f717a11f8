"""A machine is saved, and one that is restored begins, by a process that has shut itself in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.kvm

SCRIPT = """
import ctypes, os, sys, traceback
from pathlib import Path
from tests.guest.test_pause import attach_counter, counting_guest, wait_for_reads
from tests.guest.test_snapshot import config_of
from voidbox.jail import allowed, seccomp
from voidbox.sandbox.worker.confinement import import_late, needs_of
from voidbox.vmm.machine import Machine

folder = Path(sys.argv[2])
config = config_of(folder, counting_guest())
save = sys.argv[1] == "save"
machine = Machine(config) if save else Machine.from_snapshot(str(folder / "saved"), config)
counter = attach_counter(machine)
import_late()
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
seccomp.install(allowed.program(needs_of(config)._replace(forks=True)))
try:
    machine.start()
    wait_for_reads(counter, 10 if save else 1)  # which is another counter, as the guest finds then
    if save:
        machine.snapshot(str(folder / "saved"))
        machine.pause()
        machine.snapshot(str(folder / "saved-2"))
    print("done", flush=True)
except BaseException:
    traceback.print_exc()
finally:
    os._exit(0)  # whatever threads there are
"""


@pytest.mark.parametrize("what", ["save", "restore"])
def test_a_process_that_is_shut_in(tmp_path: Path, what: str) -> None:
    for step in ("save", "restore")[: 1 if what == "save" else 2]:
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, step, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.stdout == "done\n", run.stderr
