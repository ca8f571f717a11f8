"""Control groups: where one can be made, on file systems that are made of plain files."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from voidbox.jail import cgroups
from voidbox.jail.cgroups import Group


def _tree(root: Path, groups: dict[str, tuple[str, str]]) -> None:
    """Write groups: what each has, and what it gives those below."""
    for path, (has, gives) in groups.items():
        folder = root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.controllers").write_text(f"{has}\n")
        (folder / "cgroup.subtree_control").write_text(gives)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What /proc says, in place of this process's own."""
    files = {
        "/proc/self/mountinfo": f"29 1 0:26 / {tmp_path} rw,nosuid - cgroup2 cgroup2 rw\n",
        "/proc/self/cgroup": "3:cpu:/x\n0::/user/app/shell\n",
    }
    read = cgroups._read

    def fake(path: str) -> str:
        return files[path] if path in files else read(path)

    monkeypatch.setattr(cgroups, "_read", fake)
    return files


def test_the_group_around_with_most_is_taken_and_of_equal_ones_the_nearest(
    tmp_path: Path, proc: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _tree(
        tmp_path,
        {
            ".": ("cpu memory pids io", "cpu memory pids"),
            "user": ("cpu memory pids", "cpu memory pids"),
            "user/app": ("memory pids", "memory pids"),
            "user/app/shell": ("memory pids", ""),
        },
    )
    monkeypatch.setattr(cgroups, "_write", _refuse)
    assert cgroups.find() == f"{tmp_path}/user"
    (tmp_path / "user/app/cgroup.subtree_control").write_text("cpu memory pids")
    assert cgroups.find() == f"{tmp_path}/user/app"


def _refuse(path: str, text: str) -> None:
    assert text in ("+cpu", "+memory", "+pids")
    raise OSError(16, "Device or resource busy", path)


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [
        ("3:cpu:/x\n", None),
        ("0::/../other\n", None),
        ("0::/user\n", "1 1 0:1 / / rw - ext4 x rw\n"),
        ("0::/user\n", "29 1 0:26 /elsewhere /sys/fs/cgroup rw - cgroup2 x rw\n"),
        ("0::/none\n", None),
    ],
)
def test_where_no_group_can_be_made(
    tmp_path: Path, proc: dict[str, str], cgroup: str, mountinfo: str | None
) -> None:
    proc["/proc/self/cgroup"] = cgroup
    if mountinfo is not None:
        proc["/proc/self/mountinfo"] = mountinfo
    assert cgroups.find() is None


def test_a_container_sees_its_own_tree_as_the_root(
    tmp_path: Path, proc: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_write", _refuse)
    _tree(tmp_path, {"app": ("cpu", "cpu")})
    proc["/proc/self/cgroup"] = "0::/pod/one/app\n"
    proc["/proc/self/mountinfo"] = f"29 1 0:26 /pod/one {tmp_path} rw - cgroup2 cgroup2 rw\n"
    assert cgroups.find() == f"{tmp_path}/app"


def test_what_nobody_holds_is_removed_and_what_somebody_holds_is_not(tmp_path: Path) -> None:
    (tmp_path / "voidbox-left").mkdir()
    (tmp_path / "other").mkdir()
    held = cgroups.make(str(tmp_path), "held")
    cgroups._tidy(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "voidbox-held"]
    held.close()
    held.close()
    assert os.listdir(tmp_path) == ["other"]


def test_one_that_is_removed_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took it for what a killed one has left."""
    flock, folder = fcntl.flock, tmp_path / "voidbox-x"
    taken = []

    def late(fd: int, how: int) -> None:
        if not taken:
            taken.append(fd)
            os.rmdir(folder)
        flock(fd, how)

    monkeypatch.setattr(cgroups.fcntl, "flock", late)
    group = cgroups.make(str(tmp_path), "x")
    assert folder.is_dir() and taken
    group.close()
    assert not folder.exists()


def test_what_is_written(tmp_path: Path) -> None:
    for name in ("cpu.max", "memory.max", "memory.oom.group", "pids.max", "cgroup.procs"):
        (tmp_path / name).touch()
    group = Group(str(tmp_path))
    group.limit_cpu(0.5)
    group.limit_memory(1 << 20)  # no memory.swap.max: a kernel without swap
    group.limit_pids(7)
    group.add(1)
    read = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert read == {
        "cpu.max": "50000 100000", "memory.max": "1048576", "memory.oom.group": "1",
        "pids.max": "7", "cgroup.procs": "1",
    }  # fmt: skip
    (tmp_path / "cpu.max").write_text("")
    group.limit_cpu(0.001)
    assert (tmp_path / "cpu.max").read_text() == "1000 100000"
    group.close()
    assert tmp_path.exists()  # it is somebody else's


def test_what_is_counted(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    (tmp_path / "pids.current").write_text("3\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 9\nthrottled_usec 5\n")
    found = Group(str(tmp_path)).statistics()
    assert found == {"memory_bytes": 4096, "oom_kills": 2, "pids": 3, "cpu_held_ns": 5000}
    (tmp_path / "cgroup.controllers").write_text("")
    assert Group(str(tmp_path)).statistics() == {}


def test_a_process_goes_into_a_real_group() -> None:
    place = cgroups.around_of(os.getpid())
    if place is None or not cgroups._is_writable(place):
        pytest.skip("this user may make no control group here")
    try:
        group = cgroups.make(place, f"test-{os.getpid()}")
    except OSError as error:
        pytest.skip(f"this user may make no control group here: {error}")
    pid = os.fork()
    if not pid:
        threading.Event().wait(60)
        os._exit(0)
    try:
        group.add(pid)
        assert cgroups.around_of(pid) == group.folder
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        group.close()
    assert not os.path.exists(group.folder)
