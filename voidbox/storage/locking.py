"""Locks between processes. The kernel drops them with whoever held them, however it died.

FileLock    excludes everybody else for a moment: flock(2)
Hold        says "I live" for as long as it is open: an open-file-description lock, fcntl(2).
            Several may hold the same file, and asking whether anybody does disturbs nobody.

Both belong to the open file, which a forked child has too: so they are given up by name, not by
closing alone, and a child closes its descriptors of them at once.
"""

from __future__ import annotations

import fcntl
import os
import struct

from voidbox.errors import HostError

# struct flock { short l_type; short l_whence; off_t l_start; off_t l_len; pid_t l_pid; };
_FLOCK = struct.Struct("@hhqqi4x")
assert _FLOCK.size == 32
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC

_held: set[FileLock | Hold] = set()


class FileLock:
    """Excludes all other processes and threads while its context lasts. Thread: any.

    Each context needs an object of its own.

    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> FileLock:
        self._fd = _open(self._path)
        _held.add(self)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _held.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:  # else this is a child, and it is its parent's
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


class Hold:
    """Holds a file, as one of perhaps several, until it is closed. Thread: any.

    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._fd = _open(path)
        _held.add(self)
        # A write lock, which alone would conflict, is only ever asked about.
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _range(fcntl.F_RDLCK))

    def is_shared(self) -> bool:
        """Whether somebody else holds it too; a forked child's parent does."""
        return self._fd < 0 or _conflicts(self._fd)

    def close(self) -> None:
        """Let go. Idempotent."""
        _held.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK))
            os.close(fd)


def is_held(path: str) -> bool:
    """Whether anybody holds a file; False for one that does not exist.

    Raises:
        HostError: the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        return _conflicts(fd)
    finally:
        os.close(fd)


def _conflicts(fd: int) -> bool:
    answer: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK)))[0]
    return answer != fcntl.F_UNLCK


def _range(kind: int) -> bytes:
    """Return the struct flock of a whole file."""
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _forget() -> None:
    """In a child without exec: its parent's locks must end with the parent, however that ends."""
    for one in _held:
        fd, one._fd = one._fd, -1
        if fd >= 0:
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: str, error: OSError) -> HostError:
    return HostError(f"cannot lock {path}: {error.strerror}", error.errno or 0)
