"""FILE_WATCH: tell what happens in a folder, by inotify(7)."""

from __future__ import annotations

import contextlib
import os
import struct

from guest_agent import arguments
from guest_agent.connection import Request
from guest_agent.files import user_of
from guest_agent.loop import READ
from guest_agent.users import acting_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
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
_MASK = IN_DELETE_SELF | IN_ONLYDIR
for _bit in _KINDS:
    _MASK |= _bit
_READ_BYTES = 64 << 10
_PENDING_MAX = 4096  # events that wait for a slow client; more are lost, and that is said


class FileWatch(Request):
    """Watch a folder until cancelled.

    Values: path, user, recursive (bool). Answers: EVENT {watching: true} once it does, then EVENT
    {kind, name (relative to path), is_folder}, kind being create, write, chmod, remove, rename (to
    another name: the new one comes as create) or overflow (some were lost); RESULT {} when the
    folder itself is gone.
    """

    def start(self, values: dict[str, Any]) -> None:
        self._fd = -1
        self._folders: dict[int, str] = {}  # watch number to name relative to path, with a slash
        self._pending: list[dict[str, Any]] = []
        self._is_gone = False
        self._path = arguments.path(values)
        self._is_recursive = arguments.flag(values, "recursive")
        self._user = user_of(values)
        # Imported here: a guest that watches nothing starts without ctypes' callbacks.
        from guest_agent import syscalls

        self._syscalls = syscalls
        self._fd = syscalls.inotify_init()
        self._add("")
        self.loop.watch(self._fd, READ, self._on_ready)
        self._pending.insert(0, {"watching": True})
        self.on_room()

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
        with acting_as(self._user):
            number = self._syscalls.inotify_add_watch(self._fd, f"{self._path}/{name}", _MASK)
            names = sorted(os.listdir(f"{self._path}/{name}")) if self._is_recursive else []
        self._folders[number] = name
        folders = []
        for child in names:
            full = f"{self._path}/{name}{child}"
            is_folder = os.path.isdir(full) and not os.path.islink(full)
            if is_new:
                self._tell("create", f"{name}{child}", is_folder)
            if is_folder:
                folders.append(f"{name}{child}/")
        return folders

    def _on_ready(self, ready: int) -> None:
        for number, mask, name in _parse(os.read(self._fd, _READ_BYTES)):
            self._on_event(number, mask, name)
        self.on_room()

    def _on_event(self, number: int, mask: int, name: str) -> None:
        if mask & IN_Q_OVERFLOW:
            self._overflow()
            return
        if mask & (IN_DELETE_SELF | IN_IGNORED):
            self._is_gone |= self._folders.pop(number, None) == ""
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
                self._syscalls.inotify_rm_watch(self._fd, number)

    def _tell(self, kind: str, name: str, is_folder: bool) -> None:
        if len(self._pending) < _PENDING_MAX:
            self._pending.append({"kind": kind, "name": name, "is_folder": is_folder})
        else:
            self._overflow()

    def _overflow(self) -> None:
        if not self._pending or self._pending[-1].get("kind") != "overflow":
            self._pending.append({"kind": "overflow", "name": "", "is_folder": False})

    def on_room(self) -> None:
        sent = 0
        for values in self._pending:
            if not self.event(values):
                break
            sent += 1
        del self._pending[:sent]
        if self._is_gone and not self._pending and not self.is_done:
            self.result({})

    def on_close(self) -> None:
        if self._fd >= 0:
            self.loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1


def _parse(data: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at < len(data):
        number, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield number, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length
