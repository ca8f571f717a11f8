"""Extended attributes of files that users may set: xattr(7), the namespace "user"."""

from __future__ import annotations

import contextlib
import os

_NAMESPACE = "user."
_COUNT_MAX, _BYTES_MAX = 64, 16 << 10  # of one file, that are told


def read(path: str) -> dict[str, str]:
    """Return a file's attributes that are text, without their namespace; a link's own."""
    found: dict[str, str] = {}
    left = _BYTES_MAX
    with contextlib.suppress(OSError):  # a file system without any, or one that is gone
        for name in os.listxattr(path, follow_symlinks=False)[:_COUNT_MAX]:
            if not name.startswith(_NAMESPACE):
                continue
            value = os.getxattr(path, name, follow_symlinks=False)
            left -= len(name) + len(value)
            if left < 0:
                break
            with contextlib.suppress(UnicodeDecodeError):
                found[name.removeprefix(_NAMESPACE)] = value.decode()
    return found


def write(fd: int, values: dict[str, str]) -> None:
    """Give an open file these attributes, and take away all others of the namespace.

    Raises:
        OSError: the file system has none, or not so many.
    """
    old: list[str] = []
    with contextlib.suppress(OSError):
        old = os.listxattr(fd)
    for name in old:
        if name.startswith(_NAMESPACE):
            os.removexattr(fd, name)
    for name, value in values.items():
        os.setxattr(fd, _NAMESPACE + name, value.encode())
