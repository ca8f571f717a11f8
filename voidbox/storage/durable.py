"""Files of JSON that are whole at any moment, whatever is killed; where those go that are not.

A file is written beside its place, brought to the disk and renamed; so is its folder's entry. Each
takes a disk some milliseconds: what need not outlive the host's power does not wait (`is_lasting`).
Whoever writes holds the lock, so what a killed writer left is simply written over.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

from voidbox.errors import ConfigError, HostError, VoidboxError

CONTENT_BYTES_MAX = 16 << 20

_BESIDE = ".new"


class Corrupted(VoidboxError):
    """A state file is not what voidbox writes."""


def write_json(
    path: str, values: dict[str, Any], indent: int | None = 1, is_lasting: bool = True
) -> None:
    """Replace a file, or make it.

    Args:
        indent: None: on one line, in a tenth of the time.
        is_lasting: bring it to the disk; if not, a host that loses its power may leave the old
            file, the new one, or none that can be read.
    Raises:
        ConfigError: the values have no place in JSON, or are too large.
        HostError: it cannot be written; the old file stays.
    """
    try:
        content = json.dumps(values, indent=indent, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot keep this: {error}") from error
    if len(content) > CONTENT_BYTES_MAX:
        raise ConfigError(
            f"a sandbox's description may have {CONTENT_BYTES_MAX >> 20} MiB, not {len(content):,} "
            "bytes: pass large values as files"
        )
    beside = path + _BESIDE
    try:
        write_file(beside, content, is_lasting=is_lasting)
        os.rename(beside, path)
        if is_lasting:
            sync_folder(os.path.dirname(path))
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise failure("write", path, error) from error


def read_json(path: str, version: int) -> dict[str, Any]:
    """Return a file's object.

    Raises:
        FileNotFoundError: there is none.
        Corrupted: it is something else.
        ConfigError: a newer voidbox wrote it.
        HostError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(CONTENT_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except IsADirectoryError as error:
        raise Corrupted("it is a folder") from error
    except OSError as error:
        raise failure("read", path, error) from error
    if len(content) > CONTENT_BYTES_MAX:
        raise Corrupted("it is too large")
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Corrupted(f"it is not JSON ({error})") from error
    found = values.get("version") if isinstance(values, dict) else None
    if type(found) is not int or found < 1:
        raise Corrupted("it names no version")
    if found > version:
        raise ConfigError(
            f"{path} was written by a newer voidbox (version {found}): upgrade, or name another "
            "folder with VOIDBOX_STATE"
        )
    return dict(values)


def write_file(path: str, content: bytes, mode: int = 0o600, is_lasting: bool = True) -> None:
    """Write a file; bring its content to the disk if it is to last. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) or 0 :]
        # The kernel's own times have steps of some milliseconds: no two writes are to look alike.
        now_ns = time.time_ns()
        os.utime(fd, ns=(now_ns, now_ns))
        if is_lasting:
            os.fsync(fd)


def sync_folder(path: str) -> None:
    """Bring a folder's entries to the disk. Raises OSError."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: str) -> None:
    """Bring a file's content to the disk. Raises OSError."""
    _sync(path, os.O_NOFOLLOW)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def set_aside(path: str, folder: str, name: str) -> str:
    """Move a file or a folder out of the way, into another folder; return where it is now.

    Raises:
        HostError: it cannot be moved.
    """
    stem = f"{folder}/{time.strftime('%Y%m%dT%H%M%S')}-{name}"
    target = stem
    count = 1
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        while os.path.lexists(target):
            count += 1
            target = f"{stem}-{count}"
        os.rename(path, target)
    except OSError as error:
        raise failure("set aside", path, error) from error
    return target


def remove_tree(path: str) -> None:
    """Delete a folder and all in it; one that is gone is fine.

    Raises:
        HostError: something cannot be deleted.
    """
    import shutil  # its import costs more than most commands do

    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failure("delete", path, error) from error


def failure(verb: str, path: str, error: OSError) -> HostError:
    """Return the error of an operation on a state file."""
    return HostError(f"cannot {verb} {path}: {error.strerror or error}", error.errno or 0)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
