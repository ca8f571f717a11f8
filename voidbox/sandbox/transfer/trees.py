"""What is in a folder, of the host or of the guest, and the host's disk as transfers use it.

Thread: one of the pool's, for all that touches the disk.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from voidbox.agent.core import printable
from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.transfer.host_tree import HostFolder, is_safe_link, split_name
from voidbox.sandbox.transfer.pieces import checksum_of

SMALL_BYTES = 64 << 10  # files up to this go in batches
ENTRIES_MAX = 1_000_000  # in a folder: what a hostile guest lists must not fill our memory


class Entry(NamedTuple):
    """Something in a folder, here or there."""

    parts: tuple[str, ...]
    size: int
    mode: int
    mtime_ns: int


class Tree(NamedTuple):
    """What is in a folder; folders before what is in them."""

    folders: list[Entry]
    files: list[Entry]
    links: list[tuple[tuple[str, ...], str]]
    skipped: list[str]


def open_source(path: str, follows: bool = True) -> io.FileIO:
    """Open a file of the host.

    Raises:
        ConfigError: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follows else os.O_NOFOLLOW)
    try:
        file = io.FileIO(os.open(path, flags), "rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError(f"cannot read {path}: it is no regular file")
    return file


def scan(source: str) -> Tree:
    """Return what is in a folder of the host. Links are not followed."""
    tree = Tree([], [], [], [])
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir("/".join((source, *folder))) as entries:
                for entry in entries:
                    parts = (*folder, entry.name)
                    if _sort_host(entry, parts, tree):
                        waiting.append(parts)
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    tree.folders.sort()
    return tree


def _sort_host(item: os.DirEntry[str], parts: tuple[str, ...], tree: Tree) -> bool:
    """Put an entry where it belongs; whether it is a folder."""
    status = item.stat(follow_symlinks=False)
    entry = Entry(parts, status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    if stat.S_ISDIR(status.st_mode):
        tree.folders.append(entry)
        return True
    if stat.S_ISREG(status.st_mode):
        tree.files.append(entry)
    elif stat.S_ISLNK(status.st_mode):
        tree.links.append((parts, os.readlink(item.path)))
    else:
        tree.skipped.append(f"{'/'.join(parts)}: neither file nor folder nor link")
    return False


def sort_listed(item: object, tree: Tree) -> None:
    """Put what the guest listed where it belongs.

    Raises:
        AgentError: that cannot be in a folder.
    """
    if not isinstance(item, dict):
        raise AgentError("the guest's agent gave no list of entries")
    parts = split_name(item.get("name"))
    numbers = [item.get(name) for name in ("size", "mode", "mtime_ns")]
    if not all(isinstance(number, int) and number >= -(1 << 63) for number in numbers):
        raise AgentError("the guest's agent described a file without sense")
    size, mode, mtime_ns = (int(number) for number in numbers if number is not None)
    entry = Entry(parts, max(size, 0), mode & 0o7777, mtime_ns)
    kind, target = item.get("type"), str(item.get("target", ""))
    shown = printable("/".join(parts))
    if kind == "folder":
        tree.folders.append(entry)
    elif kind == "file":
        tree.files.append(entry)
    elif kind != "link":
        tree.skipped.append(f"{shown}: neither file nor folder nor link")
    elif is_safe_link(parts, target):
        tree.links.append((parts, target))
    else:
        tree.skipped.append(f"{shown}: a link to {printable(target)!r}, outside the folder")


def read_all(source: str, batch: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    """Return the contents of small files, each with its checksum."""
    found = []
    for entry in batch:
        path = "/".join((source, *entry.parts))
        with open_source(path, follows=False) as file:
            data = file.read(SMALL_BYTES) or b""  # one that grew meanwhile: as much as it was
        found.append((data, checksum_of(data)))
    return found


def make_folders(host: HostFolder, folders: Sequence[Entry]) -> None:
    """Make folders."""
    for entry in folders:
        host.make_folder(entry.parts, entry.mode)


def write_all(host: HostFolder, found: Sequence[tuple[Entry, bytes]]) -> None:
    """Write small files."""
    for entry, data in found:
        host.write_file(entry.parts, data, entry.mode, entry.mtime_ns)
