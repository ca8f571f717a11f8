"""A folder of the host as a tree. Contents stay where they are until an image is written.

Nothing is followed out of the folder, whatever somebody does to it meanwhile: folders are opened
one from another, never through a symbolic link. A file that is not what it was by the time its
content is copied, or while it is, is an error: the image would hold half of each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS, DEPTH_MAX, Limits
from voidbox.images.tree import (
    Directory,
    Extent,
    Node,
    Regular,
    Special,
    Symlink,
    Tree,
    decode,
)
from voidbox.named_tuple import NamedTuple

_PROC_FD = b"/proc/self/fd/%d"  # calls on xattrs take no folder's descriptor
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTRS_NOT_HERE = {errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOENT}
_SECTOR_BYTES = 512  # st_blocks counts these


class Options(NamedTuple):
    """How a folder is read.

    Attributes:
        owner: (uid, gid) that everything gets; each file's own if None.
        mtime_ns: the time that everything gets; each file's own if None.
        are_xattrs_kept: False leaves extended attributes out.
        are_modes_shared: whoever it is may read and execute what the owner may, and only the owner
            may write; so that modes do not depend on the umask of who made the folder.
    """

    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None
    are_xattrs_kept: bool = True
    are_modes_shared: bool = False


def default_options() -> Options:
    """Return what suits the caller: whoever is not root makes an image that is root's."""
    return Options(owner=None if os.geteuid() == 0 else (0, 0))


class HostFile:
    """The content of a file on the host, opened when it is needed.

    Args:
        path: absolute.
        status: as it was when the tree was made.
    """

    def __init__(self, path: bytes, status: os.stat_result) -> None:
        self._path = path
        self._identity = _identity(status)

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """Open it; ImageError if it cannot be read or is not what it was."""
        with _said(self._path):
            descriptor = os.open(self._path, _OPEN_FLAGS)
        try:
            self._check(descriptor)
            yield descriptor
            self._check(descriptor)
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        if _identity(os.fstat(descriptor)) != self._identity:
            name = os.fsdecode(self._path)
            raise ImageError(f"{name} has changed while the image was made; try again")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_folder(
    path: str,
    options: Options | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    on_skip: Callable[[str, str], None] | None = None,
) -> Tree:
    """Return the tree of a folder; its own mode and owner become the root's.

    Args:
        on_skip: called with (path, why) for what is left out: sockets.
    Raises:
        ImageError: no such folder, a file that may not be read, more than the limits allow.
    """
    reader = _Reader(options or default_options(), limits, on_skip or (lambda path, why: None))
    tree = Tree()
    reader.read(tree, os.fsencode(os.path.abspath(path)))
    return tree


class _Reader:
    """One reading of one folder."""

    def __init__(
        self, options: Options, limits: Limits, on_skip: Callable[[str, str], None]
    ) -> None:
        self._options = options
        self._limits = limits
        self._on_skip = on_skip
        self._linked: dict[tuple[int, int], Node] = {}  # (device, inode) of files with more names

    def read(self, tree: Tree, path: bytes) -> None:
        """Fill the tree."""
        with _said(path):
            descriptor = os.open(path, _FOLDER_FLAGS)
        self._read_folder(tree, tree.root, descriptor, path, depth=0)

    def _read_folder(
        self, tree: Tree, node: Directory, descriptor: int, path: bytes, depth: int
    ) -> None:
        """Fill a folder's node; closes its descriptor."""
        try:
            if depth > DEPTH_MAX:
                raise ImageError(f"{os.fsdecode(path)}: more than {DEPTH_MAX} folders deep")
            with _said(path):
                self._describe(node, _PROC_FD % descriptor, os.fstat(descriptor))
                with os.scandir(descriptor) as entries:
                    names = sorted(os.fsencode(entry.name) for entry in entries)
            for name in names:
                child = self._node(tree, descriptor, name, b"%s/%s" % (path, name))
                if child is not None:
                    node.children[decode(name)] = child
                if isinstance(child, Directory):
                    with _said(path):
                        below = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
                    self._read_folder(tree, child, below, b"%s/%s" % (path, name), depth + 1)
        finally:
            os.close(descriptor)

    def _node(self, tree: Tree, folder: int, name: bytes, path: bytes) -> Node | None:
        """Return the node of a file in an open folder; a folder's still to be filled."""
        tree.entry_count += 1
        if tree.entry_count > self._limits.entries:
            raise ImageError(f"more than {self._limits.entries} files")
        with _said(path):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return self._linked[key]
            node = self._new_node(folder, name, path, status)
            if node is None:
                self._on_skip(os.fsdecode(path), "a socket")
                return None
            if not isinstance(node, Directory):
                self._describe(node, _PROC_FD % folder + b"/" + name, status)
        if isinstance(node, Regular):
            tree.total_bytes += node.size
            if tree.total_bytes > self._limits.total_bytes:
                raise ImageError(f"more than {self._limits.total_bytes} bytes of files")
        if status.st_nlink > 1 and not isinstance(node, Directory):
            self._linked[key] = node
        return node

    def _new_node(
        self, folder: int, name: bytes, path: bytes, status: os.stat_result
    ) -> Node | None:
        """Return a node with content but without attributes; None for a socket."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            return Regular(size=status.st_size, extents=_extents(path, status))
        if kind == stat.S_IFDIR:
            return Directory()
        if kind == stat.S_IFLNK:
            return Symlink(target=decode(os.readlink(name, dir_fd=folder)))
        if kind == stat.S_IFSOCK:
            return None
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        return Special(kind=kind, device=(0, 0) if kind == stat.S_IFIFO else device)

    def _describe(self, node: Node, path: bytes, status: os.stat_result) -> None:
        options = self._options
        node.mode = stat.S_IMODE(status.st_mode)
        if options.are_modes_shared and not isinstance(node, Symlink):
            owner = node.mode & 0o500
            node.mode = node.mode & 0o7700 | owner >> 3 | owner >> 6
        node.uid, node.gid = options.owner or (status.st_uid, status.st_gid)
        node.mtime_ns = status.st_mtime_ns if options.mtime_ns is None else options.mtime_ns
        if options.are_xattrs_kept:
            node.xattrs = _xattrs(path, is_followed=isinstance(node, Directory))


@contextlib.contextmanager
def _said(path: bytes) -> Iterator[None]:
    """Turn an OSError into one that names the file."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"{os.fsdecode(path)}: {error.strerror}") from error


def _xattrs(path: bytes, *, is_followed: bool) -> dict[str, bytes]:
    """Return those that we may read; none where the file system has none.

    Args:
        is_followed: for a path that is itself a link of /proc.
    """
    found = {}
    try:
        names = os.listxattr(path, follow_symlinks=is_followed)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = os.getxattr(path, name, follow_symlinks=is_followed)
    except OSError as error:
        if error.errno not in _XATTRS_NOT_HERE:
            raise
    return found


def _extents(path: bytes, status: os.stat_result) -> tuple[Extent, ...]:
    """Return where a file has content; makes sure that it can be read."""
    source = HostFile(path, status)
    if not status.st_size:
        return ()
    with source.open() as descriptor:
        if status.st_blocks * _SECTOR_BYTES >= status.st_size:
            return (Extent(0, status.st_size, source, 0),)
        return tuple(
            Extent(start, end - start, source, start)
            for start, end in _data_ranges(descriptor, status.st_size)
        )


def _data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is no hole (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end
