"""The folder that is shared, and how one moves in it without ever leaving it.

A node is reached from the nearest one above it that has a descriptor, one name at a time, by
openat() with O_PATH and O_NOFOLLOW, so that a link is a node like any other and is followed by
nobody; ".." is never looked up. What is reached must be the very file that the node stands for, by
device and inode. What is to be opened for reading and writing is first seen, on that descriptor, to
be a regular file or a folder, and then opened once more through the descriptor's own entry in
/proc: no name is looked up again, and so whoever swaps names as fast as he likes changes nothing.
(A file's type never changes. An entry of /proc/self/fd leads to the descriptor's file, not along
its path.)
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from voidbox.errors import ConfigError
from voidbox.fuse.nodes import Node
from voidbox.fuse.numbers import FUSE_ROOT_ID
from voidbox.fuse.wire import refused

NAME_BYTES_MAX = 255
MODE_BITS = 0o777  # what a guest may set
FOLDERS_KEPT = 256  # descriptors of folders between requests

_NODE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # NONBLOCK: no wait for a lease
_PASSED_ON = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_SYNC


class Descriptors:
    """How many descriptors the guest may have us hold. Thread: one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def open(self, name: bytes, flags: int, folder_fd: int, mode: int = 0) -> int:
        """Open and count a file.

        Raises:
            OSError: openat(2)'s, or EMFILE.
        """
        if self.count >= self.limit:
            raise refused(errno.EMFILE)
        fd = os.open(name, flags, mode, dir_fd=folder_fd)
        self.count += 1
        return fd

    def close(self, fd: int) -> None:
        """Close one."""
        os.close(fd)
        self.count -= 1


