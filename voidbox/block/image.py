"""Opens what a disk is kept in, and refuses what cannot be one before any machine starts."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from voidbox.block import host_io
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

SECTOR_BYTES = 512

_FREED_S = 3.0  # in which a machine whose process was killed has let go of its disks
_LOOK_S = 0.02

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISSOCK, "a socket"),
)


class Image(NamedTuple):
    """An open and locked file.

    Attributes:
        path: as the user gave it.
        fd: whoever has the image closes it, which unlocks it.
        size_bytes: a multiple of 512.
        is_device: it is a block device.
        mtime_ns: when it was changed; 0 for a device.
    """

    path: str
    fd: int
    size_bytes: int
    is_device: bool
    mtime_ns: int


def open_image(path: str, is_read_only: bool) -> Image:
    """Open a raw image or a block device, and lock it: for one writer, or any number of readers.

    Raises:
        ConfigError: it cannot be a disk; the message says what to do.
    """
    fd = open_file(path, is_read_only)
    try:
        status = os.fstat(fd)
        is_device = stat.S_ISBLK(status.st_mode)
        size_bytes = host_io.device_size(fd) if is_device else status.st_size
        if size_bytes < SECTOR_BYTES:
            raise ConfigError(
                f"disk {path}: {size_bytes} bytes are too few for a disk: "
                f"give it a size, with truncate -s 1G {path}"
            )
        if size_bytes % SECTOR_BYTES:
            raise ConfigError(
                f"disk {path}: {size_bytes} bytes are no multiple of {SECTOR_BYTES}: it was cut "
                f"short, or is no raw image; truncate -s %{SECTOR_BYTES} {path} fills it up"
            )
        return Image(path, fd, size_bytes, is_device, 0 if is_device else status.st_mtime_ns)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"disk {path}: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise


def open_file(path: str, is_read_only: bool, what: str = "disk") -> int:
    """Open a file or a block device and lock it; returns its descriptor.

    Raises:
        ConfigError: as open_image, for all but its size.
    """
    role, what = what, f"{what} {path if path.isprintable() else repr(path)}"
    try:
        mode = os.stat(path).st_mode
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise ConfigError(f"{what}: {kind} is no disk: give an image or block device")
        # NONBLOCK, in case it has become a FIFO. EXCL refuses a block device that is mounted.
        flags = os.O_RDONLY if is_read_only else os.O_RDWR
        if stat.S_ISBLK(mode) and not is_read_only:
            flags |= os.O_EXCL
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise ConfigError(f"{what}: {_explain(error, path, is_read_only)}") from error
    except ValueError as error:  # a NUL in it
        raise ConfigError(f"{what}: {error}") from error
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(mode):
            raise ConfigError(f"{what}: it was replaced while it was opened: try again")
        _lock(fd, fcntl.LOCK_SH if is_read_only else fcntl.LOCK_EX)
    except BlockingIOError:
        os.close(fd)
        hint = ""
        if role == "disk":
            hint = "; machines that only read it (,ro or ,overlay=FILE) can share it"
        raise ConfigError(
            f"{what}: it is in use by another machine: end that first{hint}"
        ) from None
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"{what}: it cannot be locked: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, operation: int) -> None:
    """Lock a file as flock(2) does, and wait for a machine that ends just now.

    Raises:
        BlockingIOError: another one has it.
    """
    deadline = time.monotonic() + _FREED_S
    while True:
        try:
            return fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def _explain(error: OSError, path: str, is_read_only: bool) -> str:
    if error.errno == errno.ENOENT and os.path.islink(path):
        return "it is a link to a file that is not there: remove the link, or put it right"
    if error.errno == errno.ENOENT:
        return f"there is no such file: truncate -s 8G {path} makes an empty disk"
    if error.errno == errno.EBUSY:
        return "the host itself uses it: unmount it first"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not is_read_only:
        return f"it cannot be written ({error.strerror}): add ,ro or ,overlay=FILE to only read it"
    return error.strerror or str(error)
