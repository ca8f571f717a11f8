"""What the client has open: handles, each a descriptor of a node's file."""

from __future__ import annotations

import errno
from collections import deque

from voidbox.fuse.folder import Folder
from voidbox.fuse.libc import Dirent
from voidbox.fuse.nodes import Node, NodeTable
from voidbox.fuse.wire import refused


class Handle:
    """An open file or folder.

    Attributes:
        fd: its descriptor.
        node: what is open.
        is_writable: it was opened for that.
        position: of an open folder: behind what the client was told last.
        unread: entries behind it that were read already, and found no room in an answer. They are
            not read again: where a file system counts its entries, as tmpfs does, going back to a
            position leaves some out if others were removed meanwhile.
    """

    __slots__ = ("fd", "is_writable", "node", "position", "unread")

    def __init__(self, fd: int, node: Node, is_writable: bool) -> None:
        self.fd = fd
        self.node = node
        self.is_writable = is_writable
        self.position = 0
        self.unread: deque[Dirent] = deque()


class HandleTable:
    """All handles, by what the client calls them: numbers that are never given twice.

    Thread: the server's.
    """

    def __init__(self, folder: Folder, nodes: NodeTable) -> None:
        self._folder = folder
        self._nodes = nodes
        self._handles: dict[int, Handle] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, fd: int, node: Node, is_writable: bool) -> int:
        """Add one; the descriptor is the table's from now on."""
        number = self._next
        self._next += 1
        self._handles[number] = Handle(fd, node, is_writable)
        node.handles.append(fd)
        return number

    def get(self, number: int) -> Handle:
        """Return one.

        Raises:
            OSError: EBADF: there is none.
        """
        handle = self._handles.get(number)
        if handle is None:
            raise refused(errno.EBADF)
        return handle

    def file(self, number: int) -> Handle:
        """Return one of a file.

        Raises:
            OSError: EBADF: there is none; EISDIR: it is a folder's.
        """
        handle = self.get(number)
        if handle.node.is_folder:
            raise refused(errno.EISDIR)
        return handle

    def writable(self, number: int) -> Handle:
        """Return one of a file that was opened for writing.

        Raises:
            OSError: EBADF, EISDIR, or EROFS.
        """
        handle = self.file(number)
        if not handle.is_writable:
            raise refused(errno.EBADF)
        self._folder.require_writable()
        return handle

    def release(self, number: int) -> None:
        """Close one.

        Raises:
            OSError: EBADF: there is none.
        """
        handle = self.get(number)
        del self._handles[number]
        handle.node.handles.remove(handle.fd)
        self._folder.descriptors.close(handle.fd)
        self._nodes.drop_if_unused(handle.node)

    def clear(self) -> None:
        """Close all."""
        for number in list(self._handles):
            self.release(number)
