"""A root of its own for a process: an empty file system, with the named paths in their places.

So not even the names and sizes of other files can be asked for. Needs a mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable

from voidbox.jail import system
from voidbox.named_tuple import NamedTuple

# <linux/mount.h>
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
# struct mount_attr { __u64 attr_set, attr_clr, propagation, userns_fd; };
_MOUNT_ATTR = struct.Struct("=4Q")
_RDONLY, _NOSUID = 1, 2  # MOUNT_ATTR_*
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_BASE = "/tmp"  # whatever folder there is: it is covered in this namespace alone, and let go of
_LINKS_MAX = 40  # that Linux follows on one way


class _Item(NamedTuple):
    """What is to be at a path: a link that says `target`, or what `fd` is."""

    target: str
    fd: int
    is_writable: bool


def enter_root(paths: Iterable[tuple[str, bool]]) -> None:
    """Have only these paths, read-only or not, and this process's /proc; / is the folder then.

    Links on the way to a path are there as well. What does not exist is left out.

    Args:
        paths: absolute; and whether they may be written.
    Raises:
        OSError: the host refuses it; Linux is older than 5.12.
    """
    proc_self = system.own_proc()
    items = _resolve([*paths, (proc_self, True)])
    items["/proc/self"] = _Item(os.path.basename(proc_self), -1, False)
    try:
        _mount(0, "/", 0, MS_REC | MS_PRIVATE)
        _mount("voidbox", _BASE, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
        os.chdir(_BASE)
        for path in sorted(items):  # folders before what is in them
            _place(path.lstrip("/"), items[path])
    finally:
        for item in items.values():
            if item.fd >= 0:
                os.close(item.fd)
    _set(".", _RDONLY, 0)
    # The old root comes to lie on top of the new one, and is taken off: pivot_root(2).
    system.call("pivot_root", system.text("."), system.text("."))
    system.call("umount2", system.text("."), MNT_DETACH)
    os.chdir("/")


def _resolve(paths: Iterable[tuple[str, bool]]) -> dict[str, _Item]:
    """Return what is to be where; what comes with a folder above it is left out."""
    links: dict[str, str] = {}
    wanted: dict[str, bool] = {}
    for path, is_writable in paths:
        links.update(_links(path))
        real = os.path.realpath(path)
        if os.path.lexists(real):
            wanted[real] = wanted.get(real, False) or is_writable
    found = {path: _Item(target, -1, False) for path, target in links.items()}
    for path, is_writable in wanted.items():
        above = [other for other in wanted if path.startswith(f"{other}/")]
        if not above or is_writable != wanted[max(above, key=len)]:
            found[path] = _Item("", os.open(path, os.O_PATH | os.O_CLOEXEC), is_writable)
    return found


def _links(path: str) -> Iterable[tuple[str, str]]:
    """Yield the links on the way to a path, and what they say."""
    for _ in range(_LINKS_MAX):
        at = ""
        for part in path.strip("/").split("/"):
            at = f"{at}/{part}"
            if os.path.islink(at):
                break
        else:
            return
        target = os.readlink(at)
        yield at, target
        path = os.path.normpath(os.path.join(os.path.dirname(at), target)) + path[len(at) :]


def _place(path: str, item: _Item) -> None:
    """Have an item at a path, relative to the new root."""
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if item.fd < 0:
        with contextlib.suppress(FileExistsError):  # it came with a folder
            os.symlink(item.target, path)
        return
    if stat.S_ISDIR(os.fstat(item.fd).st_mode):
        os.makedirs(path, 0o755, exist_ok=True)
    elif not os.path.lexists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(f"/proc/self/fd/{item.fd}", path, 0, MS_BIND | MS_REC)
    _set(path, _NOSUID if item.is_writable else _NOSUID | _RDONLY, _AT_RECURSIVE)


def _mount(source: str | int, target: str, kind: str | int, flags: int, options: str = "") -> None:
    given = [value if isinstance(value, int) else system.text(value) for value in (source, kind)]
    data = system.text(options) if options else 0
    system.call("mount", given[0], system.text(target), given[1], flags, data)


def _set(path: str, attributes: int, flags: int) -> None:
    """Add attributes to a mount. Those that it has, and which are locked, stay."""
    attribute = system.buffer(_MOUNT_ATTR.pack(attributes, 0, 0, 0))
    system.call("mount_setattr", _AT_FDCWD, system.text(path), flags, attribute, _MOUNT_ATTR.size)
