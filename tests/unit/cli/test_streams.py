"""Standard streams in odd states."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from voidbox.cli import streams

FD_SETSIZE = 1024


@contextmanager
def on_descriptor(target: int, fd: int) -> Iterator[None]:
    saved = os.dup(target)
    os.dup2(fd, target)
    try:
        yield
    finally:
        os.dup2(saved, target)
        os.close(saved)


def test_input_is_copied_where_more_descriptors_are_open_than_select_takes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * FD_SETSIZE:
        pytest.skip("the hard limit of open files is too low: raise it with ulimit -Hn 4096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * FD_SETSIZE, hard))
    taken: list[bytes] = []

    class Process:
        def write(self, data: bytes) -> None:
            taken.append(data)

        def end_input(self) -> None:
            taken.append(b"end")

    process: Any = Process()
    read_fd, write_fd = os.pipe()
    many = [os.dup(0) for _ in range(FD_SETSIZE)]
    try:
        with on_descriptor(0, read_fd):
            thread = streams.InputThread(process)
            os.write(write_fd, b"data")
            os.close(write_fd)
            thread._thread.join(10)
            thread.close()
    finally:
        for fd in (*many, read_fd):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert taken == [b"data", b"end"]


def test_a_terminal_that_is_gone_is_no_error_where_its_mode_is_restored() -> None:
    master, slave = os.openpty()
    with on_descriptor(0, slave):
        os.close(slave)
        with streams.raw_terminal():
            os.close(master)
