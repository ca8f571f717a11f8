"""The agent's half of shared folders and volumes: the mounts, and what it tells the host."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from guest_agent import mounts, protocol, root, syscalls, users, volume_disk
from guest_agent.syscalls import MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY

Mounts = list[tuple[object, ...]]
FLAGS = MS_NOSUID | MS_NODEV


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounts:
    found: Mounts = []
    monkeypatch.setattr(protocol, "MOUNTS_PATH", str(tmp_path / "settings"))
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(syscalls, "umount", lambda target: found.append(("umount", target)))
    monkeypatch.setattr(mounts, "_capabilities", [])
    monkeypatch.setattr(mounts, "_mounted", [])
    monkeypatch.setattr(volume_disk, "SYS_BLOCK", str(tmp_path / "block"))
    return found


def write(tmp_path: Path, *lines: str) -> None:
    (tmp_path / "settings").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(("access", "more"), [("rw", 0), ("ro", MS_RDONLY)])
def test_a_shared_folder(tmp_path: Path, mounted: Mounts, access: str, more: int) -> None:
    target = f"{tmp_path}/with a blank/x"
    write(tmp_path, f"virtiofs {access} t {target}")
    mounts.set_up()
    assert mounted == [("t", target, "virtiofs", FLAGS | more, "")]
    assert mounts.capabilities() == (protocol.CAN_MOUNT,)
    assert os.path.isdir(target)


def test_nothing_to_mount(mounted: Mounts) -> None:
    mounts.set_up()
    mounts.end()
    assert (mounted, mounts.capabilities()) == ([], ())


def test_what_cannot_be_mounted_is_told_and_the_next_one_tried(
    tmp_path: Path, mounted: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str, *more: object) -> None:
        if source != "c":
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        mounted.append((source, target))

    monkeypatch.setattr(syscalls, "mount", fail)
    (tmp_path / "file").touch()
    lines = (f"virtiofs rw {name} {tmp_path}/{name}" for name in ("a", "file", "c"))
    write(tmp_path, *lines, f"ext4 rw gone {tmp_path}/d")
    (tmp_path / "block").mkdir()
    mounts.set_up()
    assert mounted == [("c", f"{tmp_path}/c")]
    assert mounts.capabilities() == ("mounts:a:ENODEV", "mounts:file:EEXIST", "mounts:gone:ENXIO")


def test_a_target_may_be_a_link(tmp_path: Path, mounted: Mounts) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path, f"virtiofs rw t {tmp_path}/link/x")
    mounts.set_up()
    assert mounted[0][1] == f"{tmp_path}/real/x"


def test_at_the_end_all_is_unmounted_the_inner_ones_first(
    tmp_path: Path, mounted: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f"virtiofs rw a {tmp_path}/a", f"virtiofs rw b {tmp_path}/a/b")
    mounts.set_up()
    mounted.clear()

    def busy(target: str) -> None:
        if target.endswith("/b"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        mounted.append(("umount", target))

    monkeypatch.setattr(syscalls, "umount", busy)
    mounts.end()
    mounts.end()
    remount = syscalls.MS_REMOUNT | MS_RDONLY
    assert mounted == [("", f"{tmp_path}/a/b", "", remount), ("umount", f"{tmp_path}/a")]


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk, and a mke2fs that only says what it was called with."""
    for name, serial in (("loop0", None), ("vda", "other"), ("vdb", "voidbox-volume1")):
        (tmp_path / "block" / name).mkdir(parents=True)
        if serial is not None:
            (tmp_path / "block" / name / "serial").write_text(serial)
    tools = tmp_path / "usr/lib/voidbox/e2fs"
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    tools.mkdir(parents=True)
    libraries.mkdir(parents=True)
    (tools / "mke2fs").touch()
    loader = libraries / "ld-linux-x86-64.so.2"
    loader.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/called\nexit $(cat {tmp_path}/status)\n'
    )
    loader.chmod(0o755)
    (tmp_path / "status").write_text("0")
    monkeypatch.setattr(root, "PREFIX", str(tmp_path))
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_disk_is_found_by_its_serial_number(tmp_path: Path, mounted: Mounts, disk: Path) -> None:
    assert volume_disk.find("voidbox-volume1") == "/dev/vdb"
    with pytest.raises(OSError, match="no disk has the serial number voidbox-volume"):
        volume_disk.find("voidbox-volume")


def test_a_blank_disk_gets_a_file_system(tmp_path: Path, disk: Path) -> None:
    assert volume_disk.prepare(str(disk), False)
    called = (tmp_path / "called").read_text().split("\n")
    assert called[3] == f"{tmp_path}/usr/lib/voidbox/e2fs/mke2fs"
    assert ("ext4" in called, called[-2]) == (True, str(disk))
    disk.write_bytes(bytes(1024) + b"\x53\xef" + bytes(1 << 20))
    (tmp_path / "called").unlink()
    assert not volume_disk.prepare(str(disk), False)
    assert not volume_disk.prepare(str(disk), True)
    assert not (tmp_path / "called").exists()


def test_what_cannot_get_a_file_system(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(OSError) as caught:
        volume_disk.prepare(str(disk), True)
    assert caught.value.errno == errno.ENODATA
    (tmp_path / "status").write_text("3")
    with pytest.raises(OSError, match="mke2fs on .* ends with status 3"):
        volume_disk.prepare(str(disk), False)
    (tmp_path / "usr/lib/voidbox/e2fs/mke2fs").unlink()
    with pytest.raises(FileNotFoundError):
        volume_disk.prepare(str(disk), False)


def test_a_new_volume_is_the_users_and_looks_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "volume"
    (target / "lost+found").mkdir(parents=True)
    owner = users.User("me", os.getuid(), os.getgid(), (), "/", "/bin/sh")
    monkeypatch.setattr(users, "find", lambda name: owner)
    volume_disk.welcome(str(target))
    assert os.listdir(target) == []
    assert stat.S_ISDIR(target.stat().st_mode) and target.stat().st_uid == os.getuid()


def test_a_volume_is_mounted_from_its_disk(
    tmp_path: Path, mounted: Mounts, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    welcomed: list[str] = []
    monkeypatch.setattr(root, "PREFIX", "")
    monkeypatch.setattr(volume_disk, "prepare", lambda device, is_read_only: not is_read_only)
    monkeypatch.setattr(volume_disk, "welcome", welcomed.append)
    lines = (f"ext4 {access} voidbox-volume1 {tmp_path}/{access}" for access in ("rw", "ro"))
    write(tmp_path, *lines)
    mounts.set_up()
    assert mounted == [
        ("/dev/vdb", f"{tmp_path}/rw", "ext4", FLAGS | MS_NOATIME, "discard"),
        ("/dev/vdb", f"{tmp_path}/ro", "ext4", FLAGS | MS_NOATIME | MS_RDONLY, "discard"),
    ]
    assert welcomed == [f"{tmp_path}/rw"]
