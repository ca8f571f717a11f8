"""Apply the layers of an image, tar archives of changes, to a tree (OCI image-spec, layer.md).

What an entry does to what is there already:

    a folder over a folder      its owner, mode, time and xattrs replace the old ones; what it holds
                                stays
    anything else               what was there is gone, with all that it held
    .wh.NAME                    NAME from the layers below is gone
    .wh..wh..opq                all that the layers below have in this folder is gone

The last two never touch what their own layer brings, in whatever order it comes.

A name, and what a hard link means, is cleaned first, as docker and containerd do it: "/a/./x" is
a/x, and "a/../x" is x, whatever a is. The path is then resolved in the tree, as in a chroot, links
in its middle followed (a layer over a base with merged /usr writes lib/x, and means usr/lib/x), its
end not. Where containerd stays at the root when a name or such a link climbs above it, the layer is
refused here. Where a symbolic link leads is the guest's own affair, and so is what a device node
stands for.
"""

from __future__ import annotations

import stat
import tarfile
from typing import BinaryIO

from voidbox.images.errors import ImageError
from voidbox.images.limits import (
    DEFAULT_LIMITS,
    DEPTH_MAX,
    ID_MAX,
    LINK_BYTES_MAX,
    MAJOR_MAX,
    MINOR_MAX,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    Limits,
)
from voidbox.images.tar_reader import Entry, Reader, said
from voidbox.images.tree import (
    Directory,
    Extent,
    Node,
    Regular,
    Source,
    Special,
    SpoolSource,
    Symlink,
    Tree,
    encode,
)
from voidbox.images.unpack import unpack
from voidbox.named_tuple import NamedTuple

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # AUFS' own bookkeeping, which other tools leave out as well
# An overlay's notes about its upper folder: in an image they would speak of another overlay.
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
_XATTR_BYTES, _EXTENT_BYTES = 128, 192  # that Python takes, besides a name and a value
_SPECIAL_KINDS = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class Applied(NamedTuple):
    """What a layer was.

    Attributes:
        diff_id: "sha256:…" of it unpacked, as rootfs.diff_ids in an image's configuration.
        unpacked_bytes: the size of its archive.
        entry_count: how many entries that holds.
    """

    diff_id: str
    unpacked_bytes: int
    entry_count: int


def apply_layer(
    tree: Tree,
    stream: BinaryIO,
    limits: Limits = DEFAULT_LIMITS,
    *,
    are_links_kept: bool = False,
) -> Applied:
    """Apply a layer to a tree. After an error the tree is of no more use.

    Contents are in a temporary file of the tree's until it is closed.

    Args:
        stream: a tar archive, as it is or packed by gzip or zstd; read once, to its end.
        limits: of the tree, with all of its layers so far.
        are_links_kept: a folder over a link to a folder changes nothing, as dpkg has it.
    Raises:
        ImageError: the archive is damaged, hostile or too large; names the entry.
        OSError: reading or writing failed: no room is left on the disk, say.
    """
    spool = tree.new_spool()
    left = limits._replace(total_bytes=limits.total_bytes - tree.spooled_bytes)
    size, diff_id = unpack(stream, spool, left)
    tree.spooled_bytes += size
    layer = _Layer(tree, SpoolSource(spool), limits, are_links_kept)
    for entry in Reader(spool.fileno(), size, limits).entries():
        try:
            layer.apply(entry)
        except ImageError as error:
            raise ImageError(f"layer entry {said(entry.name)}: {error}") from error
    return Applied(diff_id, size, layer.entry_count)


