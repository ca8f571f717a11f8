"""A root on disks: what the guest mounts, and what the host keeps of it.

boot.cpio, a small initramfs, finds the disks by their serial numbers, mounts the image with a
writable overlay, and hands over to the agent, which lies in a runtime of its own: see
voidbox/setup/guest/boot_init.sh and guest_agent/root.py.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from voidbox.agent import protocol
from voidbox.boot import newc
from voidbox.errors import ConfigError, HostError
from voidbox.named_tuple import NamedTuple
from voidbox.vmm.config import DiskConfig, MachineConfig

# Serial numbers
RUNTIME, IMAGE, UPPER = "voidbox-runtime", "voidbox-image", "voidbox-upper"
MODULES = "voidbox-modules"
UPPER_FILE = "machine/disk.img"  # in a sandbox's folder; see state_folder.MACHINE
DISK_BYTES_DEFAULT = 8 << 30
DISK_BYTES_MIN = 16 << 20  # ext4 with its journal
_DISK_BYTES_MAX = 16 << 40
_BLOCK_BYTES = 4096
# struct erofs_super_block, at 1024: __le32 magic, EROFS_SUPER_MAGIC_V1
_EROFS_MAGIC_OFFSET, _EROFS_MAGIC = 1024, (0xE0F5E1E2).to_bytes(4, "little")
_DEFAULT_USER = "root"


class Root(NamedTuple):
    """Where a guest's root is.

    Attributes:
        boot: the initramfs that mounts it.
        runtime: the disk with the agent; also the root, if there is no image.
        image: the image's file system; "" for none.
        disk_bytes: of the disk that takes what the guest writes; 0 for its memory.
        digest: "sha256:…", of an image in the store.
        user: of commands that name none, as the image has it.
        workdir: that the image wants to be there.
        volumes: folders that it wants to be there as well.
        modules: the disk with the kernel's modules, for an image; "" for none.
        init: of the image, that is to be PID 1; "" for the agent.
    """

    boot: str
    runtime: str
    image: str = ""
    disk_bytes: int = 0
    digest: str = ""
    user: str = ""
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    modules: str = ""
    init: str = ""

    def to_json(self) -> dict[str, object]:
        """Return it as a record keeps it."""
        return {**self._asdict(), "volumes": list(self.volumes)}

    @classmethod
    def from_json(cls, values: dict[str, object]) -> Root:
        """Return what `to_json` made.

        Raises:
            ConfigError: it is none.
        """
        known: dict[str, Any] = {key: values[key] for key in cls._fields if key in values}
        disk_bytes, volumes = known.get("disk_bytes", 0), known.get("volumes", [])
        if type(disk_bytes) is not int or not isinstance(volumes, list):
            raise ConfigError(f"no root: {values!r}")
        known["volumes"] = tuple(volumes)
        texts = [known[key] for key in known if key not in ("disk_bytes", "volumes")]
        if not all(isinstance(text, str) for text in (*texts, *volumes)):
            raise ConfigError(f"no root: {values!r}")
        try:
            return cls(**known)
        except TypeError:
            raise ConfigError(f"no root: {values!r}") from None

    def disks(self, upper: str | None) -> tuple[DiskConfig, ...]:
        """Return the disks to give to the guest.

        Args:
            upper: the file behind the disk that it writes; None for none.
        """
        disks = [DiskConfig(self.runtime, is_read_only=True, serial=RUNTIME)]
        if self.image:
            disks.append(DiskConfig(self.image, is_read_only=True, serial=IMAGE))
        if self.modules:
            disks.append(DiskConfig(self.modules, is_read_only=True, serial=MODULES))
        if upper is not None:
            disks.append(DiskConfig(upper, serial=UPPER, is_own=True))
        return tuple(disks)

    def applied_to(self, config: MachineConfig, upper: str | None) -> MachineConfig:
        """Return a machine with this root; its disks come after those that it has."""
        return config._replace(
            initramfs=self.boot,
            disks=(*config.disks, *self.disks(upper)),
            extra_files=(*config.extra_files, *self.files()),
        )

    def files(self) -> tuple[newc.Entry, ...]:
        """Return what tells the agent of the image; of its own it knows all."""
        if not self.image:
            return ()
        values = [("user", self.user or _DEFAULT_USER), ("workdir", self.workdir)]
        values += [("init", self.init)] if self.init else []
        values += [("volume", path) for path in self.volumes]
        lines = [f"{key} {value}\n" for key, value in values if "\n" not in value]
        path = protocol.IMAGE_PATH.lstrip("/")
        return (newc.Entry(path, stat.S_IFREG | 0o444, "".join(lines).encode()),)


def is_file_system(path: str) -> bool:
    """Whether a file is an image's file system, rather than an initramfs."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            file.seek(_EROFS_MAGIC_OFFSET)
            return file.read(len(_EROFS_MAGIC)) == _EROFS_MAGIC
    except OSError:
        return False  # whoever loads it says what is wrong


def check_disk_bytes(size: int) -> int:
    """Return the size of a disk, in whole blocks; 0 stays 0.

    Raises:
        ConfigError: too little for a file system, or more than one can have.
    """
    if size and not DISK_BYTES_MIN <= size <= _DISK_BYTES_MAX:
        raise ConfigError(
            f"a disk of {size >> 20} MiB: choose {DISK_BYTES_MIN >> 20}M to "
            f"{_DISK_BYTES_MAX >> 40}T, or 0 to keep in memory what the guest writes"
        )
    return size // _BLOCK_BYTES * _BLOCK_BYTES


def make_upper(path: str, size: int) -> None:
    """Make the file behind the disk that a guest writes, blank and without taking room yet.

    One that is there stays: it has what the guest wrote before.

    Raises:
        HostError: it cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise _failure(path, size, error) from error
    try:
        os.truncate(fd, size)
    except OSError as error:
        os.unlink(path)
        raise _failure(path, size, error) from error
    finally:
        os.close(fd)


class TemporaryUpper:
    """Such a file without a name: it is gone with this process, however that ends.

    Raises:
        HostError: it cannot be made.

    Attributes:
        path: by which this process can open it.
    """

    def __init__(self, size: int) -> None:
        folder = _temporary_folder()
        try:
            self._fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # not every file system has files without a name
            import tempfile  # what a sandbox's process does without

            self._fd, name = tempfile.mkstemp(prefix="voidbox-disk-", dir=folder)
            os.unlink(name)
        self.path = f"/proc/self/fd/{self._fd}"
        try:
            os.truncate(self._fd, size)
        except OSError as error:
            self.close()
            raise _failure(folder, size, error) from error

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TemporaryUpper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _temporary_folder() -> str:
    """Return where much may be written: /tmp is memory on many hosts."""
    for folder in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    return os.getcwd()


def _failure(path: str, size: int, error: OSError) -> HostError:
    number = error.errno or 0
    if number in (errno.EFBIG, errno.EINVAL):
        why = f"the host's file system has no files of {size >> 20} MiB: choose a smaller disk"
    else:
        why = os.strerror(number)
    return HostError(f"cannot make the sandbox's disk in {path}: {why}", number)
