"""Write the cpio "newc" format that Linux unpacks as an initramfs, the same bytes every time.

Linux Documentation/driver-api/early-userspace/buffer-format.rst. Names are sorted, times are 0,
everything belongs to root, inodes are counted; so no root is needed, for device nodes either.

    python -m voidbox.boot.newc FOLDER OUTPUT [--node /dev/console:5:1 …] [--mode /tmp:1777 …]
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from voidbox.named_tuple import NamedTuple

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4


class Entry(NamedTuple):
    """A file to pack.

    Attributes:
        path: inside the archive, without a leading slash.
        mode: st_mode: type and permissions.
        data: a regular file's content or a symbolic link's target.
        device: (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def device_node(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Return a character device."""
    return Entry(path.lstrip("/"), stat.S_IFCHR | permissions, device=(major, minor))


def entries_of(folder: str) -> Iterator[Entry]:
    """Yield everything below `folder`, in no particular order.

    Permissions lose what a umask would take, so that they do not depend on who checked out.

    Raises:
        ValueError: a file that is no folder, regular file or symbolic link.
    """
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            full = f"{root}/{name}"
            path = os.path.relpath(full, folder)
            mode = os.lstat(full).st_mode
            if stat.S_ISLNK(mode):
                yield Entry(path, stat.S_IFLNK | 0o777, os.fsencode(os.readlink(full)))
            elif stat.S_ISDIR(mode):
                yield Entry(path, stat.S_IFDIR | _permissions(mode))
            elif stat.S_ISREG(mode):
                with open(full, "rb") as file:
                    yield Entry(path, stat.S_IFREG | _permissions(mode), file.read())
            else:
                raise ValueError(f"{full}: cannot pack this kind of file")


def _permissions(mode: int) -> int:
    """Owner's permissions for everyone to read and execute, to write for root alone."""
    special = mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
    owner = mode & stat.S_IRWXU
    return special | owner | (owner & 0o500) >> 3 | (owner & 0o500) >> 6


def write(output: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write an archive, sorted by path so that folders come before what they hold."""
    ordered = sorted(entries, key=lambda entry: entry.path.split("/"))
    for inode, entry in enumerate(ordered, start=1):
        _write_entry(output, entry, inode)
    _write_entry(output, Entry(_TRAILER, 0), 0)


def _write_entry(output: BinaryIO, entry: Entry, inode: int) -> None:
    name = os.fsencode(entry.path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # ino, mode, uid, gid, nlink, mtime, filesize, dev, rdev, namesize, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = _MAGIC.encode() + b"".join(b"%08X" % field for field in fields)
    for part in (header + name, entry.data):
        output.write(part + bytes(-len(part) % _ALIGNMENT))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return an archive. Linux takes several one after another, each aligned to four bytes."""
    output = io.BytesIO()
    write(output, entries)
    return output.getvalue()


def with_modes(entries: Iterable[Entry], modes: dict[str, int]) -> Iterator[Entry]:
    """Give some paths the permissions that no folder on a host can tell.

    Raises:
        ValueError: one of the paths is not there.
    """
    missing = dict(modes)
    for entry in entries:
        permissions = missing.pop(entry.path, None)
        if permissions is not None:
            entry = entry._replace(mode=stat.S_IFMT(entry.mode) | permissions)
        yield entry
    if missing:
        raise ValueError(f"there is no {', '.join(missing)} to set the mode of")


def main(argv: list[str]) -> int:
    """Pack a folder; returns the exit status."""
    import argparse  # for the program alone: a VM's start needs the rest

    parser = argparse.ArgumentParser(description="Pack a folder as an initramfs, reproducibly.")
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--node", action="append", default=[], metavar="PATH:MAJOR:MINOR")
    parser.add_argument("--mode", action="append", default=[], metavar="PATH:OCTAL")
    options = parser.parse_args(argv)
    modes = {path.lstrip("/"): int(mode, 8) for path, mode in (m.split(":") for m in options.mode)}
    try:
        entries = list(with_modes(entries_of(options.folder), modes))
        for node in options.node:
            path, major, minor = node.split(":")
            entries.append(device_node(path, int(major), int(minor)))
        with open(options.output, "wb") as output:
            write(output, entries)
    except (OSError, ValueError) as error:
        print(f"newc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
