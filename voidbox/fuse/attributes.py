"""Messages about what is known of files: status, owners, times, extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from voidbox.fuse.libc import UTIME_NOW, UTIME_OMIT, set_times
from voidbox.fuse.nodes import Node
from voidbox.fuse.numbers import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_GETATTR_FH,
)
from voidbox.fuse.session import Exchange, Session
from voidbox.fuse.wire import (
    ATTR_OUT,
    GETATTR_IN,
    GETXATTR_IN,
    GETXATTR_OUT,
    KSTATFS,
    SETATTR_IN,
    SETXATTR_IN,
    Request,
    check_offset,
    refused,
)

XATTR_BYTES_MAX = 64 << 10  # XATTR_SIZE_MAX of linux/limits.h
_XATTR_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR))  # xattr(7): what "user." is for
_XATTR_NAME_BYTES_MAX = 255
_USER = "user."
_NS = 1_000_000_000


class Attributes:
    """Handlers. Each takes a request and returns what its answer is made of.

    Thread: the server's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._nodes = session.nodes
        self._handles = session.handles

    def getattr(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_getattr_in → fuse_attr_out"""
        flags, _, number = request.take(GETATTR_IN)
        node = self._nodes.get(request.node_id)
        if flags & FUSE_GETATTR_FH:
            return self._attr_out(os.fstat(self._handles.get(number).fd))
        return self._attr_out(self._folder.status(node))

    def _attr_out(self, status: os.stat_result) -> bytes:
        return ATTR_OUT.pack(self._session.cache.valid_s, 0, 0) + self._session.attr(status)

    def setattr(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_setattr_in → fuse_attr_out"""
        fields = request.take(SETATTR_IN)
        valid, _, number, size, _, atime_s, mtime_s, _, atime_ns, mtime_ns, _ = fields[:11]
        mode, _, uid, gid, _ = fields[11:]
        node = self._nodes.get(request.node_id)
        self._folder.require_writable()
        if valid & (FATTR_UID | FATTR_GID):
            self._check_owners(node, valid, uid, gid)
        if valid & FATTR_MODE:
            self._folder.set_mode(node, mode)
        if valid & FATTR_SIZE:
            self._truncate(node, check_offset(size), number if valid & FATTR_FH else None)
            if valid & FATTR_MTIME_NOW:
                valid &= ~FATTR_MTIME  # done already; by itself it is only the owner's
        if valid & (FATTR_ATIME | FATTR_MTIME):
            set_times(
                self._folder.proc_fd,
                self._folder.entry(node),
                _time(valid & FATTR_ATIME, valid & FATTR_ATIME_NOW, atime_s, atime_ns),
                _time(valid & FATTR_MTIME, valid & FATTR_MTIME_NOW, mtime_s, mtime_ns),
            )
        return self._attr_out(self._folder.status(node))

    def _check_owners(self, node: Node, valid: int, uid: int, gid: int) -> None:
        """Refuse another owner than the one that the guest sees: there is none to give.

        Raises:
            OSError: EPERM.
        """
        status, owners = self._folder.status(node), self._session.owners
        if valid & FATTR_UID and uid != owners.uid(status.st_uid):
            raise refused(errno.EPERM)
        if valid & FATTR_GID and gid != owners.gid(status.st_gid):
            raise refused(errno.EPERM)

    def _truncate(self, node: Node, size: int, number: int | None) -> None:
        if number is None:
            self._folder.truncate(node, size)
        else:  # its permissions may have changed since
            os.ftruncate(self._handles.writable(number).fd, size)

    def statfs(self, request: Request, exchange: Exchange) -> bytes:
        """→ fuse_kstatfs"""
        found = os.fstatvfs(self._folder.fd(self._nodes.get(request.node_id)))
        return KSTATFS.pack(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize & 0xFFFFFFFF,
            found.f_namemax & 0xFFFFFFFF,
            found.f_frsize & 0xFFFFFFFF,
        )

    # Extended attributes: those of users alone; the others are about the host's security.

    def getxattr(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_getxattr_in, name → the value, or fuse_getxattr_out"""
        size, _ = request.take(GETXATTR_IN)
        node = self._nodes.get(request.node_id)
        name = _user_xattr(node, request.name(GETXATTR_IN.size))
        return _sized(os.getxattr(self._folder.proc_path(node), name), size)

    def listxattr(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_getxattr_in → names, or fuse_getxattr_out"""
        size, _ = request.take(GETXATTR_IN)
        node = self._nodes.get(request.node_id)
        names: list[str] = []
        if node.kind in _XATTR_KINDS:
            names = os.listxattr(self._folder.proc_path(node))
        kept = [os.fsencode(name) + b"\0" for name in names if name.startswith(_USER)]
        return _sized(b"".join(kept), size)

    def setxattr(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_setxattr_in, name, value →"""
        size, flags = request.take(SETXATTR_IN)
        name, is_name, value = request.body[SETXATTR_IN.size :].partition(b"\0")
        if not is_name or len(value) != size:
            raise refused(errno.EPROTO)
        if size > XATTR_BYTES_MAX:
            raise refused(errno.E2BIG)
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            raise refused(errno.EINVAL)
        node = self._nodes.get(request.node_id)
        self._folder.require_writable()
        os.setxattr(self._folder.proc_path(node), _user_xattr(node, name), value, flags)
        return b""

    def removexattr(self, request: Request, exchange: Exchange) -> bytes:
        """name →"""
        node = self._nodes.get(request.node_id)
        self._folder.require_writable()
        os.removexattr(self._folder.proc_path(node), _user_xattr(node, request.name()))
        return b""


def _sized(value: bytes, size: int) -> bytes:
    """Return a value, or how long it is where that was the question.

    Raises:
        OSError: ERANGE: there is no room for it.
    """
    if not size:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise refused(errno.ERANGE)
    return value


def _user_xattr(node: Node, name: bytes) -> str:
    """Return the name of an extended attribute that the guest may use.

    Raises:
        OSError: it may not use this one.
    """
    text = os.fsdecode(name)
    if not text.startswith(_USER) or node.kind not in _XATTR_KINDS:
        raise refused(errno.EOPNOTSUPP)
    if text == _USER:
        raise refused(errno.EINVAL)
    if len(name) > _XATTR_NAME_BYTES_MAX:
        raise refused(errno.ERANGE)
    return text


def _time(is_set: int, is_now: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not is_set:
        return 0, UTIME_OMIT
    if is_now:
        return 0, UTIME_NOW
    if nanoseconds >= _NS:
        raise refused(errno.EINVAL)
    return seconds, nanoseconds
