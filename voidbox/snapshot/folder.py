"""A snapshot's folder: made beside its place under a lock, and renamed when it is whole.

NAME.part/   being made, or left by a crash: whoever makes it holds a lock on the folder itself
NAME/        whole: machine.bin, memory, disk-N, and what else its owner keeps with it
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.snapshot import files
from voidbox.snapshot import memory as memory_file
from voidbox.snapshot.format import NAME, open_own
from voidbox.storage import durable

PART = ".part"
_MODE = 0o700
_DISK = "disk-"


class Sizes(NamedTuple):
    """Of all files of a snapshot: as long as they say they are, and what they take on the disk."""

    apparent_bytes: int
    disk_bytes: int


class Draft:
    """A snapshot in the making. Thread: one caller's.

    Attributes:
        path: the folder to put files into.
    Raises:
        ConfigError: there is a snapshot of this name, or one is being made.
        HostError: the folder cannot be made.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(folder)
        self.path = self._folder + PART
        self._fd = -1
        if os.path.lexists(self._folder):
            raise ConfigError(f"snapshot {folder}: it is there already: choose another name")
        try:
            while self._fd < 0:
                self._fd = self._make()
        except OSError as error:
            raise durable.failure("make", self.path, error) from error

    def _make(self) -> int:
        """Make and lock the folder; -1 if somebody else swept it in between."""
        with suppress(FileExistsError):
            os.mkdir(self.path, _MODE)
        fd = _lock(self.path)
        if fd is None:
            raise ConfigError(f"snapshot {self._folder}: it is being made right now")
        if fd >= 0:
            for name in os.listdir(fd):  # of one that crashed
                os.unlink(name, dir_fd=fd)
        return fd

    def file(self, name: str) -> str:
        """Return the path of a file in it."""
        return os.path.join(self.path, name)

    def commit(self) -> None:
        """Bring all of it to the disk and give it its name.

        Raises:
            HostError: that failed; abort() is due.
        """
        try:
            for name in os.listdir(self.path):
                files.settle(self.file(name))
            durable.sync_folder(self.path)
            os.rename(self.path, self._folder)
            durable.sync_folder(os.path.dirname(self._folder))
        except OSError as error:
            raise durable.failure("make", f"snapshot {self._folder}", error) from error
        self._close()

    def abort(self) -> None:
        """Remove what there is of it. Idempotent; does nothing after commit()."""
        if self._fd >= 0:
            _remove(self.path)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def disk_file(index: int) -> str:
    """Return what the copy of a machine's disk is called."""
    return f"{_DISK}{index}"


def take_over(source: str, target: str) -> None:
    """Move a machine's files from one folder to another, and nothing else that is in there.

    Whoever has written them may be hostile. It has no way to `target`: what is there is looked at.

    Raises:
        OSError: one is missing, or is no file.
    """
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        disks = (name for name in os.listdir(fd) if name.startswith(_DISK))
        for name in (NAME, memory_file.NAME, *disks):
            os.rename(name, f"{target}/{name}", src_dir_fd=fd)
            status = os.lstat(f"{target}/{name}")
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise OSError(errno.EINVAL, f"{name} is not a file of its own")
    finally:
        os.close(fd)


def _lock(path: str) -> int | None:
    """Open and lock a folder; None if somebody has it, -1 if it is gone. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except BlockingIOError:
        os.close(fd)
        return None
    except FileNotFoundError:
        pass
    os.close(fd)
    return -1


def _remove(path: str) -> None:
    import shutil  # its import costs more than a restore, which needs none of it

    shutil.rmtree(path, ignore_errors=True)


def sweep(parent: str) -> list[str]:
    """Remove what crashes have left of snapshots in a folder; returns their paths.

    Raises:
        HostError: the folder cannot be read.
    """
    swept = []
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.failure("read", parent, error) from error
    for name in names:
        path = os.path.join(parent, name)
        if name.endswith(PART) and os.path.isdir(path) and not os.path.islink(path):
            with suppress(OSError):
                fd = _lock(path)
                if fd is not None and fd >= 0:
                    _remove(path)
                    os.close(fd)
                    swept.append(path)
    return swept


def use_memory(folder: str) -> int:
    """Open a snapshot's memory, and say that it is in use until the last copy of it is closed.

    Raises:
        ConfigError: it is not there, or not ours.
    """
    fd = open_own(os.path.join(folder, memory_file.NAME))
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def open_memory(folder: str, size_bytes: int) -> int:
    """As use_memory(), of so many bytes.

    Raises:
        ConfigError: it is not there, not ours, or of another size.
    """
    fd = use_memory(folder)
    found = os.fstat(fd).st_size
    if found != size_bytes:
        os.close(fd)
        path = os.path.join(folder, memory_file.NAME)
        raise ConfigError(
            f"snapshot {path}: it has {found} bytes of {size_bytes}: it was cut short"
        )
    return fd


def is_in_use(folder: str) -> bool:
    """Whether a machine has this snapshot's memory mapped."""
    try:
        fd = os.open(os.path.join(folder, memory_file.NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(fd)


def sizes(folder: str) -> Sizes:
    """Return how large a snapshot is."""
    stats = [entry.stat(follow_symlinks=False) for entry in os.scandir(folder)]
    return Sizes(sum(each.st_size for each in stats), sum(each.st_blocks for each in stats) * 512)
