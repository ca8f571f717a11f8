"""The files of the host that a sandbox's process needs: what its rules are made of."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple

import voidbox
from voidbox.errors import ConfigError
from voidbox.kvm.kvm import KVM_DEVICE
from voidbox.sandbox.snapshots.shelf import FOLDER as SNAPSHOTS
from voidbox.sandbox.snapshots.templates import FOLDER as TEMPLATES
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.vmm.config import MachineConfig
from voidbox.vsock.vhost import VHOST_DEVICE

_SHARED_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
# The time zone of the log's lines; the name servers; how many processors glibc's allocator sees.
_SYSTEM = (
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/resolv.conf",
    "/sys/devices/system/cpu",
)
_PACKAGES = ("site-packages", "dist-packages")


class Path(NamedTuple):
    """A file, or a folder with all that is in it.

    Attributes:
        path: absolute.
        is_device: read and written as a device, whatever the folder's mount says.
    """

    path: str
    is_writable: bool = False
    is_device: bool = False


def libraries() -> list[str]:
    """Return where code comes from: Python's, voidbox's, and shared libraries; with the system's.

    Of a folder that is voidbox's own working tree, or a program's, only the package.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    package = os.path.dirname(os.path.abspath(voidbox.__file__))
    found = [package, *_SHARED_LIBRARIES, *_SYSTEM]
    for entry in filter(os.path.isabs, sys.path):
        is_python = any(entry.startswith(f"{prefix}/") for prefix in prefixes)
        if is_python or entry.endswith(_PACKAGES) or entry != os.path.dirname(package):
            found.append(entry)
    return list(dict.fromkeys(found))


def surroundings(store: Store, record: SandboxRecord, config: MachineConfig) -> list[Path]:
    """Return what the process opens after it has shut itself in.

    What is to be made in a folder that it does not get is made here.

    Raises:
        ConfigError: it cannot be.
    """
    own = store.path(record.id)
    found = [
        Path(own, True),
        Path(f"{store.folder}/lock", True),
        Path(f"{store.folder}/allocations", True),
        *(Path(_made(f"{store.folder}/{name}"), True) for name in (SNAPSHOTS, TEMPLATES)),
        *map(Path, libraries()),
        Path(config.kernel),
        *([Path(config.initramfs)] if config.initramfs else []),
        Path(KVM_DEVICE, True, True),
        Path("/dev/null", True, True),
    ]
    if config.vsock is not None and config.vsock.is_vhost:
        found.append(Path(VHOST_DEVICE, True, True))
    for disk in config.disks:
        is_base = disk.is_read_only or disk.overlay is not None
        found.append(Path(disk.path, not is_base, is_block_device(disk.path)))
        if disk.overlay is not None:
            from voidbox.vmm.disk import prepare

            prepare(disk)
            found.append(Path(disk.overlay, not disk.is_read_only))
    found += [Path(share.path, not share.is_read_only) for share in config.shares]
    if config.net is not None and config.net.pcap is not None:
        _touch(config.net.pcap)
        found.append(Path(config.net.pcap, True))
    return found


def _made(folder: str) -> str:
    """Return a folder of the state folder's, which is there then."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    return folder


def is_block_device(path: str) -> bool:
    """Whether a disk is a device of the host's."""
    import stat

    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False  # whoever opens it says what is wrong


def _touch(path: str) -> None:
    """Have a file be there, with what it holds."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666))
    except OSError as error:
        raise ConfigError(f"cannot write --pcap {path}: {error.strerror}") from error
