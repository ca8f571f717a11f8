"""How `voidbox run` ends when what surrounds it fails: a terminal, a reader."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.cli import exit_status

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60
VOIDBOX = [sys.executable, "-m", "voidbox"]


def run_of(tmp_path: Path, code: bytes) -> list[str]:
    """The command that runs a guest of `code`."""
    kernel = tiny.write_elf(tmp_path / "tiny.elf", code)
    return [*VOIDBOX, "run", "--kernel", kernel, "--memory", "32M", "--console"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def unread_bytes(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


@contextmanager
def started(command: list[str], stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.kvm
def test_a_terminal_that_hangs_up_ends_it(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    command = run_of(tmp_path, tiny.say("up") + tiny.HLT_FOREVER)
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
    )
    try:
        assert os.read(leader, 2)
        os.close(leader)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
        os.close(follower)


@contextmanager
def full_pipe(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A guest that has powered off, its last output stuck in a pipe that nobody reads."""
    count = 3 * 4096
    # mov ecx, count; mov dx, COM1; l: out dx, al; dec ecx; jnz l
    code = b"\xb9" + struct.pack("<I", count) + b"\x66\xba" + struct.pack("<H", tiny.COM1)
    code += b"\xee\xff\xc9\x75\xfb"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with started([*run_of(tmp_path, code + tiny.power_off()), *options], writer) as process:
            wait_until(lambda: unread_bytes(reader) > 0)
            yield process
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.slow
@pytest.mark.kvm
def test_the_time_limit_covers_the_last_output_too(tmp_path: Path) -> None:
    with full_pipe(tmp_path, "--timeout", "5") as process:
        assert process.wait(DEADLINE_S) == exit_status.TIMEOUT
