"""The watch that fails all tests here sees what a jail refuses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.refusals import AUDIT_SECCOMP, Refusals

LINE = "jail: refused ptrace (0x10), and from now on without a word"
# A keeper's log, which is removed before the process says anything, and while it is followed.
KEEPER = f"""
import os, sys, time
path = sys.argv[1]
os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
os.unlink(path)
time.sleep(5)
print("2026-01-01 {LINE}", file=sys.stderr)
"""
KILLED = """
import os
from voidbox.jail import allowed, privileges, seccomp
from voidbox.jail.numbers import NR
privileges.set_no_new_privs()
seccomp.install(allowed.keeper_program())
os.execv("/bin/true", ["true"])
"""


def test_what_keepers_say_is_seen(tmp_path: Path) -> None:
    with Refusals() as refusals:
        assert (
            subprocess.run([sys.executable, "-c", KEEPER, tmp_path / "owner.log"]).returncode == 0
        )
        logging.getLogger("voidbox.sandbox.keeper.serving").warning(LINE)
        logging.getLogger("voidbox").warning("something else")
        assert refusals.take() == [LINE, f"2026-01-01 {LINE}"]
        assert refusals.take() == []


@pytest.mark.boot
def test_what_the_kernel_says_is_seen(refusals: Refusals) -> None:
    if os.geteuid():
        pytest.skip("the kernel's log is root's: make test-lab")
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode < 0
    found: list[str] = []
    deadline = time.monotonic() + 60
    while not found:
        assert time.monotonic() < deadline
        found = refusals.take()
    assert AUDIT_SECCOMP in found[0]
    assert " syscall=59 " in found[0]  # execve
