"""What becomes of a command's streams when it ends, without a client."""

from __future__ import annotations

import os
import subprocess
import tty
from typing import Any

import pytest

from guest_agent.loop import Loop
from guest_agent.process import Process
from guest_agent.spawn import Child, Program
from guest_agent.users import User

ROUNDS_MAX = 10_000


class Flood:
    """An outlet that finds as much in the stream after each read as before it."""

    room = 65536

    def __init__(self, write_fd: int) -> None:
        self.end: dict[str, Any] | None = None
        self._write_fd = write_fd
        self._rounds = 0

    def take(self, stream: int, data: bytes) -> None:
        self._rounds += 1
        assert self._rounds < ROUNDS_MAX, "the agent reads on and on"
        os.write(self._write_fd, b"more" * 100)

    def ended(self, values: dict[str, Any]) -> None:
        self.end = values


@pytest.mark.parametrize("is_tty", [False, True])
def test_what_outlives_a_command_and_writes_on_does_not_hold_up_its_end(is_tty: bool) -> None:
    if is_tty:
        read_fd, write_fd = os.openpty()
        tty.setraw(write_fd)
    else:
        read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.write(write_fd, b"first")
    loop = Loop()
    outlet = Flood(write_fd)
    user = User("root", 0, 0, (0,), "/", "/bin/sh")
    program = Program(["x"], {}, "/", user, (24, 80) if is_tty else None, False)
    stdin = read_fd if is_tty else -1
    # Not started by spawn, for its streams are ours: only its end counts.
    with subprocess.Popen(["true"]) as child:
        process = Process(loop, program, Child(child.pid, stdin, read_fd, -1), outlet)
    process._on_exit(0)
    loop.call_later(1, loop.stop)
    loop.run()
    os.close(write_fd)
    assert outlet.end == {"exit_code": 0, "signal": None, "timed_out": False}
