"""What container engines need of a root on disks: folders that no overlay lies over.

An engine lays overlays of its own, and the kernel lets none write to a folder that is itself an
overlay's. So where engines store images and containers, there lies a folder of the writable disk
itself.
"""

from __future__ import annotations

import os

from guest_agent import root, syscalls
from guest_agent.syscalls import MS_BIND

# Docker's, containerd's, and Podman's with Buildah's; of root each, as their packages make them.
STORES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers")
DISK = "/etc/voidbox/disk"  # below PREFIX; boot_init.sh mounts it


def set_up() -> None:
    """Mount a folder of the disk at each of them that holds nothing of the image's.

    Raises:
        OSError: one cannot be made or mounted.
    """
    disk = root.PREFIX + DISK
    if not os.path.isdir(disk):
        return
    try:
        for store in STORES:
            _mount(f"{disk}/{os.path.basename(store)}", os.path.realpath(store))
    finally:
        syscalls.umount(disk)


def _mount(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if not os.listdir(target):
        os.makedirs(source, exist_ok=True)
        syscalls.mount(source, target, "", MS_BIND)
