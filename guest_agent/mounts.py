"""What the host has the guest mount: its folders, and volumes on disks.

The host wrote a line a mount, in their order: KIND ACCESS SOURCE TARGET.

    virtiofs  SOURCE is the tag of a share
    ext4      SOURCE is the serial number of a disk; see volume_disk
"""

from __future__ import annotations

import errno
import os

from guest_agent import protocol, root, syscalls, volume_disk
from guest_agent.loop import log
from guest_agent.syscalls import MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REMOUNT

_DATA = {"virtiofs": "", "ext4": "discard"}

_capabilities: list[str] = []
_mounted: list[str] = []


def capabilities() -> tuple[str, ...]:
    """Return what the host is to know: that all is mounted, or what is not and why."""
    return tuple(_capabilities)


def set_up() -> None:
    """Mount all that the host names; what cannot be mounted is told, and the next one tried."""
    lines = _read()
    for line in lines:
        kind, access, source, target = line.split(" ", 3)
        try:
            _mount(kind, access == "ro", source, target)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "EIO")
            _capabilities.append(f"{protocol.CANNOT_MOUNT}{source}:{name}")
            log(f"cannot mount the host's {source} at {target}: {error.strerror}")
    if lines and not _capabilities:
        _capabilities.append(protocol.CAN_MOUNT)


def end() -> None:
    """Leave the file systems in order: nobody uses them any more. Raises no OSError."""
    while _mounted:
        target = _mounted.pop()
        try:
            syscalls.umount(target)
        except OSError:
            try:
                syscalls.mount("", target, "", MS_REMOUNT | MS_RDONLY)
            except OSError as error:
                log(f"cannot unmount {target}: {error.strerror}")


def _mount(kind: str, is_read_only: bool, source: str, target: str) -> None:
    target = os.path.realpath(target)
    os.makedirs(target, exist_ok=True)
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if is_read_only else 0)
    is_new = False
    if kind == "ext4":
        flags |= MS_NOATIME
        source = volume_disk.find(source)
        is_new = volume_disk.prepare(source, is_read_only)
    syscalls.mount(source, target, kind, flags, _DATA[kind])
    _mounted.append(target)
    if is_new:
        volume_disk.welcome(target)


def _read() -> list[str]:
    path = root.PREFIX + protocol.MOUNTS_PATH
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return [line.removesuffix("\n") for line in file]
    except FileNotFoundError:
        return []
