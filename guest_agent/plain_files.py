"""Small files of a root that may be hostile: PID 1 reads and writes them, and must not wait.

What stands where such a file should be may be a FIFO, which blocks whoever opens it, or a link.
"""

from __future__ import annotations

import contextlib
import os
import stat


def read(path: str, bytes_max: int) -> bytes:
    """Return a regular file's bytes, the first `bytes_max` of them.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path}: not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(bytes_max)
    finally:
        os.close(fd)


def replace(path: str, content: str) -> None:
    """Write a new file in the place of what is there; folders above it are made.

    Raises:
        OSError: it cannot be written.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.voidbox"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(content)
    os.rename(temporary, path)
