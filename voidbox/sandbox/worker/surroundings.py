"""The files of the host that a worker needs: what its rules are made of."""

from __future__ import annotations

import os
import sys

import voidbox
from voidbox.errors import ConfigError
from voidbox.kvm import KVM_DEVICE
from voidbox.named_tuple import NamedTuple
from voidbox.vmm.config import MachineConfig

_SHARED_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
# The time zone of the log's lines; the name servers; how many processors glibc's allocator sees.
_SYSTEM = (
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/resolv.conf",
    "/sys/devices/system/cpu",
)
_PACKAGES = ("site-packages", "dist-packages")
_OWN_FDS = "/proc/self/fd/"
_OWN_BYTES = 1 << 30  # of what overlays and snapshots hold beside a disk's or the memory's bytes


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


class Walls(NamedTuple):
    """How far a worker gets.

    Attributes:
        level: of its jail; see voidbox.jail.levels.
        paths: what it opens after it has shut itself in.
        file_bytes: the longest that a file may get by it; None for no limit.
    """

    level: str
    paths: tuple[Path, ...]
    file_bytes: int | None

    def around(self, snapshot: str | None) -> Walls:
        """Return the same, with a snapshot's folder to read."""
        extra = () if snapshot is None else (Path(snapshot),)
        return self._replace(paths=(*self.paths, *extra))

    def with_disk(self, size_bytes: int) -> Walls:
        """Return the same, with room for a disk that is not there yet."""
        if self.file_bytes is None:
            return self
        return self._replace(file_bytes=self.file_bytes + size_bytes)


def walls(config: MachineConfig, level: str, own_folder: str | None = None) -> Walls:
    """Return the walls of a machine's worker.

    What is to be made in a folder that the worker does not get is made here.

    Args:
        config: with absolute paths.
        own_folder: one that it may write, or None.
    Raises:
        ConfigError: it cannot be made.
    """
    return Walls(level, tuple(_paths(config, own_folder)), _file_bytes(config))


def _paths(config: MachineConfig, own_folder: str | None) -> list[Path]:
    found = [
        *([Path(own_folder, True)] if own_folder is not None else []),
        *map(Path, libraries()),
        Path(config.kernel),
        *([Path(config.initramfs)] if config.initramfs else []),
        Path(KVM_DEVICE, True, True),
        Path("/dev/null", True, True),
    ]
    if config.vsock is not None and config.vsock.is_vhost:
        from voidbox.vsock.vhost import VHOST_DEVICE

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


def absolute(config: MachineConfig) -> MachineConfig:
    """Return the same machine with absolute paths: its worker is elsewhere."""
    folder = os.getcwd()

    def at(path: str) -> str:
        return os.path.join(folder, path)

    net, vsock = config.net, config.vsock
    if net is not None and net.pcap is not None:
        net = net._replace(pcap=at(net.pcap))
    if vsock is not None and vsock.path is not None:
        vsock = vsock._replace(path=at(vsock.path))
    return config._replace(
        kernel=at(config.kernel),
        initramfs=at(config.initramfs) if config.initramfs is not None else None,
        disks=tuple(disk.at(folder) for disk in config.disks),
        shares=tuple(share._replace(path=at(share.path)) for share in config.shares),
        net=net,
        vsock=vsock,
    )


def _file_bytes(config: MachineConfig) -> int | None:
    if any(not share.is_read_only for share in config.shares):
        return None  # files of any size may be meant
    return max([0, *(_size(disk.path) for disk in config.disks)]) + config.memory_bytes + _OWN_BYTES


def inherited_fds(config: MachineConfig) -> list[int]:
    """Return the descriptors that its disks are named by: files without a name."""
    paths = [disk.path for disk in config.disks]
    return [int(path.removeprefix(_OWN_FDS)) for path in paths if path.startswith(_OWN_FDS)]


def _size(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0  # whoever opens it says what is wrong
    try:
        return os.lseek(fd, 0, os.SEEK_END)  # of a device too
    except OSError:
        return 0
    finally:
        os.close(fd)


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
