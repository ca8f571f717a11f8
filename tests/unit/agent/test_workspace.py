"""The agent's half of a shared folder: the mount, and what it tells the host."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guest_agent import protocol, syscalls, workspace
from guest_agent.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY

Mounts = list[tuple[object, ...]]


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounts:
    found: Mounts = []
    monkeypatch.setattr(protocol, "WORKSPACE_PATH", str(tmp_path / "settings"))
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(workspace, "_capabilities", [])
    return found


def write(tmp_path: Path, access: str) -> str:
    target = str(tmp_path / "workspace")
    text = f"tag t\npath {target}\naccess {access}\nmsize 8192\n"
    (tmp_path / "settings").write_text(text)
    return target


@pytest.mark.parametrize(("access", "more"), [("rw", 0), ("ro", MS_RDONLY)])
def test_the_mount(tmp_path: Path, mounts: Mounts, access: str, more: int) -> None:
    target = write(tmp_path, access)
    workspace.set_up()
    options = "trans=virtio,version=9p2000.L,cache=mmap,msize=8192"
    assert mounts == [("t", target, "9p", MS_NOSUID | MS_NODEV | more, options)]
    assert workspace.capabilities() == (protocol.CAN_SHARE,)


def test_nothing_to_mount(mounts: Mounts) -> None:
    workspace.set_up()
    assert (mounts, workspace.capabilities()) == ([], ())


def test_a_kernel_that_cannot(
    tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(syscalls, "mount", fail)
    write(tmp_path, "rw")
    workspace.set_up()
    assert workspace.capabilities() == ("workspace:ENODEV",)
