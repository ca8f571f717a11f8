"""Limits of a machine's process, without a control group and with what passes for one."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voidbox.errors import ConfigError, HostError
from voidbox.jail.cgroups import Group
from voidbox.sandbox.process import user_scope
from voidbox.sandbox.worker.process_limits import ProcessLimits, begin

MIB = 1 << 20


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def group(tmp_path: Path) -> Group:
    for name in ("cpu.max", "memory.max", "memory.oom.group", "pids.max"):
        (tmp_path / name).touch()
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "memory.current").write_text(f"{100 * MIB}")
    (tmp_path / "memory.events").write_text("oom_kill 0")
    return Group(str(tmp_path))


def test_without_a_group_the_kernel_limits_the_process(
    process: subprocess.Popen[bytes],
) -> None:
    limits = ProcessLimits(lambda: process.pid, 64 * MIB)
    limits.is_alone = True
    before = resource.prlimit(process.pid, resource.RLIMIT_DATA)
    left = limits.set({"cpu": 0.5, "host_memory_bytes": 700 * MIB, "pids": 80, "disk_ops_s": 1})
    assert left == {"cpu": 0.5, "disk_ops_s": 1}
    assert resource.prlimit(process.pid, resource.RLIMIT_DATA)[0] == 700 * MIB
    assert resource.prlimit(process.pid, resource.RLIMIT_NPROC)[0] == 80
    assert limits.set({"host_memory_bytes": None}) == {}
    assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == before
    assert limits.statistics() == {} and limits.explain_end() == ""


def test_without_a_group_some_limits_cannot_be_kept(process: subprocess.Popen[bytes]) -> None:
    limits = ProcessLimits(lambda: process.pid, 64 * MIB)
    with pytest.raises(ConfigError, match="give at least 603,979,776"):
        limits.set({"host_memory_bytes": 575 * MIB})
    with pytest.raises(ConfigError, match="no control group for it"):
        limits.set({"pids": 80})
    assert limits.set({"pids": None, "host_memory_bytes": None}) == {}


def test_a_process_that_has_ended_has_no_limits() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    limits = ProcessLimits(lambda: process.pid, 64 * MIB)
    assert limits.set({"host_memory_bytes": 700 * MIB}) == {}


def test_a_group_keeps_all_three(tmp_path: Path, group: Group) -> None:
    limits = ProcessLimits(lambda: 1, 64 * MIB, group)
    left = limits.set({"cpu": 0.5, "host_memory_bytes": 200 * MIB, "pids": 80, "net_bytes_s": 1})
    assert left == {"net_bytes_s": 1}
    names = ("cpu.max", "memory.max", "pids.max")
    assert [(tmp_path / name).read_text() for name in names] == ["50000 100000", "209715200", "80"]
    with pytest.raises(ConfigError, match="104,857,600 are in use"):
        limits.set({"host_memory_bytes": 90 * MIB})
    (tmp_path / "memory.events").write_text("oom_kill 1")
    assert "limit of the host's memory" in limits.explain_end()
    (tmp_path / "cpu.max").unlink()
    with pytest.raises(HostError, match="limit cpu: ENOENT"):
        limits.set({"cpu": 1.0})
    with pytest.raises(HostError, match="limit by"):
        begin(group, {"cpu": 1.0})


BUSCTL = """#!{python}
import json, sys
open({out!r}, "w").write(json.dumps(sys.argv[1:]))
sys.exit({status})
"""


@pytest.mark.parametrize(
    ("status", "folders", "is_made"),
    [
        (0, ["/s/voidbox-x.scope", "/s/voidbox-x.scope"], True),
        (0, ["/user.slice/session-1.scope", "/s/voidbox-x.scope"], False),
        (1, ["/s/voidbox-x.scope"] * 2, False),
    ],
)
def test_the_users_systemd_is_asked_for_a_scope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, folders: list[str], is_made: bool
) -> None:
    out = tmp_path / "out"
    program = tmp_path / "busctl"
    program.write_text(BUSCTL.format(python=sys.executable, out=str(out), status=status))
    program.chmod(0o755)
    (tmp_path / "bus").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(user_scope, "_MOVED_S", 0.05)
    of_pid = dict(zip((7, 8), folders, strict=True))
    monkeypatch.setattr(user_scope.cgroups, "around_of", lambda pid: of_pid[pid])
    group: Any = user_scope.make("x", (7, 8))
    assert (group is not None) == is_made
    if is_made:
        assert group.folder == "/s/voidbox-x.scope"
    said = out.read_text()
    assert '"StartTransientUnit", "ssa(sv)a(sa(sv))", "voidbox-x.scope", "fail", "3"' in said
    assert '"PIDs", "au", "2", "7", "8", "Delegate", "b", "true"' in said


def test_nobody_is_asked_where_there_is_no_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert user_scope.make("x", (7,)) is None
