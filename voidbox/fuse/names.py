"""Messages about what is in folders: looking it up, making, moving, removing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from voidbox.fuse.folder import MODE_BITS, check_name
from voidbox.fuse.libc import renameat2
from voidbox.fuse.nodes import Node
from voidbox.fuse.numbers import RENAME_EXCHANGE, RENAME_NOREPLACE
from voidbox.fuse.session import Exchange, Session
from voidbox.fuse.wire import (
    BATCH_FORGET_IN,
    ENTRY_OUT,
    ENTRY_OUT_BYTES,
    FORGET_IN,
    FORGET_ONE,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    RENAME2_IN,
    RENAME_IN,
    Request,
    refused,
)
from voidbox.named_tuple import NamedTuple

_TARGET_BYTES_MAX = 4095
# What mknod may make: nothing that has a meaning on the host.
_MADE_BY_MKNOD = frozenset((0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK))
_LINKED = frozenset((stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK))


class _Known(NamedTuple):
    """A node at a place; whether that is the only name that its file has."""

    node: Node
    is_last_name: bool


class Names:
    """Handlers. Each takes a request and returns what its answer is made of.

    Thread: the server's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._nodes = session.nodes

    # What is there.

    def lookup(self, request: Request, exchange: Exchange) -> bytes:
        """name → fuse_entry_out; node 0 for what is not there, as long as that may be believed"""
        name = request.name()
        folder = self._looked_in(request.node_id)
        check_name(name)
        try:
            return self._session.looked_up(folder, name)
        except FileNotFoundError:
            valid_s = self._session.cache.valid_s
            if not valid_s:
                raise
            return ENTRY_OUT.pack(0, 0, valid_s, 0, 0, 0) + bytes(ENTRY_OUT_BYTES - ENTRY_OUT.size)

    def forget(self, request: Request, exchange: Exchange) -> None:
        """fuse_forget_in; no answer"""
        (count,) = request.take(FORGET_IN)
        self._nodes.forget(request.node_id, count)

    def batch_forget(self, request: Request, exchange: Exchange) -> None:
        """fuse_batch_forget_in, fuse_forget_one…; no answer"""
        request.take(BATCH_FORGET_IN)
        whole = len(request.body) - BATCH_FORGET_IN.size
        ones = request.body[BATCH_FORGET_IN.size :][: whole - whole % FORGET_ONE.size]
        for node_id, count in FORGET_ONE.iter_unpack(ones):
            self._nodes.forget(node_id, count)

    def readlink(self, request: Request, exchange: Exchange) -> bytes:
        """→ the target"""
        node = self._nodes.get(request.node_id)
        if node.kind != stat.S_IFLNK:
            raise refused(errno.EINVAL)
        return os.readlink(b"", dir_fd=self._folder.fd(node))

    def _looked_in(self, node_id: int) -> Node:
        folder = self._nodes.get(node_id)
        if not folder.is_folder:
            raise refused(errno.ENOTDIR)
        return folder

    # Making.

    def _changed(self, node_id: int) -> Node:
        """Return a folder in which something is to change."""
        self._folder.require_writable()
        return self._looked_in(node_id)

    def _where_new(self, node_id: int, name: bytes) -> Node:
        """Return the folder in which something of this name is to be made.

        Raises:
            OSError: it is no name, or the client knows too much already to be told of it.
        """
        check_name(name)
        self._nodes.require_room()
        return self._changed(node_id)

    def _made(self, folder: Node, name: bytes, mode: int) -> bytes:
        """Return a struct fuse_entry_out of what was made, with the permissions asked for."""
        status = self._folder.status_at(folder, name)
        made = self._session.found(folder, name, status)
        if (status.st_mode ^ mode) & MODE_BITS:  # our umask; the one that counts is the guest's
            node = self._nodes.known(status)
            assert node is not None
            self._folder.set_mode(node, mode)
            self._nodes.forget(node.node_id, 1)  # as it was told of it then
            made = self._session.looked_up(folder, name)
        return made

    def mkdir(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_mkdir_in, name → fuse_entry_out"""
        mode, _umask = request.take(MKDIR_IN)
        name = request.name(MKDIR_IN.size)
        folder = self._where_new(request.node_id, name)
        os.mkdir(name, mode & MODE_BITS, dir_fd=self._folder.fd(folder))
        return self._made(folder, name, mode)

    def mknod(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_mknod_in, name → fuse_entry_out"""
        mode, _rdev, _umask, _ = request.take(MKNOD_IN)
        name = request.name(MKNOD_IN.size)
        folder = self._where_new(request.node_id, name)
        kind = stat.S_IFMT(mode)
        if kind not in _MADE_BY_MKNOD:
            raise refused(errno.EPERM)
        kind = kind or stat.S_IFREG
        os.mknod(name, kind | mode & MODE_BITS, dir_fd=self._folder.fd(folder))
        return self._made(folder, name, mode)

    def symlink(self, request: Request, exchange: Exchange) -> bytes:
        """name, target → fuse_entry_out"""
        name, target = request.names(0, 2)
        folder = self._where_new(request.node_id, name)
        if not target:
            raise refused(errno.EINVAL)
        if len(target) > _TARGET_BYTES_MAX:
            raise refused(errno.ENAMETOOLONG)
        os.symlink(target, name, dir_fd=self._folder.fd(folder))
        return self._session.looked_up(folder, name)

    def link(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_link_in, name → fuse_entry_out"""
        (node_id,) = request.take(LINK_IN)
        name = request.name(LINK_IN.size)
        folder = self._where_new(request.node_id, name)
        node = self._nodes.get(node_id)
        if node.kind not in _LINKED:
            raise refused(errno.EPERM)
        os.link(
            self._folder.entry(node),
            name,
            src_dir_fd=self._folder.proc_fd,
            dst_dir_fd=self._folder.fd(folder),
            follow_symlinks=True,  # the entry in /proc, which leads to the node itself
        )
        return self._session.looked_up(folder, name)

    # Moving.

    def rename(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_rename_in, name, new name →"""
        (new_id,) = request.take(RENAME_IN)
        return self._rename(request, RENAME_IN.size, new_id, 0)

    def rename2(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_rename2_in, name, new name →"""
        new_id, flags, _ = request.take(RENAME2_IN)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise refused(errno.EINVAL)
        return self._rename(request, RENAME2_IN.size, new_id, flags)

    def _rename(self, request: Request, behind: int, new_id: int, flags: int) -> bytes:
        name, new_name = request.names(behind, 2)
        folder, new_folder = self._changed(request.node_id), self._changed(new_id)
        check_name(name)
        check_name(new_name)
        moved, replaced = self._known_at(folder, name), self._known_at(new_folder, new_name)
        from_fd, to_fd = self._folder.fd(folder), self._folder.fd(new_folder)
        if flags:
            renameat2(from_fd, name, to_fd, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        if flags == RENAME_EXCHANGE:
            self._is_now_at(replaced, folder, name)
        else:
            self._gone(replaced)
        self._is_now_at(moved, new_folder, new_name)
        return b""

    def _known_at(self, folder: Node, name: bytes) -> _Known | None:
        """Return what the client knows of a place before it changes."""
        try:
            status = self._folder.status_at(folder, name)
        except FileNotFoundError:
            return None
        node = self._nodes.known(status)
        if node is None or node.parent is not folder or node.name != name:
            return None
        return _Known(node, node.is_folder or status.st_nlink == 1)

    def _is_now_at(self, known: _Known | None, folder: Node, name: bytes) -> None:
        if known is None:
            return
        try:
            self._nodes.place(known.node, folder, name)
        except OSError:  # where it is now cannot be, by what we know of the host's own renames
            self._gone(known)

    def _gone(self, known: _Known | None) -> None:
        """Note that something has lost the name that we know it by."""
        if known is not None:
            self._folder.forget(known.node)
            self._nodes.gone(known.node, known.is_last_name)

    # Removing.

    def unlink(self, request: Request, exchange: Exchange) -> bytes:
        """name →"""
        return self._remove(request, os.unlink)

    def rmdir(self, request: Request, exchange: Exchange) -> bytes:
        """name →"""
        return self._remove(request, os.rmdir)

    def _remove(self, request: Request, remove: Callable[..., None]) -> bytes:
        folder, name = self._changed(request.node_id), request.name()
        check_name(name)
        known = self._known_at(folder, name)
        remove(name, dir_fd=self._folder.fd(folder))
        self._gone(known)
        return b""
