"""Locks between processes. The kernel drops them with whoever held them, however it died.

FileLock    excludes everybody else for a moment: flock(2)
Hold        says "I live" for as long as it is open: an open-file-description lock, fcntl(2).
            Several may hold the same file, and asking whether anybody does disturbs nobody.
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
        fd = _open(self._path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Hold:
    """Holds a file, as one of perhaps several, until it is closed. Thread: any.

    Raises:
        HostError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._fd = _open(path)
        # A write lock, which alone would conflict, is only ever asked about.
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))

    def is_shared(self) -> bool:
        """Whether somebody else holds it too."""
        return _conflicts(self._fd)

    def close(self) -> None:
        """Let go. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
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
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return answer != fcntl.F_UNLCK


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: str, error: OSError) -> HostError:
    return HostError(f"cannot lock {path}: {error.strerror}", error.errno or 0)
