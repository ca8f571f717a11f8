"""What a machine is made of, checked before anything is made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from voidbox.boot import newc
from voidbox.errors import ConfigError
from voidbox.memory import PAGE_BYTES
from voidbox.named_tuple import NamedTuple

if TYPE_CHECKING:  # a machine without a network starts sooner
    import socket

    from voidbox.nat.config import NatConfig

CPUS_MAX = 8
MEMORY_BYTES_MIN = 16 << 20
MEMORY_BYTES_DEFAULT = 512 << 20
VSOCK_CID_MIN = 3  # 0 to 2 are the hypervisor, this machine, and the host
VSOCK_CID_MAX = (1 << 32) - 2

# Words that every kernel gets before the user's own, and why:
_DEFAULT_CMDLINE = (
    "console=ttyS0",  # the console that voidbox has
    "quiet",  # each console byte costs; loglevel=7 undoes it
    "panic=-1",  # a panic ends the machine instead of hanging it
    "reboot=k",  # by the i8042: one write, on kernels without ACPI too
    "8250.nr_uarts=2",  # do not probe for ports that do not exist
    "pci=noearly",  # an empty PCI bus: do not scan it before the drivers do
    "tsc=reliable",  # KVM keeps it: no watchdog, no calibration loop
    "cryptomgr.notests",
)
DEFAULT_CMDLINE = " ".join(_DEFAULT_CMDLINE)
# With a network, which has no IPv6: else programs try it first and wait.
_NETWORK_CMDLINE = "ipv6.disable=1"

_TAG = "[A-Za-z0-9_-]{1,31}"
DISK_FORM = "PATH[,ro][,overlay=FILE][,serial=TEXT]"

_MEMORY = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([KMGT]?)I?B?"
_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_memory(text: str) -> int:
    """Parse 512M, 4G, 1.5G or 256 (MiB) into bytes.

    Raises:
        ConfigError: no such quantity.
    """
    match = re.fullmatch(_MEMORY, text.strip().upper())
    if match is None:
        raise ConfigError(f"no amount of memory: {text!r}; write it as 512M or 4G")
    return int(float(match[1]) * _SUFFIXES[match[2]]) // PAGE_BYTES * PAGE_BYTES


def parse_disk(text: str) -> DiskConfig:
    """Parse PATH[,ro][,overlay=FILE][,serial=TEXT]; a comma in a path is written twice.

    Raises:
        ConfigError: it is not of this form.
    """
    # A NUL, which no path has, keeps the place of a comma.
    path, *words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    if not path:
        raise ConfigError(f"disk {text!r}: give {DISK_FORM}")
    disk = DiskConfig(path)
    for word in words:
        key, equals, value = word.partition("=")
        if word == "ro":
            disk = disk._replace(is_read_only=True)
        elif key == "overlay" and value:
            disk = disk._replace(overlay=value)
        elif key == "serial" and equals:
            disk = disk._replace(serial=value)
        else:
            raise ConfigError(f"disk {text!r}: {word!r} is not known: give {DISK_FORM}")
    return disk


def host_memory_bytes() -> int:
    """Return the host's RAM."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class VsockConfig(NamedTuple):
    """A socket device between the host and the guest.

    Attributes:
        cid: the guest's address, 3 to 2^32 - 2.
        path: the Unix socket that host programs connect to; None for no other programs than this.
        is_vhost: let the host kernel's vhost-vsock carry the data; the address is then one of the
            whole host's, and `path` means nothing.
        dial: connects to a host program for the guest; see vsock.unix. None: this process does.
    """

    cid: int = 3
    path: str | None = None
    is_vhost: bool = False
    dial: Callable[[int], socket.socket] | None = None

    def validate(self) -> None:
        """Check the address; the path is checked when it is bound.

        Raises:
            ConfigError: no guest's address.
        """
        if not VSOCK_CID_MIN <= self.cid <= VSOCK_CID_MAX:
            raise ConfigError(f"CID {self.cid}: choose {VSOCK_CID_MIN} to {VSOCK_CID_MAX}")


