"""Locks that end with whoever holds them."""

from __future__ import annotations

import fcntl
import os
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
        process.wait(60)
        assert not is_held(path)


def test_a_hold_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    hold = Hold(str(tmp_path / "new" / "alive"))
    (tmp_path / "new").rename(tmp_path / "made")
    assert is_held(str(tmp_path / "made" / "alive"))
    hold.close()


class Child:
    """A fork of this process that lives until it is told to end."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        begun, beginning = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            os.close(beginning)
            os.read(self._reading, 1)
            os._exit(0)
        os.close(beginning)
        os.read(begun, 1)  # its end
        os.close(begun)

    def end(self) -> None:
        os.close(self._reading)
        os.close(self._writing)
        os.waitpid(self.pid, 0)


def is_locked(path: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_a_child_that_was_forked_meanwhile_keeps_nothing_locked(tmp_path: Path) -> None:
    lock, alive = str(tmp_path / "lock"), str(tmp_path / "alive")
    hold = Hold(alive)
    with FileLock(lock):
        child = Child()
        assert is_locked(lock)  # the child's end of them changes nothing for its parent
        assert is_held(alive)
        open_there = [os.readlink(entry) for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
        hold.close()
    try:
        assert not is_locked(lock)
        assert not is_held(alive)
        # Not even if its parent is killed: then nobody unlocks.
        assert not {lock, alive} & set(open_there)
    finally:
        child.end()


def test_what_a_forked_child_leaves_stays_its_parents(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "lock"))
    hold = Hold(str(tmp_path / "alive"))
    with lock:
        pid = os.fork()
        if pid == 0:
            is_shared = hold.is_shared()
            hold.close()
            lock.__exit__()
            os._exit(0 if is_shared else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert is_locked(str(tmp_path / "lock"))
        assert is_held(str(tmp_path / "alive"))
    hold.close()
