"""The hidden folder in the host's that what was fetched waits in.

It is made, opened and removed below a descriptor of the workspace, never through a link: another
sandbox may have the same folder live. It is locked as long as somebody uses it, so that one that a
crash left behind is known, and removed by whoever comes next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator

from voidbox.errors import HostError
from voidbox.sandbox.workspace.manifest import STAGING_PREFIX

_NAME = re.compile(re.escape(STAGING_PREFIX) + "[0-9a-f]{12}")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Staging:
    """One such folder. Thread: any, one at a time.

    Attributes:
        root_fd: the workspace.
        fd: the folder in it.
        name: the folder's.
    """

    def __init__(self, path: str) -> None:
        """Open the workspace; make() makes the folder.

        Raises:
            HostError: it cannot be opened.
        """
        self._path = path
        self.name = f"{STAGING_PREFIX}{os.urandom(6).hex()}"
        self.fd = -1
        with self._says():
            self.root_fd = os.open(path, _FOLDER_FLAGS)

    def make(self) -> None:
        """Make the folder, and remove those that were left behind.

        Raises:
            HostError: it cannot be made.
        """
        with self._says():
            for name in filter(_NAME.fullmatch, os.listdir(self.root_fd)):
                with contextlib.suppress(OSError):  # another's, or no folder
                    os.close(self._open_locked(name))
                    self._remove(name)
            os.mkdir(self.name, 0o700, dir_fd=self.root_fd)
            self.fd = self._open_locked(self.name)

    def _open_locked(self, name: str) -> int:
        fd = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self.root_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError, RecursionError):  # removed by somebody else, say
            shutil.rmtree(name, dir_fd=self.root_fd)

    def close(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        if self.root_fd >= 0:
            self._remove(self.name)
            if self.fd >= 0:
                os.close(self.fd)
            os.close(self.root_fd)
            self.root_fd = self.fd = -1

    @contextlib.contextmanager
    def _says(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            story = f"cannot write into {self._path}: {error.strerror}"
            raise HostError(story, error.errno or 0) from error
