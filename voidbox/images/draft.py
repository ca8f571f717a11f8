"""A folder in which an image is made, and which is an image at once when it is whole."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from voidbox.errors import HostError
from voidbox.storage import durable

NEW, REMOVED = ".new-", ".removed-"
ROOTFS, CONFIG = "rootfs.erofs", "config.json"


class Draft:
    """An image that is being made. Use as a context manager: what is not published is deleted.

    Thread: the caller's. Lock: that of the store is held by whoever makes one.

    Args:
        folder: of the images.

    Raises:
        HostError: it cannot be made.

    Attributes:
        path: of the folder; temporary files may lie in `spool`.
        rootfs: where the file system is to be written.
        spool: a folder for whatever is needed until then, on the same disk.
    """

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/{NEW}{os.urandom(8).hex()}"
        self.rootfs = f"{self.path}/{ROOTFS}"
        self.spool = f"{self.path}/spool"
        self._fd = -1
        try:
            os.mkdir(self.path, 0o700)
            # Nobody deletes it as a killed maker's while this is locked.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.mkdir(self.spool, 0o700)
        except OSError as error:
            self.close()
            raise durable.failure("make", self.path, error) from error

    def seal(self) -> int:
        """Bring the file system to the disk, for good; return its size in bytes.

        Raises:
            HostError: the disk does not take it.
        """
        try:
            durable.remove_tree(self.spool)
            fd = os.open(self.rootfs, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o400)
                os.fsync(fd)
                return os.fstat(fd).st_size
            finally:
                os.close(fd)
        except OSError as error:
            raise durable.failure("write", self.rootfs, error) from error

    def publish(self, path: str) -> None:
        """Have it be the image at a path. Lock: held.

        Raises:
            HostError: it cannot be.
        """
        try:
            os.rename(self.path, path)
            durable.sync_folder(os.path.dirname(path))
        except OSError as error:
            raise durable.failure("make", path, error) from error

    def close(self) -> None:
        """Delete it, unless it has been published. Idempotent."""
        with suppress(HostError):  # whoever comes next does it
            durable.remove_tree(self.path)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
