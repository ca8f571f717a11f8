"""Fids, what the client calls its files, and how many of them it may have."""

from __future__ import annotations

import errno
from typing import NamedTuple

from voidbox.ninep.folder import Descriptors, Node
from voidbox.ninep.numbers import P9_NOFID
from voidbox.ninep.wire import refused

FIDS_MAX = 16384
XATTR_BYTES_MAX = 64 << 10  # of one: the kernel's XATTR_SIZE_MAX
XATTRS_BYTES_MAX = 4 << 20  # of all that are held at a time


class OpenFile(NamedTuple):
    """What Tlopen or Tlcreate opened."""

    fd: int
    is_folder: bool
    is_writable: bool


class ReadXattr(NamedTuple):
    """The value of an extended attribute, or the list of their names, that is being read."""

    value: bytes


class WrittenXattr:
    """An extended attribute whose value comes by Twrite, and which Tclunk sets."""

    def __init__(self, name: str, size: int, flags: int) -> None:
        self.name = name
        self.size = size
        self.flags = flags
        self.value = bytearray()


class Fid:
    """One fid.

    Attributes:
        node: the file.
        parent, name: how the client got there; it may be called something else by now.
        file: once it is open.
        xattr: when it stands for an extended attribute of the node.
        position: of an open folder's descriptor.
    """

    __slots__ = ("file", "name", "node", "parent", "position", "xattr")

    def __init__(self, node: Node, parent: Node | None, name: bytes) -> None:
        self.node = node
        self.parent = parent
        self.name = name
        self.file: OpenFile | None = None
        self.xattr: ReadXattr | WrittenXattr | None = None
        self.position = 0

    def copy(self) -> Fid:
        """Return another fid of the same file, not open."""
        parent = self.parent.hold() if self.parent is not None else None
        return Fid(self.node.hold(), parent, self.name)

    def move(self, node: Node, parent: Node | None, name: bytes) -> None:
        """Stand for another file; both nodes are the fid's from now on."""
        old_node, old_parent = self.node, self.parent
        self.node, self.parent, self.name = node, parent, name
        old_node.drop()
        if old_parent is not None:
            old_parent.drop()

    def opened(self) -> OpenFile:
        """Return what is open.

        Raises:
            OSError: EBADF, if nothing is.
        """
        if self.file is None:
            raise refused(errno.EBADF)
        return self.file

    @property
    def xattr_bytes(self) -> int:
        """What its extended attribute may need of memory."""
        if self.xattr is None:
            return 0
        return len(self.xattr.value) if isinstance(self.xattr, ReadXattr) else self.xattr.size


class FidTable:
    """All fids of a session. Thread: one."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._fids: dict[int, Fid] = {}
        self._xattr_bytes = 0

    def __len__(self) -> int:
        return len(self._fids)

    def get(self, number: int) -> Fid:
        """Return a fid of a file.

        Raises:
            OSError: EBADF: there is none, or it stands for an extended attribute.
        """
        fid = self._fids.get(number)
        if fid is None or fid.xattr is not None:
            raise refused(errno.EBADF)
        return fid

    def get_any(self, number: int) -> Fid:
        """Return a fid.

        Raises:
            OSError: EBADF: there is none.
        """
        fid = self._fids.get(number)
        if fid is None:
            raise refused(errno.EBADF)
        return fid

    def require_free(self, number: int) -> None:
        """Check that a new fid may have this number.

        Raises:
            OSError: it may not, or there are too many already.
        """
        if number == P9_NOFID or number in self._fids:
            raise refused(errno.EINVAL)
        if len(self._fids) >= FIDS_MAX:
            raise refused(errno.EMFILE)

    def add(self, number: int, fid: Fid) -> None:
        """Add one, for which require_free() was asked; its nodes are the table's."""
        self._fids[number] = fid

    def set_xattr(self, fid: Fid, xattr: ReadXattr | WrittenXattr) -> None:
        """Have a fid stand for an extended attribute.

        Raises:
            OSError: ENOSPC: too much is held already.
        """
        size = len(xattr.value) if isinstance(xattr, ReadXattr) else xattr.size
        if self._xattr_bytes + size > XATTRS_BYTES_MAX:
            raise refused(errno.ENOSPC)
        self._xattr_bytes += size
        fid.xattr = xattr

    def remove(self, number: int) -> Fid | None:
        """Take one out, and free what it holds but its nodes, which the caller drops."""
        fid = self._fids.pop(number, None)
        if fid is not None:
            self._xattr_bytes -= fid.xattr_bytes
            if fid.file is not None:
                self._descriptors.close(fid.file.fd)
                fid.file = None
        return fid

    def clunk(self, number: int) -> None:
        """Remove one, if it is there."""
        fid = self.remove(number)
        if fid is not None:
            drop_nodes(fid)

    def clear(self) -> None:
        """Remove all."""
        for number in list(self._fids):
            self.clunk(number)


def drop_nodes(fid: Fid) -> None:
    """Let go of the nodes of a fid that was removed."""
    fid.node.drop()
    if fid.parent is not None:
        fid.parent.drop()
