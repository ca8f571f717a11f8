"""Where container engines store what no overlay may lie over."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guest_agent import containers, root, syscalls
from guest_agent.syscalls import MS_BIND


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(root, "PREFIX", str(tmp_path))
    names = ("docker", "containerd", "containers")
    monkeypatch.setattr(containers, "STORES", tuple(f"{tmp_path}/lib/{name}" for name in names))
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(syscalls, "umount", lambda target: made.append((target,)))
    return made


def test_a_root_in_memory_has_no_disk_for_them(calls: list[tuple[object, ...]]) -> None:
    containers.set_up()
    assert calls == []
    assert not any(map(os.path.exists, containers.STORES))


def test_each_store_is_a_folder_of_the_disk_but_one_that_the_image_fills(
    tmp_path: Path, calls: list[tuple[object, ...]]
) -> None:
    disk = f"{tmp_path}{containers.DISK}"
    os.makedirs(disk)
    (tmp_path / "lib/containerd").mkdir(parents=True)
    (tmp_path / "lib/containerd/loaded").touch()
    containers.set_up()
    assert calls == [
        (f"{disk}/docker", f"{tmp_path}/lib/docker", "", MS_BIND),
        (f"{disk}/containers", f"{tmp_path}/lib/containers", "", MS_BIND),
        (disk,),
    ]
    assert os.path.isdir(f"{disk}/docker")


def test_the_disk_is_let_go_even_if_nothing_can_be_mounted(
    tmp_path: Path, calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the host's files, which lie around it, could not be taken away."""

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "mount", fail)
    os.makedirs(f"{tmp_path}{containers.DISK}")
    with pytest.raises(PermissionError):
        containers.set_up()
    assert calls == [(f"{tmp_path}{containers.DISK}",)]
