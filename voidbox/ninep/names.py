"""Messages about names: what is made, moved and removed."""

from __future__ import annotations

import errno
import os
import stat
import struct

from voidbox.ninep.fids import Fid, drop_nodes
from voidbox.ninep.folder import MODE_BITS, Node, check_name
from voidbox.ninep.numbers import P9_DOTL_AT_REMOVEDIR
from voidbox.ninep.session import Exchange, Session
from voidbox.ninep.wire import Fields, refused, text

_U32, _U32X2 = struct.Struct("<I"), struct.Struct("<II")
_MKNOD = struct.Struct("<IIII")  # mode major minor gid
_TARGET_BYTES_MAX = 4095  # PATH_MAX less its NUL
# A device node of the guest's would be one of the host's.
_MADE_BY_MKNOD = frozenset((0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK))
_LINKED = frozenset((stat.S_IFREG, stat.S_IFLNK))


class Names:
    """Handlers. Each takes a request's fields and returns the answer's. Thread: the server's."""

    def __init__(self, session: Session) -> None:
        self._folder = session.folder
        self._fids = session.fids

    def _parent(self, number: int) -> Node:
        """Return the folder in which something is to change.

        Raises:
            OSError: it is none, or is shared read-only.
        """
        node = self._fids.get(number).node
        self._folder.require_writable()
        if not node.is_folder:
            raise refused(errno.ENOTDIR)
        return node

    def _require_new(self, name: bytes) -> None:
        """Check that something of this name can be made, and _qid() then told of it.

        Raises:
            OSError: it is no name, or there are too many descriptors.
        """
        check_name(name)
        self._folder.descriptors.require(1)

    def _qid(self, folder: Node, name: bytes, mode: int | None = None) -> bytes:
        """Return the qid of what was made, with the permissions that were asked for."""
        node = self._folder.child(folder, name)
        try:
            if mode is not None and node.kind != stat.S_IFLNK:
                self._folder.set_mode(node, mode)
            return self._folder.qid(node.status()).pack()
        finally:
            node.drop()

    # Making.

    def mkdir(self, fields: Fields, exchange: Exchange) -> bytes:
        """dfid[4] name[s] mode[4] gid[4] → qid[13]"""
        (number,) = fields.take(_U32)
        name = fields.text()
        mode, _gid = fields.take(_U32X2)
        fields.end()
        folder = self._parent(number)
        self._require_new(name)
        os.mkdir(name, mode & MODE_BITS, dir_fd=folder.fd)
        return self._qid(folder, name, mode)

    def mknod(self, fields: Fields, exchange: Exchange) -> bytes:
        """dfid[4] name[s] mode[4] major[4] minor[4] gid[4] → qid[13]"""
        (number,) = fields.take(_U32)
        name = fields.text()
        mode, _major, _minor, _gid = fields.take(_MKNOD)
        fields.end()
        folder = self._parent(number)
        self._require_new(name)
        kind = stat.S_IFMT(mode)
        if kind not in _MADE_BY_MKNOD:
            raise refused(errno.EPERM)
        os.mknod(name, (kind or stat.S_IFREG) | mode & MODE_BITS, dir_fd=folder.fd)
        return self._qid(folder, name, mode)

    def symlink(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] name[s] symtgt[s] gid[4] → qid[13]"""
        (number,) = fields.take(_U32)
        name, target = fields.text(), fields.text()
        fields.take(_U32)
        fields.end()
        folder = self._parent(number)
        self._require_new(name)
        if not target or b"\0" in target:
            raise refused(errno.EINVAL)
        if len(target) > _TARGET_BYTES_MAX:
            raise refused(errno.ENAMETOOLONG)
        os.symlink(target, name, dir_fd=folder.fd)
        return self._qid(folder, name)

    def readlink(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] → target[s]"""
        (number,) = fields.take(_U32)
        fields.end()
        node = self._fids.get(number).node
        if node.kind != stat.S_IFLNK:
            raise refused(errno.EINVAL)
        return text(os.readlink(b"", dir_fd=node.fd))

    def link(self, fields: Fields, exchange: Exchange) -> bytes:
        """dfid[4] fid[4] name[s] →"""
        folder_number, number = fields.take(_U32X2)
        name = fields.text()
        fields.end()
        folder = self._parent(folder_number)
        check_name(name)
        node = self._fids.get(number).node
        if node.kind not in _LINKED:
            raise refused(errno.EPERM)
        os.link(
            self._folder.entry(node),
            name,
            src_dir_fd=self._folder.proc_fd,
            dst_dir_fd=folder.fd,
            follow_symlinks=True,  # the entry in /proc, which leads to the node itself
        )
        return b""

    # Moving.

    def rename(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] dfid[4] name[s] →"""
        number, folder_number = fields.take(_U32X2)
        name = fields.text()
        fields.end()
        folder = self._parent(folder_number)
        check_name(name)
        fid = self._fids.get(number)
        parent = self._place(fid)
        os.rename(fid.name, name, src_dir_fd=parent.fd, dst_dir_fd=folder.fd)
        fid.move(fid.node.hold(), folder.hold(), name)
        return b""

    def renameat(self, fields: Fields, exchange: Exchange) -> bytes:
        """olddirfid[4] oldname[s] newdirfid[4] newname[s] →"""
        (old_number,) = fields.take(_U32)
        old_name = fields.text()
        (new_number,) = fields.take(_U32)
        new_name = fields.text()
        fields.end()
        old, new = self._parent(old_number), self._parent(new_number)
        check_name(old_name)
        check_name(new_name)
        os.rename(old_name, new_name, src_dir_fd=old.fd, dst_dir_fd=new.fd)
        return b""

    def _place(self, fid: Fid) -> Node:
        """Return the folder in which the fid has its name.

        Raises:
            OSError: ENOENT: by now it is called something else; EBUSY: it is the root.
        """
        if fid.parent is None:
            raise refused(errno.EBUSY)
        if not self._folder.is_at(fid.node, fid.parent, fid.name):
            raise refused(errno.ENOENT)
        return fid.parent

    # Removing.

    def unlinkat(self, fields: Fields, exchange: Exchange) -> bytes:
        """dirfd[4] name[s] flags[4] →"""
        (number,) = fields.take(_U32)
        name = fields.text()
        (flags,) = fields.take(_U32)
        fields.end()
        folder = self._parent(number)
        check_name(name)
        if flags & P9_DOTL_AT_REMOVEDIR:
            os.rmdir(name, dir_fd=folder.fd)
        else:
            os.unlink(name, dir_fd=folder.fd)
        return b""

    def remove(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] →; the fid is gone, whatever comes of it"""
        (number,) = fields.take(_U32)
        fields.end()
        self._fids.get_any(number)
        fid = self._fids.remove(number)
        assert fid is not None
        try:
            if fid.xattr is not None:
                raise refused(errno.EBADF)
            self._folder.require_writable()
            parent = self._place(fid)
            remove = os.rmdir if fid.node.is_folder else os.unlink
            remove(fid.name, dir_fd=parent.fd)
        finally:
            drop_nodes(fid)
        return b""
