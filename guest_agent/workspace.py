"""A folder of the host that the guest shares, at /workspace, as what the host wrote says."""

from __future__ import annotations

import errno
import os

from guest_agent import protocol, root, syscalls
from guest_agent.loop import log
from guest_agent.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY

# cache=mmap: reads and writes go to the host, only what programs map is kept in memory here.
_OPTIONS = "trans=virtio,version=9p2000.L,cache=mmap,msize={}"

_capabilities: list[str] = []


def capabilities() -> tuple[str, ...]:
    """Return what the host is to know: that the folder is there, or why it is not."""
    return tuple(_capabilities)


def set_up() -> None:
    """Mount the folder, if the host shares one."""
    settings = _read_settings()
    if not settings:
        return
    target = settings["path"]
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if settings["access"] == "ro" else 0)
    try:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(settings["tag"], target, "9p", flags, _OPTIONS.format(settings["msize"]))
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        _capabilities.append(f"{protocol.CANNOT_SHARE}{name}")
        log(f"cannot mount the host's folder at {target}: {error.strerror}")
    else:
        _capabilities.append(protocol.CAN_SHARE)


def _read_settings() -> dict[str, str]:
    try:
        with open(root.PREFIX + protocol.WORKSPACE_PATH, encoding="ascii") as file:
            return dict(line.split() for line in file)
    except FileNotFoundError:
        return {}
