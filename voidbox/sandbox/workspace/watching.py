"""What happens in a folder that the host shares, by the host's inotify(7).

The guest's own says nothing of what the host changes in it. The host's tells of both, since the
guest's changes are made here. No link on the way is followed: the guest may have made it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from voidbox.agent.watch_tree import MASK, READ_BYTES, WatchTree
from voidbox.errors import ConfigError

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDERS_MAX = 10_000  # the guest may make more, and the host's watches are the user's own
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000


class SharedFolderWatch:
    """Watches a folder in a shared one. Thread: any, one at a time.

    Args:
        root: the host's folder that is shared.
        parts: the names on the way to the one that is to be watched.
    Attributes:
        fd: readable when there is something for read().
        tree: what happened.
    Raises:
        ConfigError: it cannot be watched from here.
    """

    def __init__(self, root: str, parts: tuple[str, ...], is_recursive: bool) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._root = root
        self._parts = parts
        self._is_recursive = is_recursive
        self.tree = WatchTree(self._add, self._remove, is_recursive)
        self.fd = self._check(self._libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))
        try:
            self.tree.begin()
        except OSError as error:
            self.close()
            path = "/".join((root, *parts))
            raise ConfigError(
                f"the host's changes in {path} cannot be watched: {error.strerror}"
                " (links on the way are not followed)"
            ) from error

    def _add(self, name: str) -> tuple[int, list[tuple[str, bool]]]:
        if self.tree.folders >= FOLDERS_MAX:
            self.tree.overflow()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd = os.open(self._root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            for part in (*self._parts, *name.split("/")[:-1]):
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            path = f"/proc/self/fd/{fd}".encode()
            number = self._check(self._libc.inotify_add_watch(self.fd, path, ctypes.c_uint32(MASK)))
            if not self._is_recursive:
                return number, []
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            return number, sorted(found)
        finally:
            os.close(fd)

    def _remove(self, number: int) -> None:
        self._check(self._libc.inotify_rm_watch(self.fd, ctypes.c_int(number)))

    @staticmethod
    def _check(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def read(self) -> None:
        """Have the tree take what has happened."""
        with contextlib.suppress(BlockingIOError):
            self.tree.feed(os.read(self.fd, READ_BYTES))

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
