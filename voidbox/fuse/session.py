"""What all handlers share: the folder, its nodes and handles, and how they are told of."""

from __future__ import annotations

import os
import resource
from typing import Protocol

from voidbox.fuse.cache import Cache
from voidbox.fuse.folder import Folder
from voidbox.fuse.handles import HandleTable
from voidbox.fuse.libc import DirentReader
from voidbox.fuse.nodes import Node, NodeTable
from voidbox.fuse.owners import Owners
from voidbox.fuse.wire import ATTR, ENTRY_OUT

DESCRIPTORS_MAX = 32768
_SHARE_OF_DESCRIPTORS = 4  # the guest's part of what this process may have open: 1 in so many
_NS = 1_000_000_000
_DEVICE_SHIFT = 48
_U64 = (1 << 64) - 1


class Exchange(Protocol):
    """The data of one request, which goes straight between a file and the guest's memory.

    Attributes:
        payload_bytes: how much a FUSE_WRITE brought.
        room_bytes: how much an answer may bring behind its fuse_out_header.
    """

    @property
    def payload_bytes(self) -> int: ...
    @property
    def room_bytes(self) -> int: ...

    def write_to(self, fd: int, offset: int, count: int) -> int:
        """Write the payload's first bytes to a file; returns how many it took."""
        ...

    def read_from(self, fd: int, offset: int, count: int) -> int:
        """Read from a file into the room; returns how many bytes there were."""
        ...


class Session:
    """One server's state. Thread: one, the server's, but for the constructor.

    Args:
        server_count: how many share what the guest may have us hold.

    Attributes:
        is_begun: FUSE_INIT has come.
        is_writeback: the client writes later, and itself knows sizes and times meanwhile.
    """

    def __init__(
        self,
        path: str,
        is_read_only: bool,
        cache: Cache,
        guest_uid: int,
        guest_gid: int,
        server_count: int,
    ) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        share = DESCRIPTORS_MAX if limit < 0 else limit // _SHARE_OF_DESCRIPTORS
        self.cache = cache
        self.folder = Folder(path, is_read_only, min(DESCRIPTORS_MAX, share) // server_count)
        self.nodes = NodeTable(self.folder.root)
        self.handles = HandleTable(self.folder, self.nodes)
        self.owners = Owners(os.fstat(self.folder.fd(self.folder.root)), guest_uid, guest_gid)
        self.dirents = DirentReader()
        self.is_begun = False
        self.is_writeback = False
        self._devices: dict[int, int] = {}

    def clear(self) -> None:
        """Forget the client."""
        self.handles.clear()
        self.folder.forget_all()
        self.nodes.clear()
        self.is_begun = self.is_writeback = False

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.clear()
        self.folder.close()

    def inode(self, device: int, inode: int) -> int:
        """Return a number for a file: its inode's, unless another file system is mounted here."""
        index = self._devices.setdefault(device, len(self._devices))
        return (inode ^ index << _DEVICE_SHIFT) & _U64

    def attr(self, status: os.stat_result) -> bytes:
        """Return a struct fuse_attr."""
        atime_ns, mtime_ns, ctime_ns = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
        return ATTR.pack(
            self.inode(status.st_dev, status.st_ino),
            status.st_size,
            status.st_blocks,
            atime_ns // _NS,
            mtime_ns // _NS,
            ctime_ns // _NS,
            atime_ns % _NS,
            mtime_ns % _NS,
            ctime_ns % _NS,
            status.st_mode,
            status.st_nlink,
            self.owners.uid(status.st_uid),
            self.owners.gid(status.st_gid),
            status.st_rdev & 0xFFFFFFFF,
            status.st_blksize,
            0,
        )

    def found(self, parent: Node | None, name: bytes, status: os.stat_result) -> bytes:
        """Return a struct fuse_entry_out: the client now knows what is at this place.

        Raises:
            OSError: as NodeTable.found().
        """
        node = self.nodes.found(parent, name, status)
        valid_s = self.cache.valid_s
        return ENTRY_OUT.pack(node.node_id, 0, valid_s, valid_s, 0, 0) + self.attr(status)

    def looked_up(self, folder: Node, name: bytes) -> bytes:
        """Return a struct fuse_entry_out of what a name in a folder leads to now.

        Raises:
            OSError: there is nothing, or the client knows too much already.
        """
        return self.found(folder, name, self.folder.status_at(folder, name))