class _Layer:
    """One layer on its way into a tree."""

    def __init__(self, tree: Tree, source: Source, limits: Limits, are_links_kept: bool) -> None:
        self._tree = tree
        self._source = source
        self._limits = limits
        self._are_links_kept = are_links_kept
        self.entry_count = 0
        # The names that this layer brought: (folder's id, name). The folder is the value, for an id
        # is good for as long as what it belongs to.
        self._brought: dict[tuple[int, str], Directory] = {}
        self._pruned: dict[int, Directory] = {}  # where nothing of the layers below is left

    def apply(self, entry: Entry) -> None:
        """Apply one entry.

        Raises:
            ImageError: it must not be applied; does not name the entry.
        """
        self.entry_count += 1
        self._tree.entry_count += 1
        if self._tree.entry_count > self._limits.entries:
            raise ImageError(f"the image has more than {self._limits.entries} entries")
        self._count_metadata(entry)
        parts = _split(entry.name)
        if not parts:
            self._apply_root(entry)
        elif parts[0].startswith(_AUFS) and parts[0] != _OPAQUE:
            pass
        elif parts[-1].startswith(_WHITEOUT):
            self._apply_whiteout(parts[:-1], parts[-1])
        elif entry.type == tarfile.LNKTYPE:
            self._apply_hard_link(parts, _split(entry.link))
        else:
            self._place(parts, self._new_node(entry))

    def _count_metadata(self, entry: Entry) -> None:
        xattrs = sum(_XATTR_BYTES + len(name) + len(value) for name, value in entry.xattrs.items())
        names = len(entry.name) + len(entry.link)
        self._tree.metadata_bytes += names + xattrs + _EXTENT_BYTES * len(entry.pieces)
        if self._tree.metadata_bytes > self._limits.metadata_bytes:
            raise ImageError(
                "the image has too many names, extended attributes and holes: more than "
                f"{self._limits.metadata_bytes} bytes of them"
            )

    def _apply_root(self, entry: Entry) -> None:
        if entry.type != tarfile.DIRTYPE:
            raise ImageError("the root must be a folder")
        self._describe(self._tree.root, entry)

    def _apply_whiteout(self, parent: list[str], name: str) -> None:
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise ImageError("a whiteout of no name")
        folder = self._tree.folder(parent)
        if folder is None:
            return
        if name == _OPAQUE:
            self._prune(folder)
        elif not name.startswith(_AUFS):
            self._hide(folder, hidden)

    def _hide(self, folder: Directory, name: str) -> None:
        """Take away what the layers below have under a name."""
        child = folder.children.get(name)
        if child is None:
            return
        if isinstance(child, Directory):
            self._prune(child)
            if child.children:
                return
        if (id(folder), name) not in self._brought:
            del folder.children[name]

    def _prune(self, folder: Directory) -> None:
        """Take away all that the layers below have in a folder."""
        if id(folder) in self._pruned:
            return
        self._pruned[id(folder)] = folder
        for name in list(folder.children):
            self._hide(folder, name)

    def _apply_hard_link(self, parts: list[str], target: list[str]) -> None:
        node = self._tree.find("/".join(target))
        if node is None:
            raise ImageError(f"a hard link to {said('/'.join(target))}, which is not there")
        if isinstance(node, Directory):
            raise ImageError(f"a hard link to {said('/'.join(target))}, which is a folder")
        self._place(parts, node)

    def _place(self, parts: list[str], node: Node) -> None:
        folder = self._tree.make_folder(parts[:-1])
        name = parts[-1]
        there = folder.children.get(name)
        if isinstance(there, Directory) and isinstance(node, Directory):
            there.mode, there.mtime_ns, there.xattrs = node.mode, node.mtime_ns, node.xattrs
            there.uid, there.gid = node.uid, node.gid
        elif self._is_link_kept(there, node, parts):
            return
        else:
            folder.children[name] = node
        self._brought[id(folder), name] = folder

    def _is_link_kept(self, there: Node | None, node: Node, parts: list[str]) -> bool:
        is_over_link = isinstance(there, Symlink) and isinstance(node, Directory)
        return self._are_links_kept and is_over_link and self._tree.folder(parts) is not None

    def _new_node(self, entry: Entry) -> Node:
        node: Node
        if entry.type == tarfile.REGTYPE:
            node = self._new_file(entry)
        elif entry.type == tarfile.DIRTYPE:
            node = Directory()
        elif entry.type == tarfile.SYMTYPE:
            if not 0 < len(encode(entry.link)) <= LINK_BYTES_MAX or "\0" in entry.link:
                raise ImageError("a symbolic link to no path")
            node = Symlink(target=entry.link)
        elif entry.type in _SPECIAL_KINDS:
            node = _new_special(entry)
        else:
            raise ImageError(f"an unknown type of entry, {entry.type.decode('latin-1')!a}")
        self._describe(node, entry)
        if isinstance(node, Symlink):
            node.mode = 0o777  # as Linux has them all, whatever an archive says
        return node

    def _new_file(self, entry: Entry) -> Regular:
        self._tree.total_bytes += entry.size
        if self._tree.total_bytes > self._limits.total_bytes:
            raise ImageError(f"the image has more than {self._limits.total_bytes} bytes of files")
        extents = tuple(
            Extent(position, length, self._source, offset)
            for position, length, offset in entry.pieces
        )
        return Regular(size=entry.size, extents=extents)

    def _describe(self, node: Node, entry: Entry) -> None:
        if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
            raise ImageError(f"nobody can be {entry.uid}:{entry.gid}")
        node.mode = entry.mode
        node.uid, node.gid, node.mtime_ns = entry.uid, entry.gid, entry.mtime_ns
        node.xattrs = self._checked_xattrs(entry.xattrs)

    def _checked_xattrs(self, xattrs: dict[str, bytes]) -> dict[str, bytes]:
        kept = {}
        total = 0
        for name, value in xattrs.items():
            total += len(name) + len(value)
            if not 0 < len(encode(name)) <= XATTR_NAME_BYTES_MAX or "\0" in name:
                raise ImageError("an extended attribute of no name")
            if len(value) > XATTR_VALUE_BYTES_MAX or total > self._limits.xattr_bytes:
                raise ImageError(f"extended attributes of {total} bytes")
            if not name.startswith(_OVERLAY_XATTRS):
                kept[name] = value
        return kept


def _new_special(entry: Entry) -> Special:
    kind = _SPECIAL_KINDS[entry.type]
    if kind == stat.S_IFIFO:
        return Special(kind=kind)
    major, minor = entry.device
    if not (0 <= major <= MAJOR_MAX and 0 <= minor <= MINOR_MAX):
        raise ImageError(f"no device can be {major}:{minor}")
    return Special(kind=kind, device=entry.device)


def _split(path: str) -> list[str]:
    """Return the components of a path once it is clean; none for the root itself.

    A ".." takes away the component before it, whatever that is: no link is followed here.
    """
    if "\0" in path:
        raise ImageError("a path with a NUL in it")
    if len(encode(path)) > PATH_BYTES_MAX:
        raise ImageError(f"a path of more than {PATH_BYTES_MAX} bytes")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise ImageError("a path with .. that leads out of the image")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if len(parts) > DEPTH_MAX:
        raise ImageError(f"more than {DEPTH_MAX} folders deep")
    if any(len(encode(part)) > NAME_BYTES_MAX for part in parts):
        raise ImageError(f"a name of more than {NAME_BYTES_MAX} bytes")
    return parts
