"""A folder of the host as a tree. Contents stay where they are until an image is written.

Nothing is followed out of the folder: each file is opened relative to the folder that it is in,
and never through a symbolic link. A file that has changed by the time its content is copied is an
error, for an image would then hold half of each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
        name = os.fsdecode(self._path)
        try:
            descriptor = os.open(self._path, _OPEN_FLAGS)
        except OSError as error:
            raise ImageError(f"{name}: {error.strerror}") from error
        try:
            if _identity(os.fstat(descriptor)) != self._identity:
                raise ImageError(f"{name} has changed while the image was made; try again")
            yield descriptor
        finally:
            os.close(descriptor)


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
        pending = [(path, tree.root, 0)]
        with _said(path):
            self._describe(tree.root, path, os.stat(path))
        while pending:
            folder, node, depth = pending.pop()
            if depth > DEPTH_MAX:
                raise ImageError(f"{os.fsdecode(folder)}: more than {DEPTH_MAX} folders deep")
            with _said(folder), os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                child = self._node(tree, entry)
                if child is None:
                    continue
                node.children[decode(entry.name)] = child
                if isinstance(child, Directory):
                    pending.append((entry.path, child, depth + 1))

    def _node(self, tree: Tree, entry: os.DirEntry[bytes]) -> Node | None:
        tree.entry_count += 1
        if tree.entry_count > self._limits.entries:
            raise ImageError(f"more than {self._limits.entries} files")
        with _said(entry.path):
            status = entry.stat(follow_symlinks=False)
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return self._linked[key]
            node = self._new_node(entry.path, status)
        if node is None:
            self._on_skip(os.fsdecode(entry.path), "a socket")
            return None
        if isinstance(node, Regular):
            tree.total_bytes += node.size
            if tree.total_bytes > self._limits.total_bytes:
                raise ImageError(f"more than {self._limits.total_bytes} bytes of files")
        self._describe(node, entry.path, status)
        if status.st_nlink > 1 and not isinstance(node, Directory):
            self._linked[key] = node
        return node

    def _new_node(self, path: bytes, status: os.stat_result) -> Node | None:
        """Return a node with content but without attributes; None for a socket."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            return Regular(size=status.st_size, extents=_extents(path, status))
        if kind == stat.S_IFDIR:
            return Directory()
        if kind == stat.S_IFLNK:
            return Symlink(target=decode(os.readlink(path)))
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
            node.xattrs = _xattrs(path)


@contextlib.contextmanager
def _said(path: bytes) -> Iterator[None]:
    """Turn an OSError into one that names the file."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"{os.fsdecode(path)}: {error.strerror}") from error


def _xattrs(path: bytes) -> dict[str, bytes]:
    """Return those that we may read; none where the file system has none."""
    found = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _XATTRS_NOT_HERE:
            raise ImageError(f"{os.fsdecode(path)}: {error.strerror}") from error
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
