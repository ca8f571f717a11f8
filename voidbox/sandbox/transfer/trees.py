"""What is in a folder, of the host or of the guest, and the host's disk as transfers use it.

Thread: one of the pool's, for all that touches the disk.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from voidbox.agent.core import printable
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.transfer.host_tree import HostFolder, is_safe_link, split_name
from voidbox.sandbox.transfer.listing import error_of, numbers_of
from voidbox.sandbox.transfer.steady import ReadInfo

SMALL_BYTES = 64 << 10  # files up to this go in batches


class Entry(NamedTuple):
    """Something in a folder, here or there."""

    parts: tuple[str, ...]
    size: int
    mode: int
    mtime_ns: int


@dataclass
class Tree:
    """What is in a folder; folders before what is in them.

    Attributes:
        errors: how many of `skipped` could not be read.
    """

    folders: list[Entry] = field(default_factory=list)
    files: list[Entry] = field(default_factory=list)
    links: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    errors: int = 0


def entry_of(parts: tuple[str, ...], status: os.stat_result) -> Entry:
    """Return what the host says of something."""
    mtime_ns = max(status.st_mtime_ns, 0)  # before 1970 there is nothing
    return Entry(parts, status.st_size, stat.S_IMODE(status.st_mode), mtime_ns)


def open_source(path: str, follows: bool = True) -> io.FileIO:
    """Open a file of the host.

    Raises:
        ConfigError: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follows else os.O_NOFOLLOW)
    shown = printable(path)
    try:
        file = io.FileIO(os.open(path, flags), "rb")
    except OSError as error:
        raise ConfigError(f"cannot read {shown}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError(f"cannot read {shown}: it is no regular file")
    return file


def scan(source: str, leaving_out: str | None = None) -> Tree:
    """Return what is in a folder of the host. Links are not followed.

    Args:
        leaving_out: what begins with this is, at the top.
    """
    tree = Tree()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir("/".join((source, *folder))) as entries:
                for entry in entries:
                    if leaving_out and not folder and entry.name.startswith(leaving_out):
                        continue
                    parts = (*folder, entry.name)
                    if _sort_host(entry, parts, tree):
                        waiting.append(parts)
        except OSError as error:
            shown = printable(str(error.filename))
            raise ConfigError(f"cannot read {shown}: {error.strerror}") from error
    tree.folders.sort()
    return tree


def _sort_host(item: os.DirEntry[str], parts: tuple[str, ...], tree: Tree) -> bool:
    """Put an entry where it belongs; whether it is a folder."""
    status = item.stat(follow_symlinks=False)
    entry = entry_of(parts, status)
    if stat.S_ISDIR(status.st_mode):
        tree.folders.append(entry)
        return True
    if stat.S_ISREG(status.st_mode):
        tree.files.append(entry)
    elif stat.S_ISLNK(status.st_mode):
        tree.links.append((parts, os.readlink(item.path)))
    else:
        tree.skipped.append(f"{printable('/'.join(parts))}: neither file nor folder nor link")
    return False


def sort_listed(item: dict[str, Any], tree: Tree) -> None:
    """Put what the guest listed where it belongs.

    Raises:
        AgentError: that cannot be in a folder.
    """
    parts = split_name(item.get("name"))
    size, mode, mtime_ns = numbers_of(item, "size", "mode", "mtime_ns")
    entry = Entry(parts, max(size, 0), mode & 0o7777, mtime_ns)
    kind, target, error = item.get("type"), str(item.get("target", "")), error_of(item)
    shown = printable("/".join(parts))
    if error:
        tree.skipped.append(f"{shown}: {error}")
        tree.errors += 1
    if kind == "folder":
        tree.folders.append(entry)
    elif error:
        pass
    elif kind == "file":
        tree.files.append(entry)
    elif kind != "link":
        tree.skipped.append(f"{shown}: neither file nor folder nor link")
    elif is_safe_link(parts, target):
        tree.links.append((parts, target))
    else:
        tree.skipped.append(f"{shown}: a link to {printable(target)!r}, outside the folder")


def read_all(source: str, batch: Sequence[Entry]) -> list[tuple[Entry, bytes | None]]:
    """Return small files as they are now, with their contents; None for one that is not small."""
    found = []
    for entry in batch:
        path = "/".join((source, *entry.parts))
        with open_source(path, follows=False) as file:
            now = entry_of(entry.parts, os.fstat(file.fileno()))
            found.append((now, _read_small(file)))
    return found


def _read_small(file: io.FileIO) -> bytes | None:
    data = b""
    while len(data) <= SMALL_BYTES:
        part = file.read(SMALL_BYTES + 1 - len(data))
        if not part:
            return data
        data += part
    return None


def make_folders(host: HostFolder, folders: Sequence[Entry]) -> list[Entry]:
    """Make folders; return those that there were not before."""
    return [entry for entry in folders if host.make_folder(entry.parts, entry.mode)]


def finish_folders(host: HostFolder, folders: Sequence[Entry]) -> None:
    """Give folders their permissions and times."""
    for entry in folders:
        host.finish_folder(entry.parts, entry.mode, entry.mtime_ns)


def write_all(
    host: HostFolder, found: Sequence[tuple[Entry, bytes, ReadInfo]], mode: int = 0
) -> None:
    """Write small files, with these permissions beside their own."""
    for entry, data, info in found:
        host.write_file(entry.parts, data, info.mode | mode, info.mtime_ns)
