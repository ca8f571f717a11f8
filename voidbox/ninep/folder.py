"""The folder that is shared, and how one moves in it without ever leaving it.

A node is an O_PATH descriptor: it stays with its file, whatever the host renames meanwhile. From
one node to the next leads one name, looked up by openat() with O_NOFOLLOW, so that a link is a node
like any other and is followed by nobody; ".." is never looked up. What is to be opened for reading
and writing is first seen, on the descriptor, to be a regular file or a folder, and then opened once
more through that descriptor's own entry in /proc: no name is looked up again, and so whoever swaps
names as fast as he likes changes nothing. (A file's type never changes. An entry of /proc/self/fd
leads to the descriptor's file, not along its path.)
"""

from __future__ import annotations

import errno
import os
import stat

from voidbox.errors import ConfigError
from voidbox.ninep.numbers import (
    P9_DOTL_APPEND,
    P9_DOTL_DSYNC,
    P9_DOTL_NOACCESS,
    P9_DOTL_RDONLY,
    P9_DOTL_SYNC,
    P9_DOTL_TRUNC,
    P9_QTDIR,
    P9_QTFILE,
    P9_QTSYMLINK,
)
from voidbox.ninep.wire import Qid, refused

NAME_BYTES_MAX = 255
MODE_BITS = 0o777  # what a guest may set

_NODE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # NONBLOCK: no wait for a lease
_PASSED_ON = {
    P9_DOTL_TRUNC: os.O_TRUNC,
    P9_DOTL_APPEND: os.O_APPEND,
    P9_DOTL_DSYNC: os.O_DSYNC,
    P9_DOTL_SYNC: os.O_SYNC,
}
_DEVICE_SHIFT = 48
_U64 = (1 << 64) - 1


