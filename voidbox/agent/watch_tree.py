"""What inotify(7) says of a folder and those in it, as events; without system calls.

This file runs on both sides: the image build packs it beside the guest's agent, which watches the
guest's folders; the host watches those that it shares.
"""

from __future__ import annotations

import contextlib
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# struct inotify_event { int wd; uint32_t mask, cookie, len; char name[]; }
_EVENT = struct.Struct("=iIII")
IN_MODIFY, IN_ATTRIB, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF = 0x100, 0x200, 0x400
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_ISDIR = 0x4000, 0x8000, 0x1000000, 0x40000000

# In this order: an event has one of these bits.
_KINDS = {
    IN_CREATE: "create",
    IN_MOVED_TO: "create",
    IN_MODIFY: "write",
    IN_ATTRIB: "chmod",
    IN_DELETE: "remove",
    IN_MOVED_FROM: "rename",
}
MASK = IN_DELETE_SELF | IN_ONLYDIR
for _bit in _KINDS:
    MASK |= _bit
READ_BYTES = 64 << 10
PENDING_MAX = 4096  # events that wait for a slow reader; more are lost, and that is said


class WatchTree:
    """The folders that are watched, and what happened in them.

    Args:
        add: watches a folder; its name is relative, with a slash at its end, or "". Returns the
            watch's number, and what is in the folder, each with whether it is a folder. May raise
            OSError.
        remove: takes a watch's number; may raise OSError.
        is_recursive: folders in the folder are watched too.

    Attributes:
        pending: maps with kind, name and is_folder, for whoever takes them.
        is_gone: the folder itself is.
    """

    def __init__(
        self,
        add: Callable[[str], tuple[int, list[tuple[str, bool]]]],
        remove: Callable[[int], None],
        is_recursive: bool,
    ) -> None:
        self.pending: list[dict[str, Any]] = []
        self.is_gone = False
        self._add_watch = add
        self._remove_watch = remove
        self._is_recursive = is_recursive
        self._folders: dict[int, str] = {}  # watch number to name

    def begin(self) -> None:
        """Watch the folder.

        Raises:
            OSError: it cannot be watched.
        """
        self._add("")

    @property
    def folders(self) -> int:
        """How many are watched."""
        return len(self._folders)

    def feed(self, data: bytes) -> None:
        """Take what was read from inotify's descriptor."""
        for number, mask, name in _parse(data):
            self._on_event(number, mask, name)

    def _add(self, name: str, is_new: bool = False) -> None:
        """Watch a folder, and those in it; not recursive, for they can be nested very deeply."""
        waiting = self._add_one(name, is_new)
        while waiting:
            # Gone already, not allowed, or no watch left: its parent's events still come.
            with contextlib.suppress(OSError):
                waiting.extend(self._add_one(waiting.pop(), is_new))

    def _add_one(self, name: str, is_new: bool) -> list[str]:
        """Watch one folder; return those in it.

        In a new one files may be older than the watch: they are told here, some perhaps twice.
        """
        number, children = self._add_watch(name)
        self._folders[number] = name
        if not self._is_recursive:
            return []
        if is_new:
            for child, is_folder in children:
                self._tell("create", f"{name}{child}", is_folder)
        return [f"{name}{child}/" for child, is_folder in children if is_folder]

    def _on_event(self, number: int, mask: int, name: str) -> None:
        if mask & IN_Q_OVERFLOW:
            self.overflow()
            return
        if mask & (IN_DELETE_SELF | IN_IGNORED):
            self.is_gone |= self._folders.pop(number, None) == ""
            return
        folder = self._folders.get(number)
        if folder is None:
            return
        kind = next(kind for bit, kind in _KINDS.items() if mask & bit)
        is_folder = bool(mask & IN_ISDIR)
        self._tell(kind, folder + name, is_folder)
        if is_folder and self._is_recursive:
            if kind == "create":
                # Gone already: its removal is told too.
                with contextlib.suppress(OSError):
                    self._add(f"{folder}{name}/", is_new=True)
            elif kind == "rename":
                self._forget(f"{folder}{name}/")

    def _forget(self, name: str) -> None:
        """A folder has another name, or is elsewhere: what happens in it is no longer told so."""
        for number in [n for n, known in self._folders.items() if known.startswith(name)]:
            del self._folders[number]
            with contextlib.suppress(OSError):  # the folder is gone, and its watch with it
                self._remove_watch(number)

    def _tell(self, kind: str, name: str, is_folder: bool) -> None:
        if len(self.pending) < PENDING_MAX:
            self.pending.append({"kind": kind, "name": name, "is_folder": is_folder})
        else:
            self.overflow()

    def overflow(self) -> None:
        """Say that something was lost."""
        if not self.pending or self.pending[-1].get("kind") != "overflow":
            self.pending.append({"kind": "overflow", "name": "", "is_folder": False})


def _parse(data: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at < len(data):
        number, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield number, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length
