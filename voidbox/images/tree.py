"""A tree of files in memory: what an image will hold, before it is a file system.

Names are `str` as os.fsdecode makes them under UTF-8 (surrogateescape), so that any bytes come
through. A path is looked up inside the tree alone: a symbolic link in it is followed as in a
chroot, an absolute one from the tree's root, and one that climbs above that root is an error.

A file with several names is one node in several folders; how many is counted when it is written.
Contents stay where they are, on the host's disk, until they are copied once into an image.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Protocol

from voidbox.images.errors import ImageError
from voidbox.images.limits import DEPTH_MAX
from voidbox.named_tuple import NamedTuple

LINKS_FOLLOWED_MAX = 40  # MAXSYMLINKS (namei.h)


def encode(name: str) -> bytes:
    """Return a name's or a path's bytes."""
    return name.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """Return the name that these bytes are."""
    return name.decode("utf-8", "surrogateescape")


class Source(Protocol):
    """Where the bytes of files are."""

    def open(self) -> contextlib.AbstractContextManager[int]:
        """Return a descriptor to read from (at any offset) for as long as the context lasts."""


class Extent(NamedTuple):
    """A part of a file's content; what no extent covers is zero.

    Attributes:
        position: in the file, in bytes.
        length: in bytes.
        source: where it is.
        offset: in the source, in bytes.
    """

    position: int
    length: int
    source: Source
    offset: int


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """What every kind of file has.

    Attributes:
        mode: permissions with set-uid, set-gid and sticky; the type is the class.
        mtime_ns: since 1970; may be negative.
        xattrs: full names ("user.x") and values.
    """

    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class Directory(Node):
    """A folder and what it holds, by name, in no particular order."""

    mode: int = 0o755
    children: dict[str, Node] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class Regular(Node):
    """A regular file.

    Attributes:
        size: in bytes.
        extents: in ascending order of position, not overlapping, all within the size.
    """

    size: int = 0
    extents: tuple[Extent, ...] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class Symlink(Node):
    """A symbolic link; its target is data here, followed only where a path leads through it."""

    mode: int = 0o777
    target: str


@dataclass(slots=True, eq=False, kw_only=True)
class Special(Node):
    """A device node, a FIFO or a socket.

    Attributes:
        kind: S_IFCHR, S_IFBLK, S_IFIFO or S_IFSOCK.
        device: (major, minor) of a device node.
    """

    kind: int
    device: tuple[int, int] = (0, 0)


def file_type(node: Node) -> int:
    """Return a node's S_IFMT bits."""
    if isinstance(node, Special):
        return node.kind
    if isinstance(node, Directory):
        return stat.S_IFDIR
    return stat.S_IFLNK if isinstance(node, Symlink) else stat.S_IFREG


