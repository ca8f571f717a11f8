"""Threads and open files that a start would not find."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from voidbox.errors import HostError
from voidbox.sandbox import host_room

GROUP = "sys/fs/cgroup/user.slice/job"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with room."""
    for name, content in {
        "proc/loadavg": "0.1 0.2 0.3 2/500 999",
        "proc/sys/kernel/threads-max": "100000",
        "proc/sys/kernel/pid_max": "32768",
        "proc/sys/fs/file-nr": "2000\t500\t100000",
        "proc/self/cgroup": "1:name=x:/\n0::/user.slice/job",
        f"{GROUP}/pids.max": "max",
        f"{GROUP}/pids.current": "100",
        "sys/fs/cgroup/user.slice/pids.max": "1000",
        "sys/fs/cgroup/user.slice/pids.current": "100",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return tmp_path


def test_this_host_has_room() -> None:
    host_room.check(1)


def test_a_host_with_room(host: Path) -> None:
    host_room.check(4, str(host))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("proc/sys/kernel/pid_max", "530", "33 threads, and 500 of 530"),
        ("proc/sys/kernel/threads-max", "530", "raise kernel.pid_max"),
        (f"{GROUP}/pids.max", "120", "100 of 120 are in use: end some, or raise its pids.max"),
        ("sys/fs/cgroup/user.slice/pids.max", "132", "threads in this control group"),
        ("proc/sys/fs/file-nr", "2000\t500\t1600", "128 open files, and 1,500 of 1,600"),
    ],
)
def test_a_host_without(host: Path, file: str, content: str, message: str) -> None:
    (host / file).write_text(content)
    with pytest.raises(HostError, match=message):
        host_room.check(1, str(host))


def test_a_host_that_does_not_tell(tmp_path: Path) -> None:
    host_room.check(1, str(tmp_path))


def test_this_program_has_too_many_files_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_PATH)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 10, hard))
    try:
        with pytest.raises(HostError, match="open files of this program"):
            host_room.check(1, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
