"""The image's init in the agent's place: an ordinary process plays PID 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guest_agent import init

# Prints what becomes of this process and of its child, and ends when both have.
PLAYER = """
import os, sys
from guest_agent import init
before = os.getpid()
try:
    init.hand_over(sys.argv[1])
except OSError as error:
    print("still", os.getpid() == before, error.strerror, flush=True)
else:
    is_child, is_leader = os.getppid() == before, os.getsid(0) == os.getpid()
    os.write(1, f"child {is_child} {is_leader}\\n".encode())  # at once: the init writes there, too
    open(sys.argv[1] + ".end", "w").close()
"""


def play(path: str) -> list[str]:
    command = [sys.executable, "-c", PLAYER, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    return sorted(done.stdout.splitlines())


def test_the_parent_becomes_the_init_and_the_child_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_text(
        "#!/bin/sh\n"
        "while read -r name value; do\n"
        '    [ "$name" != SigIgn: ] || echo "init $HOME $TERM $value"\n'
        "done </proc/$$/status\n"
        'until [ -e "$0.end" ]; do sleep 0.02; done\n'
    )
    script.chmod(0o755)
    child, parent = play(str(script))
    assert child == "child True True"
    *words, ignored = parent.split()
    assert words == ["init", "/", "linux"]
    # Of the 31 that have names, what these tests' own start was told to ignore (nohup(1)) stays so.
    inherited = {n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN}
    mask = int(ignored, 16)
    assert {n for n in range(1, 32) if mask >> n - 1 & 1} == inherited - {*init.OF_PYTHON}


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, "No such file or directory"),
        (b"\x7fELF", 0o755, "Exec format error"),
        (b"#!/bin/sh\n", 0o644, "Permission denied"),
    ],
)
def test_an_init_that_does_not_start_leaves_pid_1_as_it_was(
    content: bytes | None, mode: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "init"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    assert play(str(path)) == [f"still True cannot start the image's init {path}: {reason}"]


def test_how_the_init_is_asked_to_end_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(init, "_SYSTEMD", str(tmp_path))
    init.end(False)
    init.end(True)
    assert sent == [(1, signal.SIGRTMIN + 4), (1, signal.SIGRTMIN + 5)]  # systemd(1), SIGNALS
    ran: list[str] = []
    monkeypatch.setattr(os, "posix_spawnp", lambda name, words, env: ran.append(name))
    monkeypatch.setattr(init, "_SYSTEMD", str(tmp_path / "none"))
    init.end(False)
    init.end(True)
    assert ran == ["poweroff", "reboot"]