class Folder:
    """The folder. Thread: one, but for the constructor.

    Args:
        path: of the folder; the user's own, so links on the way to it are followed.
        descriptors_max: how many the guest may have us hold.

    Attributes:
        root: its node.
        proc_fd: /proc/self/fd, where entry() is a name.

    Raises:
        ConfigError: it is no folder that can be shared.
    """

    def __init__(self, path: str, is_read_only: bool, descriptors_max: int) -> None:
        self.is_read_only = is_read_only
        self.descriptors = Descriptors(descriptors_max)
        # Descriptors of nodes: of folders, the one used last at the end; and of what else the
        # request under way has needed.
        self._kept: OrderedDict[Node, int] = OrderedDict()
        self._kept_max = max(1, min(FOLDERS_KEPT, descriptors_max // 4))
        self._borrowed: dict[Node, int] = {}
        try:
            self._root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot share {path}: {error.strerror}") from error
        self.root = Node(FUSE_ROOT_ID, os.fstat(self._root_fd))
        try:
            self.proc_fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            os.close(self._root_fd)
            raise ConfigError(f"cannot share {path}: /proc is missing") from error

    def close(self) -> None:
        """Free it. Idempotent."""
        self.forget_all()
        if self.proc_fd >= 0:
            os.close(self._root_fd)
            os.close(self.proc_fd)
            self._root_fd = self.proc_fd = -1

    def require_writable(self) -> None:
        """Refuse a change of a folder that is shared read-only.

        Raises:
            OSError: EROFS.
        """
        if self.is_read_only:
            raise refused(errno.EROFS)

    # Descriptors of nodes.

    def fd(self, node: Node) -> int:
        """Return a descriptor of a node: O_PATH, or one that the client has opened.

        It is the folder's, and good until end_request().

        Raises:
            OSError: ESTALE: the node is not where it was; or openat(2)'s.
        """
        found = self._fd_at_hand(node)
        return self._go_to(node) if found is None else found

    def _fd_at_hand(self, node: Node) -> int | None:
        if node.handles:
            return node.handles[-1]
        kept = self._kept.get(node)
        if kept is not None:
            self._kept.move_to_end(node)
            return kept
        if node is self.root:
            return self._root_fd
        return self._borrowed.get(node)

    def _go_to(self, node: Node) -> int:
        """Open a node by the names that lead to it from one that is open."""
        way: list[Node] = []
        fd: int | None = None
        for at in node.way_up():
            fd = self._fd_at_hand(at)
            if fd is not None:
                break
            way.append(at)
        if fd is None:
            raise refused(errno.ESTALE)  # a file that has lost its name
        for at in reversed(way):
            fd = self._open_node(at, fd)
        return fd

    def _open_node(self, node: Node, folder_fd: int) -> int:
        try:
            fd = self.descriptors.open(node.name, _NODE_FLAGS, folder_fd)
        except FileNotFoundError as error:
            raise refused(errno.ESTALE) from error  # Linux then looks the name up anew
        try:
            node.check(os.fstat(fd))
        except BaseException:
            self.descriptors.close(fd)
            raise
        if node.is_folder:
            self._kept[node] = fd
        else:
            self._borrowed[node] = fd
        return fd

    def end_request(self) -> None:
        """Close what only the request needed, and the folders that were not used for longest."""
        while self._borrowed:
            self.descriptors.close(self._borrowed.popitem()[1])
        while len(self._kept) > self._kept_max:
            self.descriptors.close(self._kept.popitem(last=False)[1])

    def forget(self, node: Node) -> None:
        """Close the descriptor of a folder: it is gone, or the client has no use for it."""
        fd = self._kept.pop(node, None)
        if fd is not None:
            self.descriptors.close(fd)

    def forget_all(self) -> None:
        """Close all descriptors of nodes but the root's."""
        self.end_request()
        while self._kept:
            self.descriptors.close(self._kept.popitem()[1])

    # What is known of nodes.

    def status(self, node: Node) -> os.stat_result:
        """Return what stat(2) says, without opening a file for it.

        Raises:
            OSError: ESTALE: the node is not where it was.
        """
        at_hand = self._fd_at_hand(node)
        if at_hand is not None:
            return os.fstat(at_hand)
        if node.is_folder or node.parent is None:
            return os.fstat(self._go_to(node))
        try:
            return node.check(self.status_at(node.parent, node.name))
        except FileNotFoundError as error:
            raise refused(errno.ESTALE) from error

    def status_at(self, folder: Node, name: bytes) -> os.stat_result:
        """Return the status of what a name in a folder leads to, never what a link leads to."""
        return os.stat(name, dir_fd=self.fd(folder), follow_symlinks=False)

    def entry(self, node: Node) -> bytes:
        """Return the node's name in proc_fd, for calls that have to be given one."""
        return str(self.fd(node)).encode()

    def proc_path(self, node: Node) -> str:
        """Return the same as a path, for calls that take no folder."""
        return f"/proc/self/fd/{self.fd(node)}"

    # Contents.

    def open(self, node: Node, flags: int) -> int:
        """Return a descriptor to read or write a node by; the caller closes it by `descriptors`.

        Args:
            flags: O_*, of which those that a guest may set are heeded.
        Raises:
            OSError: it is neither file nor folder, or the host says no.
        """
        access = flags & os.O_ACCMODE
        if access == os.O_ACCMODE:
            raise refused(errno.EINVAL)
        changes = access != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if changes:
            self.require_writable()
        if node.is_folder:
            if changes:
                raise refused(errno.EISDIR)
            flags = os.O_RDONLY | os.O_DIRECTORY | _OPEN_FLAGS
            return self.descriptors.open(b".", flags, self.fd(node))
        if node.kind == stat.S_IFLNK:
            raise refused(errno.ELOOP)
        if node.kind != stat.S_IFREG:
            raise refused(errno.EACCES)  # a device, a FIFO, a socket of the host
        entry = self.entry(node)
        if changes:
            _require_plain(self.status(node))
        return self.descriptors.open(entry, flags & _PASSED_ON | _OPEN_FLAGS, self.proc_fd)

    def create(self, folder: Node, name: bytes, flags: int, mode: int) -> int:
        """Make a file and return a descriptor of it; the caller closes it by `descriptors`.

        Raises:
            OSError: EEXIST, if there is something of that name.
        """
        check_name(name)
        return self._make(folder, name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)

    def create_unnamed(self, folder: Node, flags: int, mode: int) -> int:
        """Make a file without a name, which may get one later; as create()."""
        return self._make(folder, b".", flags & ~os.O_CREAT | os.O_TMPFILE, mode)

    def _make(self, folder: Node, name: bytes, flags: int, mode: int) -> int:
        self.require_writable()
        if flags & os.O_ACCMODE == os.O_ACCMODE:
            raise refused(errno.EINVAL)
        made = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_TMPFILE
        flags = flags & (_PASSED_ON | made) | _OPEN_FLAGS
        fd = self.descriptors.open(name, flags, self.fd(folder), mode & MODE_BITS)
        try:
            os.fchmod(fd, mode & MODE_BITS)  # the umask that counts is the guest's
        except BaseException:
            self.descriptors.close(fd)
            raise
        return fd

    def truncate(self, node: Node, size: int) -> None:
        """Set a file's size."""
        fd = self.open(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            self.descriptors.close(fd)

    def set_mode(self, node: Node, mode: int) -> None:
        """Set permissions. A folder's special bits stay as they are, a file's are cleared."""
        if node.kind == stat.S_IFLNK:
            raise refused(errno.EOPNOTSUPP)
        entry = self.entry(node)
        kept = stat.S_IMODE(self.status(node).st_mode) & ~MODE_BITS if node.is_folder else 0
        os.chmod(entry, kept | mode & MODE_BITS, dir_fd=self.proc_fd)


def _require_plain(status: os.stat_result) -> None:
    """Refuse to change a program that runs with another's rights: root's writes would keep those.

    Raises:
        OSError: EACCES.
    """
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
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
