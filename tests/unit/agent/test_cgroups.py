"""What a command started is ended with it at its time limit, wherever it went."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent import spawn
from guest_agent.cgroups import Group, Groups
from guest_agent.loop import Loop
from guest_agent.process import Process
from guest_agent.spawn import Program
from guest_agent.users import User
from tests.unit.agent.test_commands import assert_gone

USER = User("user", os.getuid(), os.getgid(), (os.getgid(),), "/", "/bin/sh")


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(f"{path}/cgroup.procs", os.W_OK):
            return Path(path)
    return None


@pytest.fixture
def root() -> Path:
    found = _cgroup2()
    if found is None:
        pytest.skip("no cgroup2 that may be written to: mount one, and be root")
    return found


@pytest.fixture
def groups(root: Path) -> Iterator[Groups]:
    path = root / f"test-{os.getpid()}"
    path.mkdir()
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].split("\n")[0]
    groups = Groups(str(path), f"{root}/{own}")
    yield groups
    assert not list(path.glob("voidbox/*/"))  # whatever is left in it would be an error
    (path / "voidbox").rmdir()
    path.rmdir()


def remove(group: Group) -> None:
    """Remove it once the kernel has let go of its processes, later than they are gone for us."""
    deadline = time.monotonic() + 60
    while not group.remove():
        assert time.monotonic() < deadline, "somebody is in it still"
        time.sleep(0.01)


class Outlet:
    """Keeps a command's output, and stops the loop at its end."""

    room = 65536

    def __init__(self, loop: Loop) -> None:
        self.data = b""
        self.end: dict[str, Any] | None = None
        self.on_data = lambda: None
        self._loop = loop

    def take(self, stream: int, data: bytes) -> None:
        self.data += data
        self.on_data()

    def ended(self, values: dict[str, Any]) -> None:
        self.end = values
        self._loop.stop()


def run(group: Group, line: str, seconds: float) -> Outlet:
    """Run a command, which is ended so long after it has said something."""
    loop = Loop()
    loop.catch(())
    outlet = Outlet(loop)
    program = Program(["/bin/sh", "-c", line], {"PATH": spawn.PATH}, "/", USER, None, False)
    process = Process(loop, program, spawn.start(program, group), outlet, group)
    outlet.on_data = lambda: process.limit_time(seconds)
    loop.call_later(30, loop.stop)
    loop.run()
    assert outlet.end is not None
    return outlet


DAEMON = "setsid sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 1000' 2>&1 &"


def test_what_left_the_process_group_is_ended_at_the_time_limit(groups: Groups) -> None:
    group = groups.make()
    assert group is not None
    outlet = run(group, f"{DAEMON} sleep 1000", 0.3)
    assert outlet.end is not None and outlet.end["timed_out"]
    assert_gone(int(outlet.data))
    for left in groups.left:
        remove(left)
    another = groups.make()  # which clears away what was left
    assert another is not None and another.remove() and not groups.left


def test_a_daemon_of_a_command_that_ends_in_time_lives_on(groups: Groups) -> None:
    group = groups.make()
    assert group is not None
    outlet = run(group, f"{DAEMON} sleep 0.2", 30)
    assert outlet.end == {"exit_code": 0, "signal": None, "timed_out": False}
    daemon = int(outlet.data)
    os.kill(daemon, 0)
    assert groups.left == [group]
    group.kill()
    assert_gone(daemon)
    remove(group)


def test_a_kernel_without_them(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "voidbox").touch()
    groups = Groups(str(tmp_path))
    assert groups.make() is None and groups.make() is None
