"""What /init of a root on disks does, with commands that only say what they would do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "voidbox/setup/guest/boot_init.sh"
DO_NOTHING = ["insmod", "mount", "cp", "switch_root", "poweroff"]
LIB = "usr/lib/x86_64-linux-gnu"


class Guest(NamedTuple):
    """A folder that stands for the guest's root."""

    root: Path

    def disk(self, name: str, serial: str, content: bytes = bytes(8192)) -> None:
        (self.root / f"sys/block/{name}/queue").mkdir(parents=True)
        (self.root / f"sys/block/{name}/serial").write_text(serial)
        (self.root / "dev").mkdir(exist_ok=True)
        (self.root / f"dev/{name}").write_bytes(content)

    def run(self) -> tuple[list[str], str]:
        """Run the script; returns the commands, and what the kernel is told."""
        for folder in ("dev", "runtime", "image", "upper", "root", "usr/lib/voidbox", "sys/block"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        modules = self.root / "usr/lib/voidbox/modules"
        if not modules.exists():
            modules.touch()
        (self.root / "dev/zero").write_bytes(bytes(8192))
        script = SCRIPT.read_text()
        for folder in ("dev", "sys", "proc", "runtime", "image", "upper", "root", "etc"):
            for before in (" ", "=", '"', ">", "<", "\n"):
                script = script.replace(f"{before}/{folder}", f"{before}{self.root}/{folder}")
        script = script.replace("</usr", f"<{self.root}/usr")
        script = script.replace("/bin/busybox mount", "mount")
        environment = {"PATH": f"{self.root}/bin:/usr/bin:/bin", "LOG": f"{self.root}/log"}
        done = subprocess.run(
            ["dash", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        log, kmsg = self.root / "log", self.root / "dev/kmsg"
        commands = log.read_text().replace(f"{self.root}", "").splitlines() if log.exists() else []
        return commands, kmsg.read_text().replace(f"{self.root}", "")


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    if shutil.which("dash") is None:
        pytest.skip("no dash here: install it to have the guest's init checked")
    (tmp_path / "bin").mkdir()
    for name in DO_NOTHING:
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >>"$LOG"\n')
        stub.chmod(0o755)
    loader = tmp_path / "runtime" / LIB / "ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\necho "ld $*" >>"$LOG"\n')
    loader.chmod(0o755)
    return Guest(tmp_path)


def fail(guest: Guest, name: str, words: str, message: str) -> None:
    """Have a command fail where its words contain some."""
    stub = guest.root / "bin" / name
    stub.write_text(
        f'#!/bin/sh\necho "{name} $*" >>"$LOG"\ncase "$*" in *{words}*) echo "{message}" >&2; '
        "exit 1 ;; esac\n"
    )


def test_an_image_gets_its_disks_by_their_serial_numbers(guest: Guest) -> None:
    guest.disk("vda", "my-own")
    guest.disk("vdb", "voidbox-upper")
    guest.disk("vdc", "voidbox-image")
    guest.disk("vdd", "voidbox-runtime")
    (guest.root / "sys/block/vde").mkdir()  # without a serial number
    (guest.root / "root/dev").mkdir(parents=True)
    os.symlink("/etc", guest.root / "root/sys")
    (guest.root / "root/proc").write_text("a file")
    commands, said = guest.run()
    assert said == ""
    text = "\n".join(commands)
    assert "mount -t erofs -o ro,nodev /dev/vdd /runtime" in commands
    assert "mount -t erofs -o ro /dev/vdc /image" in commands
    assert "mount -t ext4 -o discard,noatime /dev/vdb /upper" in commands
    made = next(line for line in commands if line.startswith("ld "))
    assert "/mke2fs " in made and made.endswith(" /dev/vdb")
    assert "lowerdir=/image,upperdir=/upper/root,workdir=/upper/work" in text
    ours = {path.parts[-3] for path in guest.root.glob("sys/block/*/queue/read_ahead_kb")}
    assert ours == {"vdb", "vdc", "vdd"}
    for folder in ("dev", "sys", "proc", ".voidbox"):
        assert (guest.root / "root" / folder).is_dir()
        assert not (guest.root / "root" / folder).is_symlink()
    assert commands[-1].startswith("switch_root ") and commands[-1].endswith(" /.voidbox/init")
    assert "poweroff" not in text


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o2775, 0o700])
def test_an_images_root_keeps_its_mode_and_owner(guest: Guest, mode: int) -> None:
    guest.disk("vda", "voidbox-runtime")
    guest.disk("vdb", "voidbox-image")
    (guest.root / "image").mkdir()
    if os.geteuid() == 0:
        os.chown(guest.root / "image", 1000, 50)
    (guest.root / "image").chmod(mode)
    _, said = guest.run()
    assert said == ""
    image, upper = (guest.root / "image").stat(), (guest.root / "upper/root").stat()
    assert upper.st_mode & 0o7777 == mode | 0o555
    assert (upper.st_uid, upper.st_gid) == (image.st_uid, image.st_gid)
    # What somebody has made of it since then stays, on a disk that is kept.
    (guest.root / "upper/root").chmod(0o711)
    guest.run()
    assert (guest.root / "upper/root").stat().st_mode & 0o7777 == 0o711


def test_our_own_image_needs_one_disk(guest: Guest) -> None:
    guest.disk("vda", "voidbox-runtime")
    commands, said = guest.run()
    assert said == ""
    assert "mount -t tmpfs -o mode=0755 tmpfs /upper" in commands
    assert any("lowerdir=/runtime," in line for line in commands)
    assert not any("ext4" in line or line.startswith("ld ") for line in commands)


def test_a_disk_with_something_on_it_is_not_made_anew(guest: Guest) -> None:
    guest.disk("vda", "voidbox-runtime")
    guest.disk("vdb", "voidbox-upper", bytes(1080) + b"\x53\xef" + bytes(8000))
    commands, _ = guest.run()
    assert not any(line.startswith("ld ") for line in commands)
    assert "mount -t ext4 -o discard,noatime /dev/vdb /upper" in commands


def test_modules_come_first(guest: Guest) -> None:
    guest.disk("vda", "voidbox-runtime")
    (guest.root / "usr/lib/voidbox").mkdir(parents=True)
    (guest.root / "usr/lib/voidbox/modules").write_text("/lib/a.ko\n/lib/b.ko\n")
    commands, _ = guest.run()
    assert commands[3:5] == ["insmod /lib/a.ko", "insmod /lib/b.ko"]


@pytest.mark.parametrize(
    ("name", "words", "message", "told"),
    [
        ("mount", "/image", "mount: mounting /dev/vdb on /image failed: Invalid argument",
         "cannot mount the image: Invalid argument"),
        ("mount", "ext4", "mount: mounting x failed: Input/output error",
         "cannot mount the disk: Input/output error"),
        ("mount", "overlay", "mount: x failed: No such device",
         "cannot lay the overlay: No such device"),
        ("cp", "voidbox", "cp: write error: No space left on device",
         "cannot hand over the host's files: No space left on device"),
    ],
)  # fmt: skip
def test_what_fails_is_told_and_ends_the_machine(
    guest: Guest, name: str, words: str, message: str, told: str
) -> None:
    guest.disk("vda", "voidbox-runtime")
    guest.disk("vdb", "voidbox-image")
    guest.disk("vdc", "voidbox-upper")
    fail(guest, name, words, message)
    commands, said = guest.run()
    assert said == f"<2>voidbox: cannot start from the disks: {told}\n"
    assert commands[-1] == "poweroff -f"
    assert not any(line.startswith("switch_root") for line in commands)


def test_no_disk_at_all(guest: Guest) -> None:
    commands, said = guest.run()
    assert "there is no disk voidbox-runtime: does this kernel have virtio_blk?" in said
    assert commands[-1] == "poweroff -f"
