"""Write a tree as an EROFS image: read-only, the same bytes for the same tree.

Linux Documentation/filesystems/erofs.rst; erofs_format.py has the structures. No root and no
other program is needed. All inodes are of the extended kind (32-bit owners, 64-bit sizes, a time
of their own). The end of a file that leaves part of a block over stands behind its inode, where it
fits into that block: most small files need no block of their own.

Everything about the tree is laid out first; then the inodes are written, in the order in which
they stand; then contents are copied, each once, to where they belong. Holes stay holes in the
image file.

Where files are to be compressed (erofs_lz4.py), those of more than a block are written first, one
after another behind all else, for their inodes tell what became of each piece.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from voidbox.images import erofs_format as disk
from voidbox.images import erofs_lz4
from voidbox.images.contents import Copier, part, read_all, write_all
from voidbox.images.errors import ImageError
from voidbox.images.tree import (
    Directory,
    Node,
    Regular,
    Special,
    Symlink,
    Tree,
    decode,
    encode,
    file_type,
)
from voidbox.lz4 import Compressor

_BUFFER_BYTES = 1 << 20
_BLOCKS_MAX = (1 << 32) - 1
_NS = 10**9


@dataclass(slots=True, eq=False)
class _Inode:
    """A node and where it goes.

    Attributes:
        path: one of its paths, for messages.
        parent: of a directory.
        batches: a directory's names, those of each block.
        size: of its content, in bytes.
        tail_bytes: how much of it stands behind the inode.
        offset: of the inode in the image, in bytes.
        block: where the rest of the content begins; or how many blocks it takes, compressed.
        is_compressed: it is, or is to be.
        packed: what became of it.
    """

    node: Node
    path: str
    parent: _Inode | None
    number: int
    link_count: int = 1
    xattrs: bytes = b""
    batches: list[list[bytes]] = field(default_factory=list)
    size: int = 0
    tail_bytes: int = 0
    offset: int = 0
    block: int = 0
    is_compressed: bool = False
    packed: erofs_lz4.Packed | None = None

    @property
    def fixed_bytes(self) -> int:
        """Of the inode and its xattrs."""
        return disk.INODE.size + len(self.xattrs)

    @property
    def nid(self) -> int:
        return self.offset // disk.SLOT_BYTES

    @property
    def block_bytes(self) -> int:
        """How much of the content is in blocks of its own, as it is."""
        return 0 if self.is_compressed else self.size - self.tail_bytes

    @property
    def tail_offset(self) -> int:
        return self.offset + self.fixed_bytes


Progress = Callable[[int, int], None]


def write_erofs(
    tree: Tree,
    file: BinaryIO,
    *,
    mtime: int = 0,
    uuid: bytes | None = None,
    progress: Progress | None = None,
    compressor: Compressor | None = None,
) -> int:
    """Write a tree as an image into a file, from its start; what was in the file is gone.

    The file is neither flushed to the disk nor closed.

    Args:
        file: a real one (with a descriptor), writable.
        mtime: when the image was made, in seconds since 1970; files have their own times.
        uuid: 16 bytes; made from names, sizes, times, owners and targets if None.
        progress: called with (bytes copied, bytes to copy) now and then.
        compressor: of the files; None leaves them as they are.
    Returns:
        The image's size in bytes, a multiple of 4096.
    Raises:
        ImageError: a name is too long, a file changed under our hands, the image gets too large.
        OSError: reading or writing failed.
    """
    inodes = _number(tree.root)
    by_node = {id(inode.node): inode for inode in inodes}
    for inode in inodes if compressor is not None else ():
        if isinstance(inode.node, Regular):
            inode.is_compressed = erofs_lz4.is_worth_it(inode.node.size)
    block_count = _lay_out(inodes)
    target = file.fileno()
    file.flush()
    file.truncate(0)
    tell = _Progress(inodes, progress)
    if compressor is not None:
        block_count = _write_compressed(target, inodes, block_count, compressor, tell)
    file.truncate(block_count * disk.BLOCK_BYTES)
    digest = _write_inodes(target, inodes, by_node)
    _write_contents(target, inodes, tell)
    uuid = uuid or digest[:16]
    write_all(target, _super_block(inodes, block_count, mtime, uuid, compressor is not None), 0)
    return block_count * disk.BLOCK_BYTES


class _Progress:
    """Counts the bytes of files, and tells the caller."""

    def __init__(self, inodes: list[_Inode], progress: Progress | None) -> None:
        self._total = sum(inode.size for inode in inodes if isinstance(inode.node, Regular))
        self._done = 0
        self._progress = progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


def _number(root: Directory) -> list[_Inode]:
    """Return an inode for each node, in the order of a walk; names of one node count its links."""
    first = _Inode(root, "", None, number=1, link_count=2)
    found = {id(root): first}
    inodes = [first]
    pending = [first]
    while pending:
        here = pending.pop()
        assert isinstance(here.node, Directory)
        below: list[_Inode] = []
        for name in sorted(here.node.children, key=encode):
            node = here.node.children[name]
            known = found.get(id(node))
            if known is not None:
                if isinstance(node, Directory):
                    raise ImageError(f"{known.path!r}: a folder stands in two places")
                known.link_count += 1
                continue
            path = f"{here.path}/{name}"
            inode = _Inode(node, path, here, number=len(inodes) + 1)
            found[id(node)] = inode
            inodes.append(inode)
            if isinstance(node, Directory):
                inode.link_count = 2
                here.link_count += 1
                below.append(inode)
        pending.extend(reversed(below))
    return inodes


def _lay_out(inodes: list[_Inode]) -> int:
    """Decide where everything goes; return how many blocks the image has."""
    slots = disk.Slots(first_block=1)
    for inode in inodes:
        _measure(inode)
        behind = inode.size % disk.BLOCK_BYTES
        if inode.is_compressed:
            behind = erofs_lz4.map_bytes(inode.fixed_bytes, inode.size)
        elif inode.fixed_bytes + behind <= disk.BLOCK_BYTES:
            inode.tail_bytes = behind
        else:
            behind = 0
        inode.offset = slots.place(inode.fixed_bytes + behind)
    block = slots.end_block
    # Folders first: what looks up names then reads on, not across the files.
    for inode in sorted(inodes, key=lambda inode: not isinstance(inode.node, Directory)):
        if inode.block_bytes:
            inode.block = block
            block += -(-inode.block_bytes // disk.BLOCK_BYTES)
    return _check_blocks(block)


def _check_blocks(count: int) -> int:
    if count > _BLOCKS_MAX:
        raise ImageError(f"an image of {count} blocks of 4 KiB is more than erofs takes")
    return count


def _measure(inode: _Inode) -> None:
    node = inode.node
    try:
        inode.xattrs = disk.encode_xattrs((encode(name), node.xattrs[name]) for name in node.xattrs)
    except ValueError as error:
        raise ImageError(f"{inode.path!r}: {error}") from error
    if isinstance(node, Regular):
        inode.size = node.size
    elif isinstance(node, Symlink):
        inode.size = len(encode(node.target))
    elif isinstance(node, Directory):
        names = sorted([b".", b"..", *map(encode, node.children)])
        longest = max(map(len, names))
        if longest > 255 or not names[0]:
            raise ImageError(f"{inode.path!r} has a name of {longest} bytes; 1 to 255 can be")
        inode.batches = list(disk.split_directory(names))
        last = inode.batches[-1]
        last_bytes = sum(map(len, last)) + disk.DIRENT.size * len(last)
        inode.size = (len(inode.batches) - 1) * disk.BLOCK_BYTES + last_bytes


def _record(inode: _Inode) -> bytes:
    """Return the inode with its xattrs, and a map of what is compressed; without its content."""
    node = inode.node
    layout = disk.EROFS_INODE_FLAT_INLINE if inode.tail_bytes else disk.EROFS_INODE_FLAT_PLAIN
    if inode.is_compressed:
        layout = erofs_lz4.EROFS_INODE_COMPRESSED_FULL
    seconds, nanoseconds = divmod(node.mtime_ns, _NS)
    kind = file_type(node)
    where = inode.block
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert isinstance(node, Special)
        where = disk.encode_device(node.device)
    fixed = disk.INODE.pack(
        disk.inode_format(layout),
        disk.xattr_icount(len(inode.xattrs)),
        kind | stat.S_IMODE(node.mode),
        inode.size,
        where,
        inode.number,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        inode.link_count,
    )
    behind = b""
    if inode.packed is not None:
        behind = erofs_lz4.encode_map(inode.fixed_bytes, inode.packed)
    return fixed + inode.xattrs + behind


def _write_inodes(target: int, inodes: list[_Inode], by_node: dict[int, _Inode]) -> bytes:
    """Write inodes and the content of folders and links; return a digest of all that."""
    digest = hashlib.sha256()
    start = disk.BLOCK_BYTES
    buffer = bytearray()
    for inode in sorted(inodes, key=lambda inode: inode.offset):
        record, data = _record(inode), _data(inode, by_node)
        digest.update(record)
        digest.update(data)
        if inode.offset - start > _BUFFER_BYTES:
            write_all(target, buffer, start)
            start, buffer = inode.offset, bytearray()
        buffer += bytes(inode.offset - start - len(buffer)) + record
        if data:
            write_all(target, data[: inode.block_bytes], inode.block * disk.BLOCK_BYTES)
            buffer += data[inode.block_bytes :]
    write_all(target, buffer, start)
    return digest.digest()


def _data(inode: _Inode, by_node: dict[int, _Inode]) -> bytes:
    """Return the content of a folder or a link; nothing for other files."""
    node = inode.node
    if isinstance(node, Symlink):
        return encode(node.target)
    if not isinstance(node, Directory):
        return b""
    parent = inode.parent or inode
    blocks = []
    for names in inode.batches:
        entries = []
        for name in names:
            if name == b".":
                found = inode
            elif name == b"..":
                found = parent
            else:
                found = by_node[id(node.children[decode(name)])]
            entries.append((name, found.nid, file_type(found.node)))
        blocks.append(disk.encode_directory_block(entries))
    return b"".join(block.ljust(disk.BLOCK_BYTES, b"\0") for block in blocks[:-1]) + blocks[-1]


def _write_compressed(
    target: int, inodes: list[_Inode], block: int, compressor: Compressor, tell: _Progress
) -> int:
    """Write what is compressed, from a block on; return how many blocks the image has then."""
    files = [inode for inode in inodes if inode.is_compressed]
    outcomes = erofs_lz4.pack(target, block, map(_parts, files), compressor)
    for inode, packed in zip(files, outcomes, strict=True):
        inode.packed, inode.block = packed, packed.block_count
        block = _check_blocks(block + packed.block_count)
        tell.add(inode.size)
    return block


def _parts(inode: _Inode) -> Iterator[tuple[bytes, bool]]:
    """Yield what of a file is compressed together, and whether it is the last."""
    assert isinstance(inode.node, Regular)
    for start, end in erofs_lz4.cut(inode.size):
        data = bytearray(end - start)
        for piece in part(inode.node.extents, start, end):
            with piece.source.open() as source:
                at = piece.position - start
                read_all(source, memoryview(data)[at : at + piece.length], piece.offset)
        yield bytes(data), end == inode.size


def _write_contents(target: int, inodes: list[_Inode], tell: _Progress) -> None:
    copier = Copier(target)
    for inode in inodes:
        if not isinstance(inode.node, Regular) or inode.is_compressed or not inode.size:
            continue
        for extent in inode.node.extents:
            with extent.source.open() as source:
                for piece in part((extent,), 0, inode.block_bytes):
                    place = inode.block * disk.BLOCK_BYTES + piece.position
                    copier.copy(source, piece, place)
                for piece in part((extent,), inode.block_bytes, inode.size):
                    place = inode.tail_offset + piece.position - inode.block_bytes
                    copier.copy(source, piece, place)
        tell.add(inode.size)


def _super_block(
    inodes: list[_Inode], block_count: int, mtime: int, uuid: bytes, is_compressed: bool
) -> bytes:
    fields = disk.SUPER_BLOCK.pack(
        disk.EROFS_SUPER_MAGIC_V1,
        0,  # checksum, below
        disk.EROFS_FEATURE_COMPAT_SB_CHKSUM | disk.EROFS_FEATURE_COMPAT_MTIME,
        disk.BLOCK_BITS,
        0,  # sb_extslots
        inodes[0].nid,
        len(inodes),
        mtime,
        0,  # build_time_nsec
        block_count,
        0,  # meta_blkaddr: a nid counts from the start of the image
        0,  # xattr_blkaddr: no xattr is shared
        uuid,
        b"",  # volume_name
        erofs_lz4.EROFS_FEATURE_INCOMPAT if is_compressed else 0,
        erofs_lz4.AVAILABLE_ALGORITHMS if is_compressed else 0,
    )
    if is_compressed:
        fields += erofs_lz4.CONFIGURATION
    # The checksum covers the rest of the block, as if it were 0 itself.
    rest = fields.ljust(disk.BLOCK_BYTES - disk.EROFS_SUPER_OFFSET, b"\0")
    checksum = disk.crc32c(rest).to_bytes(4, "little")
    return bytes(disk.EROFS_SUPER_OFFSET) + rest[:4] + checksum + rest[8:]
