"""The lab itself: streams, statuses, what is shared, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.terminal import Session

ROOT = Path(__file__).parents[2]
LAB = str(ROOT / "scripts" / "kvm-lab")
LIMIT_S = 300

pytestmark = [
    pytest.mark.skipif(
        "VOIDBOX_LAB" in os.environ, reason="inside the lab: make test-lab runs it outside"
    ),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None,
        reason="needs root and QEMU: sudo apt-get install qemu-system-x86, then sudo make test",
    ),
]


def lab(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [LAB, *arguments], input=stdin, capture_output=True, timeout=LIMIT_S, check=False, cwd=ROOT
    )


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except FileNotFoundError:
        return False


def test_streams_status_and_what_is_shared(tmp_path: Path) -> None:
    # The tree shows what was just written; writes are thrown away, but for --rw's.
    probe = ROOT / "build" / "lab-probe"
    probe.parent.mkdir(exist_ok=True)
    probe.write_text("fresh")
    data = os.urandom(1 << 20)
    script = f"""
        cat                                  # stdin to stdout, byte for byte
        printf 'to\\0stderr' >&2
        [ "$(cat build/lab-probe)" = fresh ] || exit 10
        echo changed >build/lab-probe
        echo kept >{tmp_path}/kept
        [ "$PWD" = {ROOT} ] || exit 11
        [ "$VOIDBOX_LAB$GIVEN" = 1value ] || exit 12
        {sys.executable} -c 'import fcntl, sys
sys.exit(fcntl.ioctl(open("/dev/kvm"), 0xAE00) != 12)' || exit 13
        [ -w /dev/vhost-vsock ] || exit 14
        kill -TERM $$
    """
    try:
        result = lab(
            "--rw", str(tmp_path), "--env", "GIVEN=value", "--", "bash", "-c", script, stdin=data
        )
        assert result.returncode == 128 + signal.SIGTERM, result.stderr
        assert result.stdout == data
        assert result.stderr == b"to\0stderr"
        assert probe.read_text() == "fresh"
        assert (tmp_path / "kept").read_text() == "kept\n"
    finally:
        probe.unlink()


def test_its_clock_goes_as_this_machines() -> None:
    script = "import time; print(time.monotonic()); input(); print(time.monotonic())"
    process = subprocess.Popen(
        [LAB, "--", sys.executable, "-u", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    first, began = float(process.stdout.readline()), time.monotonic()
    time.sleep(5)
    process.stdin.write(b"\n")
    process.stdin.flush()
    last, took_s = float(process.stdout.readline()), time.monotonic() - began
    process.communicate(timeout=LIMIT_S)
    assert took_s / 2 < last - first < took_s * 2  # what either waited for says little


def test_the_time_limit() -> None:
    result = lab("--timeout", "3", "--", "sleep", "100")
    assert result.returncode == 124
    assert b"ended after 3 s" in result.stderr


def test_a_lab_that_falls_silent_has_failed() -> None:
    script = "echo one; sleep 1; echo two; sleep 100"
    result = lab("--silence", "30", "--", "sh", "-c", script)  # its own boot is silent, too
    assert result.returncode == 125
    assert result.stdout == b"one\ntwo\n"
    assert b"nothing was printed for 30 s" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_and_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [LAB, "--", "bash", "-c", "echo up; sleep 100"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    children = children_of(process.pid)
    assert len(children) >= 2, "QEMU and virtiofsd"
    process.send_signal(number)
    status = process.wait(60)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a child survived"
    if number != signal.SIGKILL:
        assert status == 128 + number
        assert os.listdir(tmp_path) == []


def test_an_idle_lab_is_idle() -> None:
    # With our end of its stdin closed, QEMU's main loop spins and starves the lab's CPUs.
    process = subprocess.Popen(
        [LAB, "--", "bash", "-c", "echo up; exec sleep 100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        children = children_of(process.pid)
        settled = threading.Event()
        settled.wait(1)
        before = sum(cpu_seconds(child) for child in children)
        settled.wait(2)
        assert sum(cpu_seconds(child) for child in children) - before < 1.0
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, LAB, "--", "true"],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 125
    assert "apt-get install -y qemu-system-x86" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_on_a_terminal_the_command_has_one_too() -> None:
    with Session([LAB, "--", "bash", "--norc"], str(ROOT)) as session:
        session.expect(r"# ", timeout_s=LIMIT_S)
        session.type("tty && stty size; echo $((6 * 7))\r")
        session.expect(r"/dev/pts/\d+")
        session.expect(r"42\r")
        session.type("sh -c \"echo g''o; sleep 1000\"\r")
        session.expect(r"\bgo\r")
        session.type("\x03")
        session.expect(r"# ")
        session.type("exit 5\r")
        assert session.wait() == 5
        assert session.is_mode_restored()
