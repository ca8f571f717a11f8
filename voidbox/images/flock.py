"""flock(2) on files that may be deleted or replaced while somebody waits for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable

from voidbox.storage import durable

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def try_lock(path: str) -> int | None:
    """Lock a file or a folder against all others; None if there is none.

    Returns:
        A descriptor, whose closing unlocks.

    Raises:
        BlockingIOError: somebody has it locked, shared or not.
        HostError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise durable.failure("lock", path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    if not _is_at(fd, path):  # deleted meanwhile; what is there now, if anything, is somebody's
        os.close(fd)
        return None
    return fd


class OwnedFile:
    """A file at a path that one may write to: made or found, and locked. Thread: the caller's.

    Whoever waited for it gets the file that is at the path by then, never one that was deleted or
    renamed meanwhile.

    Args:
        path: of the file.
        on_wait: called once before waiting for somebody else.

    Raises:
        HostError: it cannot be made.

    Attributes:
        fd: open for reading and writing.
    """

    def __init__(self, path: str, on_wait: Callable[[], object] = lambda: None) -> None:
        self.path = path
        self.fd = -1
        while self.fd < 0:
            try:
                fd = os.open(path, _FLAGS, 0o600)
            except OSError as error:
                raise durable.failure("make", path, error) from error
            try:
                _lock(fd, on_wait)
                if _is_at(fd, path):
                    self.fd = fd
            finally:
                if self.fd < 0:
                    os.close(fd)

    def delete(self) -> None:
        """Delete the file, if it is there; those who wait for it make another. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        """Unlock it. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> OwnedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(fd: int, on_wait: Callable[[], object]) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(fd, fcntl.LOCK_EX)


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
