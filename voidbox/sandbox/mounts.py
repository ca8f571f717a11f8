"""What the guest's agent mounts before it serves anybody: the file that tells it, and its answer.

A line a mount, as guest_agent/mounts.py reads it: KIND ACCESS SOURCE TARGET.
"""

from __future__ import annotations

import stat
from collections.abc import Collection

from voidbox.agent import protocol
from voidbox.agent.core import printable
from voidbox.boot import newc
from voidbox.errors import ConfigError
from voidbox.vmm.config import DiskConfig, MachineConfig, ShareConfig

WORKSPACE_TAG, WORKSPACE_PATH = "workspace", "/workspace"
_SHARED, _DISK = "virtiofs", "ext4"
_MINIMAL = "use the minimal kernel"
_WHY_NOT = {
    (_SHARED, "ENODEV"): "its kernel, {kernel}, has no virtio-fs: " + _MINIMAL,
    (_DISK, "ENODEV"): "its kernel, {kernel}, has no ext4: " + _MINIMAL,
    (_DISK, "ENOENT"): "its image has no mke2fs: have its root on a disk, as voidbox's own has",
    (_DISK, "ENODATA"): "it is blank: use it once without :ro",
    (_DISK, "EROFS"): "it was in use when its machine was killed: use it once without :ro",
    (_DISK, "EUCLEAN"): "its file system is damaged",
}


def mount_files(config: MachineConfig) -> tuple[newc.Entry, ...]:
    """Return what tells the agent what to mount, outer folders before those in them."""
    mounts = _mounts(config)
    if not mounts:
        return ()
    lines = []
    for mount in sorted(mounts, key=lambda mount: mount.target.count("/")):
        access = "ro" if mount.is_read_only else "rw"
        kind = _DISK if isinstance(mount, DiskConfig) else _SHARED
        lines.append(f"{kind} {access} {_source(mount)} {mount.target}\n")
    content = "".join(lines).encode("utf-8", "surrogateescape")
    return (newc.Entry(protocol.MOUNTS_PATH.lstrip("/"), stat.S_IFREG | 0o644, content),)


def check_mounted(config: MachineConfig, capabilities: Collection[str]) -> None:
    """Check that the guest has mounted all that it was to.

    Args:
        capabilities: what its agent says of itself.
    Raises:
        ConfigError: it has not, and what to do.
    """
    mounts = _mounts(config)
    if not mounts or protocol.CAN_MOUNT in capabilities:
        return
    failed = dict(
        word.removeprefix(protocol.CANNOT_MOUNT).partition(":")[::2]
        for word in capabilities
        if word.startswith(protocol.CANNOT_MOUNT)
    )
    for mount in mounts:
        reason = failed.get(_source(mount))
        if reason is None and failed:
            continue
        raise ConfigError(_explain(config, mount, reason))
    raise ConfigError("the guest's agent says nothing of sense about what it mounts")


def _explain(config: MachineConfig, mount: ShareConfig | DiskConfig, reason: str | None) -> str:
    kind = _DISK if isinstance(mount, DiskConfig) else _SHARED
    if reason is None:
        why = "its image's agent is older than voidbox: build the image again"
    elif (kind, reason) in _WHY_NOT:
        why = _WHY_NOT[kind, reason].format(kernel=config.kernel)
    else:
        why = f"its kernel says {printable(reason)[:40]}"
    if isinstance(mount, DiskConfig):
        return f"the guest cannot mount the volume {mount.path} at {mount.target}: {why}"
    hint = ", or have it copied, with the mode copy" if mount.tag == WORKSPACE_TAG else ""
    return f"the guest cannot share {mount.path}, as {mount.target}: {why}{hint}"


def _mounts(config: MachineConfig) -> list[ShareConfig | DiskConfig]:
    mounts: list[ShareConfig | DiskConfig] = [*config.shares, *config.disks]
    return [mount for mount in mounts if mount.target]


def _source(mount: ShareConfig | DiskConfig) -> str:
    return mount.serial if isinstance(mount, DiskConfig) else mount.tag