class SpoolSource:
    """A temporary file that holds the contents of files."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def open(self) -> contextlib.AbstractContextManager[int]:
        """Return its descriptor, which stays open with the tree."""
        return contextlib.nullcontext(self._file.fileno())


class Tree:
    """A root folder and the temporary files that contents are in; `close` removes those.

    Args:
        folder: where temporary files go; best the disk that the image will be on. The system's
            own folder for them if None.

    Attributes:
        entry_count: of the archives that went in, with the folders that no entry names;
            `total_bytes` of the files in them, gone ones too, `spooled_bytes` of the archives
            themselves, `metadata_bytes` of what memory holds of their entries. These are what
            limits bound.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.root = Directory()
        self.entry_count = 0
        self.total_bytes = 0
        self.spooled_bytes = 0
        self.metadata_bytes = 0
        self._folder = folder
        self._added: IO[bytes] | None = None
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Tree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the temporary files; contents in them are gone."""
        self._files.close()

    def below(self, path: str) -> Tree:
        """Return a folder of this tree, made if it is missing, as a tree of its own.

        Its contents are this one's, and gone when this one is closed.

        Raises:
            ImageError: something other than a folder is in the way.
        """
        tree = Tree(self._folder)
        tree.root = self.make_folder(path.split("/"))
        tree._files = self._files
        return tree

    def new_spool(self) -> IO[bytes]:
        """Return a temporary file without a name, closed with the tree.

        Raises:
            OSError: it cannot be made.
        """
        return self._files.enter_context(tempfile.TemporaryFile(dir=self._folder))

    def add_bytes(
        self, data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime_ns: int = 0
    ) -> Regular:
        """Return a new file with this content, in no folder yet; the rest as of a Node.

        Raises:
            OSError: no temporary file can be written.
        """
        if self._added is None:
            self._added = self.new_spool()
        offset = self._added.tell()
        self._added.write(data)
        self._added.flush()
        extents = (Extent(0, len(data), SpoolSource(self._added), offset),) if data else ()
        return Regular(
            mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, size=len(data), extents=extents
        )

    def read(self, node: Regular, limit_bytes: int) -> bytes:
        """Return a file's content.

        Raises:
            ImageError: it is larger than the limit, or not to be read any more.
            OSError: reading failed.
        """
        if node.size > limit_bytes:
            raise ImageError(f"a file of {node.size} bytes; {limit_bytes} can be read")
        data = bytearray(node.size)
        for extent in node.extents:
            with extent.source.open() as descriptor:
                piece = os.pread(descriptor, extent.length, extent.offset)
            if len(piece) < extent.length:
                raise ImageError("a file became shorter while it was read")
            data[extent.position : extent.position + extent.length] = piece
        return bytes(data)

    def find(self, path: str) -> Node | None:
        """Return what a path leads to, its last component's link not followed; None if nothing.

        Raises:
            ImageError: a link on the way climbs above the root, or there are too many.
        """
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts:
            return self.root
        parent = self.folder(parts[:-1])
        return parent.children.get(parts[-1]) if parent else None

    def put(self, path: str, node: Node) -> None:
        """Put a node where a path leads; the folders on the way are made where they are missing.

        Raises:
            ImageError: as `find`; or something else than a folder stands in the way.
        """
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or parts[-1] == "..":
            raise ImageError(f"{path!r} is no name for a file")
        self.make_folder(parts[:-1]).children[parts[-1]] = node

    def folder(self, parts: list[str]) -> Directory | None:
        """Return the folder that these names lead to, following links; None if there is none.

        Raises:
            ImageError: as `find`.
        """
        return self._resolve(parts, is_made=False)

    def make_folder(self, parts: list[str]) -> Directory:
        """Return that folder, making what is missing on the way: also behind a dangling link.

        Raises:
            ImageError: as `put`.
        """
        found = self._resolve(parts, is_made=True)
        if found is None:
            raise ImageError(f"{'/'.join(parts)!r}: something other than a folder is in the way")
        return found

    def _resolve(self, parts: list[str], *, is_made: bool) -> Directory | None:
        above: list[Directory] = []  # the folders that lead to `here`
        here = self.root
        pending = parts[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if not above:
                    raise ImageError(f"{'/'.join(parts)!r} leads out of the image")
                here = above.pop()
                continue
            child = here.children.get(name)
            if child is None and is_made:
                if len(above) >= DEPTH_MAX:
                    raise ImageError(f"{'/'.join(parts)!r}: more than {DEPTH_MAX} folders deep")
                child = here.children[name] = Directory()
                self.entry_count += 1
            if isinstance(child, Symlink):
                links += 1
                if links > LINKS_FOLLOWED_MAX:
                    raise ImageError(f"{'/'.join(parts)!r}: too many levels of symbolic links")
                if child.target.startswith("/"):
                    above, here = [], self.root
                pending.extend(reversed(child.target.split("/")))
            elif isinstance(child, Directory):
                above.append(here)
                here = child
            else:
                return None
        return here

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything, folders before what they hold, sorted by name.

        The root's path is "", others have no leading slash; a file with several names comes with
        each.
        """
        pending: list[tuple[str, Node]] = [("", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            if isinstance(node, Directory):
                prefix = f"{path}/" if path else ""
                names = sorted(node.children, key=encode, reverse=True)
                pending.extend((prefix + name, node.children[name]) for name in names)
