"""Copies of disks, and what it takes for a file to be there after a power cut."""

from __future__ import annotations

import os

from voidbox.snapshot.memory import copy_some, extents, share_blocks
from voidbox.storage import durable

_COPY_BYTES = 8 << 20
READ_ONLY_MODE = 0o400


def clone(source: str, target: str) -> int:
    """Copy a file to a new one: its blocks shared where the file system can, else its data alone.

    Returns:
        The bytes that were really copied.
    Raises:
        HostError: one cannot be read, or the other made; it is not there then.
    """
    try:
        return _clone(source, target)
    except OSError as error:
        raise durable.failure("copy", f"{source} to {target}", error) from error


def _clone(source: str, target: str) -> int:
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return _fill(source_fd, target_fd)
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _fill(source_fd: int, target_fd: int) -> int:
    if share_blocks(source_fd, target_fd):
        return 0
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, size)
    copied = 0
    for at, length in extents(source_fd, 0, size):
        end = at + length
        while at < end:
            count = copy_some(source_fd, at, target_fd, at, min(_COPY_BYTES, end - at))
            at, copied = at + count, copied + count
    return copied


def write(path: str, content: bytes) -> None:
    """Write a new file of a snapshot, and bring it to the disk. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        os.fchmod(fd, READ_ONLY_MODE)
    finally:
        os.close(fd)


def settle(path: str) -> None:
    """Bring a file to the disk, and have nobody write it again. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
        os.fchmod(fd, READ_ONLY_MODE)
    finally:
        os.close(fd)