class DiskConfig(NamedTuple):
    """A virtio-blk disk.

    Attributes:
        path: a raw image or a block device.
        is_read_only: the guest cannot write.
        overlay: a file of this machine's own that gets what the guest writes, made if it is not
            there; `path` is then only read, and any number of machines may share it.
        serial: how the guest tells its disks apart, up to 20 characters of ASCII.
        target: where the guest's agent mounts its ext4; "" for a disk that it leaves alone.
        is_own: `path` is this machine's alone, to be copied with it into snapshots.
    """

    path: str
    is_read_only: bool = False
    overlay: str | None = None
    serial: str = ""
    target: str = ""
    is_own: bool = False

    def at(self, folder: str) -> DiskConfig:
        """Return the same disk with absolute paths, those that were not taken from `folder`."""
        overlay = os.path.join(folder, self.overlay) if self.overlay is not None else None
        return self._replace(path=os.path.join(folder, self.path), overlay=overlay)

    def __str__(self) -> str:
        """What parse_disk() reads."""
        words = [self.path]
        if self.is_read_only:
            words.append("ro")
        if self.overlay is not None:
            words.append(f"overlay={self.overlay}")
        if self.serial:
            words.append(f"serial={self.serial}")
        return ",".join(word.replace(",", ",,") for word in words)


class ShareConfig(NamedTuple):
    """A folder of the host that the guest can mount, by virtio-fs.

    Attributes:
        path: the folder.
        tag: what the guest calls it.
        is_read_only: the guest cannot write.
        target: where the guest's agent mounts it; "" for a folder that it leaves alone.
        cache: what the guest may keep: auto, always or none; see voidbox/fuse/cache.py.
    """

    path: str
    tag: str
    is_read_only: bool = False
    target: str = ""
    cache: str = "auto"

    def validate(self) -> None:
        """Check the tag and the folder; it is opened when the machine is made.

        Raises:
            ConfigError: no tag, no folder, or all of the host.
        """
        if not re.fullmatch(_TAG, self.tag):
            raise ConfigError(f"share {self.tag!r}: give 1 to 31 letters, digits, _ or -")
        if not os.path.isdir(self.path):
            raise ConfigError(f"cannot share {self.path}: it is no folder")
        if os.path.samefile(self.path, "/"):
            raise ConfigError("cannot share /: that is all of this host; name a folder of its own")


class MachineConfig(NamedTuple):
    """A machine to build.

    Attributes:
        kernel: path of a bzImage or an uncompressed ELF vmlinux.
        initramfs: path of an initramfs, or None.
        cmdline: the kernel command line; see kernel_cmdline.
        memory_bytes: guest RAM, a multiple of a page.
        cpus: 1 to CPUS_MAX.
        self_extract: let a bzImage unpack itself, with KASLR, instead of the faster host.
        vsock: the socket device, or None.
        serial_line: a second serial port, for programs; see Machine.connect_serial.
        net: the network device and what it leads to, or None.
        extra_files: added to the initramfs, which must be there: only the guest gets to see them.
        disks: virtio-blk disks, in the guest's order: vda, vdb …
        shares: folders of the host.
        balloon: a device by which the guest gives memory back.
    """

    kernel: str
    initramfs: str | None = None
    cmdline: str = DEFAULT_CMDLINE
    memory_bytes: int = MEMORY_BYTES_DEFAULT
    cpus: int = 1
    self_extract: bool = False
    vsock: VsockConfig | None = None
    serial_line: bool = False
    extra_files: tuple[newc.Entry, ...] = ()
    net: NatConfig | None = None
    disks: tuple[DiskConfig, ...] = ()
    shares: tuple[ShareConfig, ...] = ()
    balloon: bool = False

    @property
    def kernel_cmdline(self) -> str:
        """The whole command line, with what the devices need."""
        return self.cmdline if self.net is None else f"{self.cmdline} {_NETWORK_CMDLINE}".strip()

    def validate(self) -> None:
        """Check the quantities; the files are checked when they are loaded.

        Raises:
            ConfigError: a quantity is out of range; the message gives the range.
        """
        if not 1 <= self.cpus <= CPUS_MAX:
            raise ConfigError(f"{self.cpus} CPUs: choose 1 to {CPUS_MAX}")
        if self.memory_bytes < MEMORY_BYTES_MIN:
            raise ConfigError(
                f"{self.memory_bytes / (1 << 20):g} MiB of memory: "
                f"choose at least {MEMORY_BYTES_MIN >> 20}M"
            )
        host_bytes = host_memory_bytes()
        if self.memory_bytes > host_bytes:
            raise ConfigError(
                f"{self.memory_bytes >> 20} MiB of memory: "
                f"this host has {host_bytes >> 20}M in all; choose less"
            )
        if self.vsock is not None:
            self.vsock.validate()
        for share in self.shares:
            share.validate()
