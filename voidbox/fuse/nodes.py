"""What the client knows of the folder: nodes, which it counts its references to.

A node is a place, a name in another node, and the file that was found there, by device and inode.
It holds no descriptor of its own, so that a guest that has looked at a hundred thousand files costs
a hundred thousand small objects and not as many descriptors: folder.py goes there again when it
has to, and whoever then finds another file says ESTALE.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from voidbox.fuse.numbers import FUSE_ROOT_ID
from voidbox.fuse.wire import refused

NODES_MAX = 1 << 18  # some 100 MB; Linux forgets what it has no memory for long before
DEPTH_MAX = 4096


class Node:
    """A file, folder or link. Thread: the server's.

    Attributes:
        node_id: what the client calls it; never given twice.
        kind: stat.S_IFMT of its mode.
        identity: its device and inode.
        parent, name: where it was found last; None and empty for the root, and for what has lost
            its name or never had one.
        lookups: how often the client was told of it and has not forgotten.
        children: how many nodes have it as their parent.
        handles: descriptors of files that the client has open of it, the last one opened last.
    """

    __slots__ = ("children", "handles", "identity", "kind", "lookups", "name", "node_id", "parent")

    def __init__(self, node_id: int, status: os.stat_result) -> None:
        self.node_id = node_id
        self.kind = stat.S_IFMT(status.st_mode)
        self.identity = (status.st_dev, status.st_ino)
        self.parent: Node | None = None
        self.name = b""
        self.lookups = 0
        self.children = 0
        self.handles: list[int] = []

    @property
    def is_folder(self) -> bool:
        """Whether names lead on from it."""
        return self.kind == stat.S_IFDIR

    def is_of(self, status: os.stat_result) -> bool:
        """Whether this is the status of the node's own file."""
        identity = (status.st_dev, status.st_ino)
        return identity == self.identity and stat.S_IFMT(status.st_mode) == self.kind

    def check(self, status: os.stat_result) -> os.stat_result:
        """Return a status that is of the node's own file.

        Raises:
            OSError: ESTALE: the host has put another file in its place.
        """
        if not self.is_of(status):
            raise refused(errno.ESTALE)
        return status

    def way_up(self) -> Iterator[Node]:
        """Yield the node, the one it is in, and so on.

        Raises:
            OSError: ESTALE: it goes on for too long.
        """
        at: Node | None = self
        for _ in range(DEPTH_MAX):
            if at is None:
                return
            yield at
            at = at.parent
        raise refused(errno.ESTALE)


class NodeTable:
    """All nodes. Thread: the server's, but for the constructor.

    Args:
        root: always there.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self._next_id = FUSE_ROOT_ID + 1
        self._by_id: dict[int, Node] = {}
        self._by_identity: dict[tuple[int, int], Node] = {}
        self.clear()

    def __len__(self) -> int:
        return len(self._by_id)

    def clear(self) -> None:
        """Forget all but the root."""
        root = self.root
        root.children = 0
        root.handles.clear()
        self._by_id = {root.node_id: root}
        self._by_identity = {root.identity: root}

    def get(self, node_id: int) -> Node:
        """Return a node that the client knows.

        Raises:
            OSError: ESTALE: it does not.
        """
        node = self._by_id.get(node_id)
        if node is None:
            raise refused(errno.ESTALE)
        return node

    def require_room(self) -> None:
        """Check that one more can be told of: before something is made that needs it.

        Raises:
            OSError: ENFILE.
        """
        if len(self._by_id) >= NODES_MAX:
            raise refused(errno.ENFILE)

    def known(self, status: os.stat_result) -> Node | None:
        """Return the node of the file that has this status, if the client was told of it."""
        node = self._by_identity.get((status.st_dev, status.st_ino))
        return node if node is not None and node.is_of(status) else None

    def found(self, parent: Node | None, name: bytes, status: os.stat_result) -> Node:
        """Return the node of what was found at a place, which the client is told of.

        Args:
            parent: None for a file without a name.
        Raises:
            OSError: ENFILE: there are too many; ESTALE: a folder cannot be inside itself.
        """
        node = self.known(status)
        if node is None:
            self.require_room()
            node = Node(self._next_id, status)
            self._next_id += 1
            self._by_id[node.node_id] = node
            self._by_identity[node.identity] = node
        if parent is not None:
            self.place(node, parent, name)
        node.lookups += 1
        return node

    def place(self, node: Node, parent: Node, name: bytes) -> None:
        """Note where a node is.

        Raises:
            OSError: ESTALE: a folder cannot be inside itself; what we know of it is old.
        """
        if node is self.root:
            return
        if node.parent is not parent:
            if node.children and node in parent.way_up():
                raise refused(errno.ESTALE)
            parent.children += 1
            self._leave(node)
            node.parent = parent
        node.name = name

    def gone(self, node: Node, was_last_name: bool) -> None:
        """Note that a node is not at its place any more.

        Args:
            was_last_name: its inode's number may be given to another file.
        """
        if was_last_name and self._by_identity.get(node.identity) is node:
            del self._by_identity[node.identity]
        self._leave(node)

    def _leave(self, node: Node) -> None:
        parent, node.parent, node.name = node.parent, None, b""
        if parent is not None:
            parent.children -= 1
            self.drop_if_unused(parent)

    def forget(self, node_id: int, count: int) -> None:
        """Take back `count` of the times that the client was told of a node."""
        node = self._by_id.get(node_id)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        """Drop a node that nobody refers to, and what it was in, if that was all that did."""
        at: Node | None = node
        while at is not None and at is not self.root:
            if at.lookups or at.children or at.handles:
                return
            self._by_id.pop(at.node_id, None)
            if self._by_identity.get(at.identity) is at:
                del self._by_identity[at.identity]
            parent, at.parent = at.parent, None
            if parent is not None:
                parent.children -= 1
            at = parent
