"""The kernel's modules in an image's root: a disk with all of them, where the host has one."""

from __future__ import annotations

import contextlib
import os
import stat

from guest_agent import root, syscalls, volume_disk
from guest_agent.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY

_SERIAL = "voidbox-modules"
_FOLDER = "/lib/modules"
_MODPROBE = "/proc/sys/kernel/modprobe"  # what the kernel runs to get a module
_KMOD = "/sbin/modprobe"  # what it runs by default


def set_up() -> None:
    """Have programs, and the kernel itself, find modules when they want one.

    From the disk by the image's own modprobe; without one of the two, the few of the runtime.

    Raises:
        OSError: the disk cannot be mounted.
    """
    try:
        disk = volume_disk.find(_SERIAL)
    except OSError:
        disk = ""
    if disk:
        _mount(disk, f"{os.path.realpath(_FOLDER)}/{os.uname().release}")
    if not disk or not os.path.exists(_KMOD):
        with contextlib.suppress(FileNotFoundError), open(_MODPROBE, "w", encoding="ascii") as file:
            file.write(f"{root.PREFIX}/usr/lib/voidbox/bin/modprobe")


def _mount(disk: str, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    syscalls.mount(disk, folder, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, "")
    with open(f"{folder}/modules.devname", encoding="ascii") as file:
        make_devices(file.read(), "/dev")


def make_devices(text: str, folder: str) -> None:
    """Make the devices that load their module when they are opened, as kmod does at a start.

    Args:
        text: modules.devname: MODULE NAME and c or b with MAJOR:MINOR a line.
    """
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        _, name, number = line.split()
        path = f"{folder}/{name}"
        major, minor = map(int, number[1:].split(":"))
        kind = stat.S_IFCHR if number[0] == "c" else stat.S_IFBLK
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileExistsError):  # the module is there already
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
