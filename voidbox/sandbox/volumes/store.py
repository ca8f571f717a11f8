"""The volumes of a state folder, on the disk.

    STATE/volumes/lock             held while a volume comes or goes
    STATE/volumes/NAME/            0700
        volume.json                what is known of it
        disk.img                   the disk, sparse; locked (flock) by whoever has it
    STATE/volumes/.new-NAME, .removed-NAME     half made, half removed: the next change deletes it

The lock is the one that every disk takes when it is opened: for one writer, or any readers.
"""

from __future__ import annotations

import builtins
import fcntl
import os
import re
import time
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted
from voidbox.storage.locking import FileLock
from voidbox.storage.place import make_state_folder

VERSION = 1
SIZE_BYTES_DEFAULT = 8 << 30
SIZE_BYTES_MIN, SIZE_BYTES_MAX = 16 << 20, 16 << 40  # ext4 with its journal; what ext4 can have
_BLOCK_BYTES, _STAT_BLOCK_BYTES = 4096, 512
_DISK, _DESCRIPTION = "disk.img", "volume.json"
_NEW, _REMOVED = ".new-", ".removed-"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"


class Volume(NamedTuple):
    """A volume at one moment.

    Attributes:
        path: of its disk.
        size_bytes: what it may come to hold.
        used_bytes: what it takes on the host's disk.
        created_at: seconds since 1970.
        is_in_use: a machine has it.
    """

    name: str
    path: str
    size_bytes: int
    used_bytes: int
    created_at: float
    is_in_use: bool


def is_name(text: str) -> bool:
    """Whether a volume may have this name."""
    return re.fullmatch(_NAME, text) is not None


class VolumeStore:
    """The volumes in a state folder. Thread: any; processes: any number.

    Args:
        folder: the state folder, made if it does not exist; None for $VOIDBOX_STATE, else the
            user's own.

    Raises:
        ConfigError: it cannot be made, or is somebody else's.

    Attributes:
        path: of the folder of volumes, absolute.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.path = f"{make_state_folder(folder, 'volumes')}/volumes"

    def create(self, name: str, size_bytes: int) -> Volume:
        """Make a volume, which takes no room yet.

        Raises:
            ConfigError: the name is none, or is taken; no volume can have this size.
            HostError: it cannot be made; nothing is left then.
        """
        _check_name(name)
        if not SIZE_BYTES_MIN <= size_bytes <= SIZE_BYTES_MAX:
            raise ConfigError(
                f"a volume of {size_bytes >> 20} MiB: choose {SIZE_BYTES_MIN >> 20}M to "
                f"{SIZE_BYTES_MAX >> 40}T"
            )
        size_bytes -= size_bytes % _BLOCK_BYTES
        beside = f"{self.path}/{_NEW}{name}"
        with self._lock():
            self._tidy()
            if os.path.lexists(f"{self.path}/{name}"):
                raise ConfigError(f"there is a volume {name} already")
            try:
                os.mkdir(beside, 0o700)
                _make_disk(f"{beside}/{_DISK}", size_bytes)
                values = {"version": VERSION, "name": name, "created_at": time.time()}
                durable.write_json(f"{beside}/{_DESCRIPTION}", values)
                os.rename(beside, f"{self.path}/{name}")
                durable.sync_folder(self.path)
            except OSError as error:
                raise durable.failure("make", f"{self.path}/{name}", error) from error
            return self._load(name)

    def find(self, name: str) -> Volume:
        """Return a volume.

        Raises:
            ConfigError: there is none of this name.
            HostError: it cannot be read.
        """
        if isinstance(name, str) and is_name(name):
            try:
                return self._load(name)
            except (FileNotFoundError, NotADirectoryError):
                pass
        raise ConfigError(f"no volume {name!r}: voidbox volume create {name} makes one")

    def list(self) -> builtins.list[Volume]:
        """Return all volumes, by name.

        Raises:
            HostError: they cannot be read.
        """
        found = []
        for name in self._entries():
            if is_name(name):
                try:
                    found.append(self._load(name))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # just removed, or the lock
        return found

    def remove(self, name: str) -> None:
        """Delete a volume with all that is on it.

        Raises:
            ConfigError: there is none of this name, or a machine has it.
            HostError: it cannot be deleted.
        """
        with self._lock():
            self._tidy()
            path = self.find(name).path
            fd = _try_lock(path, fcntl.LOCK_EX)
            if fd is None:
                raise ConfigError(f"a sandbox has the volume {name}: stop it first")
            gone = f"{self.path}/{_REMOVED}{name}"
            try:
                os.rename(f"{self.path}/{name}", gone)
            except OSError as error:
                raise durable.failure("delete", f"{self.path}/{name}", error) from error
            finally:
                os.close(fd)
        durable.remove_tree(gone)

    def check_free(self, name: str, *, is_read_only: bool) -> Volume:
        """Return a volume that a machine can have now.

        It may be taken in the next moment: whoever opens its disk is told then.

        Raises:
            ConfigError: there is none of this name, or another machine writes it or reads it.
        """
        volume = self.find(name)
        fd = _try_lock(volume.path, fcntl.LOCK_SH if is_read_only else fcntl.LOCK_EX)
        if fd is None:
            hint = "" if is_read_only else "; several can have it with :ro"
            raise ConfigError(f"another sandbox has the volume {name}: stop that first{hint}")
        os.close(fd)
        return volume

    def _lock(self) -> FileLock:
        return FileLock(f"{self.path}/lock")

    def _entries(self) -> builtins.list[str]:
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise durable.failure("read", self.path, error) from error

    def _tidy(self) -> None:
        """Delete what killed makers and removers have left. Lock: held."""
        for name in self._entries():
            if name.startswith((_NEW, _REMOVED)):
                durable.remove_tree(f"{self.path}/{name}")

    def _load(self, name: str) -> Volume:
        folder = f"{self.path}/{name}"
        status = os.stat(f"{folder}/{_DISK}")
        try:
            values = durable.read_json(f"{folder}/{_DESCRIPTION}", VERSION)
        except Corrupted:  # what it says can be done without; what is on the disk cannot
            values = {"created_at": status.st_mtime}
        return Volume(
            name,
            f"{folder}/{_DISK}",
            status.st_size,
            status.st_blocks * _STAT_BLOCK_BYTES,
            _number(values, "created_at"),
            _is_locked(status),
        )


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not is_name(name) or name == "lock":
        raise ConfigError(
            f"{name!r} cannot be a volume's name: up to 63 letters, digits, '_', '-' and '.' make "
            "one; it begins with a letter or a digit"
        )


def _make_disk(path: str, size_bytes: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, size_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)


def _try_lock(path: str, kind: int) -> int | None:
    """Return a descriptor that holds a lock until it is closed; None if others are in the way."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise durable.failure("lock", path, error) from error
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _is_locked(status: os.stat_result) -> bool:
    """Whether anybody has a lock on a file. Nobody who tries to get one is in its way meanwhile.

    proc_locks(5): "1: FLOCK ADVISORY WRITE 708 fd:01:1234 0 EOF", the device in hexadecimal. Some
    file systems call themselves another device there than in stat(2), one of major number 0.
    """
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    files = [row[5] for row in rows if len(row) > 5 and row[1] == "FLOCK"]
    return any(
        file.endswith(f":{status.st_ino}")
        and (file.startswith(f"{device}:") or os.major(status.st_dev) == 0)
        for file in files
    )


def _number(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
