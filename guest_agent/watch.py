"""FILE_WATCH: tell what happens in a folder, by inotify(7)."""

from __future__ import annotations

import os

from guest_agent import arguments
from guest_agent.connection import Request
from guest_agent.files import user_of
from guest_agent.loop import READ
from guest_agent.users import acting_as
from guest_agent.watch_tree import MASK, READ_BYTES, WatchTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FileWatch(Request):
    """Watch a folder until cancelled.

    Values: path, user, recursive (bool). Answers: EVENT {watching: true} once it does, then EVENT
    {kind, name (relative to path), is_folder}, kind being create, write, chmod, remove, rename (to
    another name: the new one comes as create) or overflow (some were lost); RESULT {} when the
    folder itself is gone.
    """

    def start(self, values: dict[str, Any]) -> None:
        self._fd = -1
        self._path = arguments.path(values)
        self._is_recursive = arguments.flag(values, "recursive")
        self._user = user_of(values)
        # Imported here: a guest that watches nothing starts without ctypes' callbacks.
        from guest_agent import syscalls

        self._syscalls = syscalls
        self._fd = syscalls.inotify_init()
        self._tree = WatchTree(self._add, self._remove, self._is_recursive)
        self._tree.begin()
        self.loop.watch(self._fd, READ, self._on_ready)
        self._tree.pending.insert(0, {"watching": True})
        self.on_room()

    def _add(self, name: str) -> tuple[int, list[tuple[str, bool]]]:
        path = f"{self._path}/{name}"
        with acting_as(self._user):
            number = self._syscalls.inotify_add_watch(self._fd, path, MASK)
            names = sorted(os.listdir(path)) if self._is_recursive else []
        return number, [(child, _is_folder(path + child)) for child in names]

    def _remove(self, number: int) -> None:
        self._syscalls.inotify_rm_watch(self._fd, number)

    def _on_ready(self, ready: int) -> None:
        self._tree.feed(os.read(self._fd, READ_BYTES))
        self.on_room()

    def on_room(self) -> None:
        pending = self._tree.pending
        sent = 0
        for values in pending:
            if not self.event(values):
                break
            sent += 1
        del pending[:sent]
        if self._tree.is_gone and not pending and not self.is_done:
            self.result({})

    def on_close(self) -> None:
        if self._fd >= 0:
            self.loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
