"""Locks that end with whoever holds them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.sandbox.states import ROOT
from voidbox.errors import HostError
from voidbox.storage.locking import FileLock, Hold, is_held


def test_a_lock_excludes_other_threads(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    value = 0

    def add() -> None:
        nonlocal value
        for _ in range(50):
            with FileLock(path):
                seen = value
                with FileLock(path + "-other"):  # a system call: lets the others run
                    value = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert value == 200


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot lock .*: No such file or directory"):
        FileLock(str(tmp_path / "none" / "lock")).__enter__()


def test_several_hold_and_asking_disturbs_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "alive")
    assert not is_held(path)
    one = Hold(path)
    assert is_held(path)
    assert not one.is_shared()
    two = Hold(path)
    assert one.is_shared()
    one.close()
    one.close()
    assert is_held(path)
    assert not two.is_shared()
    two.close()
    assert not is_held(path)


def test_a_hold_ends_with_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "alive")
    script = (
        "import sys; from voidbox.storage.locking import Hold;"
        "Hold(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(path)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert not is_held(path)


def test_a_hold_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    hold = Hold(str(tmp_path / "new" / "alive"))
    (tmp_path / "new").rename(tmp_path / "made")
    assert is_held(str(tmp_path / "made" / "alive"))
    hold.close()