class Descriptors:
    """How many descriptors the guest may have us hold. Thread: one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def take(self) -> None:
        """Count one more.

        Raises:
            OSError: EMFILE.
        """
        self.require(1)
        self.count += 1

    def require(self, count: int) -> None:
        """Check that so many more can be taken: before something is made that needs them.

        Raises:
            OSError: EMFILE.
        """
        if self.count + count > self.limit:
            raise refused(errno.EMFILE)

    def close(self, fd: int) -> None:
        """Close one."""
        os.close(fd)
        self.count -= 1


class Node:
    """A file, folder or link of the folder. Its users count themselves in and out.

    Attributes:
        kind: stat.S_IFMT of its mode.
        identity: its device and inode.
    """

    __slots__ = ("_descriptors", "_users", "fd", "identity", "kind")

    def __init__(self, fd: int, descriptors: Descriptors) -> None:
        self.fd = fd
        self._descriptors = descriptors
        self._users = 1
        status = os.fstat(fd)
        self.kind = stat.S_IFMT(status.st_mode)
        self.identity = (status.st_dev, status.st_ino)

    @property
    def is_folder(self) -> bool:
        """Whether names lead on from it."""
        return self.kind == stat.S_IFDIR

    def status(self) -> os.stat_result:
        """Return what stat(2) says."""
        return os.fstat(self.fd)

    def hold(self) -> Node:
        """Count one more user; returns the node."""
        self._users += 1
        return self

    def drop(self) -> None:
        """Count one user less; the last one closes it."""
        self._users -= 1
        if not self._users:
            self._descriptors.close(self.fd)
            self.fd = -1


class Folder:
    """The folder. Thread: one, but for the constructor.

    Args:
        path: of the folder; the user's own, so links on the way to it are followed.
        descriptors_max: how many the guest may have us hold.

    Raises:
        ConfigError: it is no folder that can be shared.
    """

    def __init__(self, path: str, is_read_only: bool, descriptors_max: int) -> None:
        self.is_read_only = is_read_only
        self.descriptors = Descriptors(descriptors_max)
        self._devices: dict[int, int] = {}
        try:
            root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot share {path}: {error.strerror}") from error
        self.descriptors.take()
        self.root = Node(root_fd, self.descriptors)
        try:
            self.proc_fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.root.drop()
            raise ConfigError(f"cannot share {path}: /proc is missing") from error

    def close(self) -> None:
        """Free it. Idempotent."""
        if self.proc_fd >= 0:
            self.root.drop()
            os.close(self.proc_fd)
            self.proc_fd = -1

    def require_writable(self) -> None:
        """Refuse a change of a folder that is shared read-only.

        Raises:
            OSError: EROFS.
        """
        if self.is_read_only:
            raise refused(errno.EROFS)

    # Names.

    def child(self, node: Node, name: bytes) -> Node:
        """Return what a name in a folder leads to, itself and never what a link leads to.

        Raises:
            OSError: it cannot be reached, or is no name.
        """
        check_name(name)
        if not node.is_folder:
            raise refused(errno.ENOTDIR)
        return self._node(name, _NODE_FLAGS, node.fd)

    def _node(self, name: bytes, flags: int, folder_fd: int) -> Node:
        self.descriptors.take()
        try:
            fd = os.open(name, flags, dir_fd=folder_fd)
        except BaseException:
            self.descriptors.count -= 1
            raise
        try:
            return Node(fd, self.descriptors)
        except BaseException:
            self.descriptors.close(fd)
            raise

    def is_at(self, node: Node, folder: Node, name: bytes) -> bool:
        """Whether the node is what the name leads to now."""
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == node.identity

    # Contents.

    def open(self, node: Node, flags: int) -> int:
        """Return a descriptor to read or write a node by; the caller closes it by `descriptors`.

        Args:
            flags: P9_DOTL_*.
        Raises:
            OSError: it is neither file nor folder, or the host says no.
        """
        access = flags & P9_DOTL_NOACCESS
        if access == P9_DOTL_NOACCESS:
            raise refused(errno.EINVAL)
        changes = access != P9_DOTL_RDONLY or bool(flags & P9_DOTL_TRUNC)
        if changes:
            self.require_writable()
        if node.is_folder:
            if changes:
                raise refused(errno.EISDIR)
            return self._descriptor(b".", os.O_RDONLY | os.O_DIRECTORY, node.fd)
        if node.kind == stat.S_IFLNK:
            raise refused(errno.ELOOP)
        if node.kind != stat.S_IFREG:
            raise refused(errno.EACCES)  # a device, a FIFO, a socket of the host
        if changes:
            _require_plain(node)
        passed_on = sum(ours for theirs, ours in _PASSED_ON.items() if flags & theirs)
        return self._descriptor(str(node.fd).encode(), access | passed_on, self.proc_fd)

    def create(self, folder: Node, name: bytes, flags: int, mode: int) -> tuple[Node, int]:
        """Make a file and open it; return its node and a descriptor.

        Raises:
            OSError: EEXIST, whatever the flags, if there is something of that name.
        """
        self.require_writable()
        check_name(name)
        access = flags & P9_DOTL_NOACCESS
        if access == P9_DOTL_NOACCESS:
            raise refused(errno.EINVAL)
        self.descriptors.require(2)
        passed_on = sum(ours for theirs, ours in _PASSED_ON.items() if flags & theirs)
        new = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = self._descriptor(name, access | passed_on | new, folder.fd, mode & MODE_BITS)
        try:
            os.fchmod(fd, mode & MODE_BITS)  # the umask that counts is the guest's
            node = self._node(str(fd).encode(), os.O_PATH | os.O_CLOEXEC, self.proc_fd)
        except BaseException:
            self.descriptors.close(fd)
            raise
        return node, fd

    def _descriptor(self, name: bytes, flags: int, folder_fd: int, mode: int = 0) -> int:
        self.descriptors.take()
        try:
            return os.open(name, flags | _OPEN_FLAGS, mode, dir_fd=folder_fd)
        except BaseException:
            self.descriptors.count -= 1
            raise

    # What is known of files.

    def entry(self, node: Node) -> bytes:
        """Return the node's name in proc_fd, for calls that have to be given one."""
        return str(node.fd).encode()

    def proc_path(self, node: Node) -> str:
        """Return the same as a path, for calls that take no folder."""
        return f"/proc/self/fd/{node.fd}"

    def truncate(self, node: Node, size: int) -> None:
        """Set a file's size."""
        fd = self.open(node, 1)  # P9_DOTL_WRONLY
        try:
            os.ftruncate(fd, size)
        finally:
            self.descriptors.close(fd)

    def set_mode(self, node: Node, mode: int) -> None:
        """Set permissions. A folder's special bits stay as they are, a file's are cleared."""
        if node.kind == stat.S_IFLNK:
            raise refused(errno.EOPNOTSUPP)
        kept = stat.S_IMODE(node.status().st_mode) & ~MODE_BITS if node.is_folder else 0
        os.chmod(self.entry(node), kept | mode & MODE_BITS, dir_fd=self.proc_fd)

    def qid(self, status: os.stat_result) -> Qid:
        """Return the qid of what has this status.

        Its version is 0: Linux 6.4 and later keep the contents of files of any other, as if nobody
        but the guest changed them.
        """
        return Qid(_qid_type(status.st_mode), 0, self.qid_path(status.st_dev, status.st_ino))

    def qid_path(self, device: int, inode: int) -> int:
        """Return a number for a file: its inode's, unless another file system is mounted here."""
        index = self._devices.setdefault(device, len(self._devices))
        return (inode ^ index << _DEVICE_SHIFT) & _U64


def _qid_type(mode: int) -> int:
    if stat.S_ISDIR(mode):
        return P9_QTDIR
    return P9_QTSYMLINK if stat.S_ISLNK(mode) else P9_QTFILE


def _require_plain(node: Node) -> None:
    """Refuse to change a program that runs with another's rights: root's writes would keep those.

    Raises:
        OSError: EACCES.
    """
    if node.status().st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise refused(errno.EACCES)


def check_name(name: bytes) -> None:
    """Refuse what is no name of something in a folder.

    Raises:
        OSError: EINVAL, or ENAMETOOLONG.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise refused(errno.EINVAL)
    if len(name) > NAME_BYTES_MAX:
        raise refused(errno.ENAMETOOLONG)
