"""Messages about what is known of files: status, owners, times, extended attributes."""

from __future__ import annotations

import errno
import os
import stat
import struct

from voidbox.ninep.fids import XATTR_BYTES_MAX, Fid, ReadXattr, WrittenXattr
from voidbox.ninep.folder import Node
from voidbox.ninep.libc import UTIME_NOW, UTIME_OMIT, set_times
from voidbox.ninep.numbers import (
    P9_GETATTR_BASIC,
    P9_SETATTR_ATIME,
    P9_SETATTR_ATIME_SET,
    P9_SETATTR_GID,
    P9_SETATTR_MODE,
    P9_SETATTR_MTIME,
    P9_SETATTR_MTIME_SET,
    P9_SETATTR_SIZE,
    P9_SETATTR_UID,
    V9FS_MAGIC,
)
from voidbox.ninep.session import Exchange, Session
from voidbox.ninep.wire import Fields, refused

_U32, _U32X2, _U64 = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<Q")
_FID_MASK = struct.Struct("<IQ")
# mode uid gid nlink rdev size blksize blocks, then seconds and nanoseconds of atime, mtime, ctime
# and btime, then gen data_version; behind valid and qid.
_VALID = struct.Struct("<Q")
_STAT = struct.Struct("<III15Q")
assert _STAT.size == 132
# fid valid mode uid gid size atime_sec atime_nsec mtime_sec mtime_nsec
_SETATTR = struct.Struct("<IIIIIQQQQQ")
_STATFS = struct.Struct("<IIQQQQQQI")  # type bsize blocks bfree bavail files ffree fsid namelen
_XATTRCREATE = struct.Struct("<QI")  # attr_size flags
_NS = 1_000_000_000
_SIZE_MAX = (1 << 63) - 1
_XATTR_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR))  # xattr(7): what "user." is for
_XATTR_NAME_BYTES_MAX = 255
_USER = "user."


class Attributes:
    """Handlers. Each takes a request's fields and returns the answer's. Thread: the server's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._fids = session.fids

    def getattr(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] request_mask[8] → valid[8] qid[13] mode[4] uid[4] gid[4] …"""
        number, _mask = fields.take(_FID_MASK)
        fields.end()
        status = self._fids.get(number).node.status()
        owners = self._session.owners
        return (
            _VALID.pack(P9_GETATTR_BASIC)
            + self._folder.qid(status).pack()
            + _STAT.pack(
                status.st_mode,
                owners.uid(status.st_uid),
                owners.gid(status.st_gid),
                status.st_nlink,
                status.st_rdev,
                status.st_size,
                status.st_blksize,
                status.st_blocks,
                *divmod(max(0, status.st_atime_ns), _NS),
                *divmod(max(0, status.st_mtime_ns), _NS),
                *divmod(max(0, status.st_ctime_ns), _NS),
                *(0, 0, 0, 0),
            )
        )

    def setattr(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] valid[4] mode[4] uid[4] gid[4] size[8] atime_sec[8] atime_nsec[8] … →"""
        number, valid, mode, uid, gid, size, *times = fields.take(_SETATTR)
        fields.end()
        fid = self._fids.get(number)
        self._folder.require_writable()
        if valid & (P9_SETATTR_UID | P9_SETATTR_GID):
            self._check_owners(fid.node, valid, uid, gid)
        if valid & P9_SETATTR_MODE:
            self._folder.set_mode(fid.node, mode)
        if valid & P9_SETATTR_SIZE:
            self._truncate(fid, size)
        if valid & P9_SETATTR_SIZE and not valid & P9_SETATTR_MTIME_SET:
            valid &= ~P9_SETATTR_MTIME  # "now": done already; by itself it is only the owner's
        if valid & (P9_SETATTR_ATIME | P9_SETATTR_MTIME):
            set_times(
                self._folder.proc_fd,
                self._folder.entry(fid.node),
                _time(valid & P9_SETATTR_ATIME, valid & P9_SETATTR_ATIME_SET, *times[:2]),
                _time(valid & P9_SETATTR_MTIME, valid & P9_SETATTR_MTIME_SET, *times[2:]),
            )
        return b""

    def _check_owners(self, node: Node, valid: int, uid: int, gid: int) -> None:
        """Refuse another owner than the one that the guest sees: there is none to give.

        Raises:
            OSError: EPERM.
        """
        status, owners = node.status(), self._session.owners
        if valid & P9_SETATTR_UID and uid != owners.uid(status.st_uid):
            raise refused(errno.EPERM)
        if valid & P9_SETATTR_GID and gid != owners.gid(status.st_gid):
            raise refused(errno.EPERM)

    def _truncate(self, fid: Fid, size: int) -> None:
        if size > _SIZE_MAX:
            raise refused(errno.EINVAL)
        if fid.file is not None and fid.file.is_writable:
            os.ftruncate(fid.file.fd, size)  # its permissions may have changed since
        else:
            self._folder.truncate(fid.node, size)

    def statfs(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] → type[4] bsize[4] blocks[8] bfree[8] bavail[8] files[8] ffree[8] fsid[8] …"""
        (number,) = fields.take(_U32)
        fields.end()
        found = os.fstatvfs(self._fids.get(number).node.fd)
        # Of these the kernel's units are f_frsize, and the guest's are bsize.
        return _STATFS.pack(
            V9FS_MAGIC,
            found.f_frsize & 0xFFFFFFFF,
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            0,
            found.f_namemax & 0xFFFFFFFF,
        )

    # Extended attributes: those of users alone; the others are about the host's security.

    def xattrwalk(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] newfid[4] name[s] → size[8]; newfid reads the value, or the names"""
        number, new_number = fields.take(_U32X2)
        name = fields.text()
        fields.end()
        fid = self._fids.get(number)
        if number != new_number:
            self._fids.require_free(new_number)
        value = self._xattr(fid.node, name) if name else self._xattr_names(fid.node)
        if number == new_number or len(value) > XATTR_BYTES_MAX:
            raise refused(errno.EINVAL if number == new_number else errno.E2BIG)
        made = fid.copy()
        try:
            self._fids.set_xattr(made, ReadXattr(value))
        except OSError:
            made.move(fid.node.hold(), None, b"")
            made.node.drop()
            raise
        self._fids.add(new_number, made)
        return _U64.pack(len(value))

    def _xattr(self, node: Node, name: bytes) -> bytes:
        return os.getxattr(self._folder.proc_path(node), _user_xattr(node, name))

    def _xattr_names(self, node: Node) -> bytes:
        if node.kind not in _XATTR_KINDS:
            return b""
        names = os.listxattr(self._folder.proc_path(node))
        return b"".join(os.fsencode(name) + b"\0" for name in names if name.startswith(_USER))

    def xattrcreate(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] name[s] attr_size[8] flags[4] →; then Twrite the value, then Tclunk"""
        (number,) = fields.take(_U32)
        name = fields.text()
        size, flags = fields.take(_XATTRCREATE)
        fields.end()
        fid = self._fids.get(number)
        self._folder.require_writable()
        checked = _user_xattr(fid.node, name)
        if fid.file is not None:
            raise refused(errno.EINVAL)
        if size > XATTR_BYTES_MAX:
            raise refused(errno.E2BIG)
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            raise refused(errno.EINVAL)
        self._fids.set_xattr(fid, WrittenXattr(checked, size, flags))
        return b""

    def finish(self, fid: Fid) -> None:
        """Set the extended attribute that a fid has brought, at its Tclunk.

        Raises:
            OSError: the host refuses it, or it has not come whole.
        """
        xattr = fid.xattr
        if not isinstance(xattr, WrittenXattr):
            return
        if len(xattr.value) != xattr.size:
            raise refused(errno.EIO)
        path = self._folder.proc_path(fid.node)
        if xattr.size:
            os.setxattr(path, xattr.name, xattr.value, xattr.flags)
        else:
            os.removexattr(path, xattr.name)


def _user_xattr(node: Node, name: bytes) -> str:
    """Return the name of an extended attribute that the guest may use.

    Raises:
        OSError: it may not use this one.
    """
    text = os.fsdecode(name)
    if not text.startswith(_USER) or node.kind not in _XATTR_KINDS:
        raise refused(errno.EOPNOTSUPP)
    if text == _USER or b"\0" in name:
        raise refused(errno.EINVAL)
    if len(name) > _XATTR_NAME_BYTES_MAX:
        raise refused(errno.ERANGE)
    return text


def _time(is_set: int, is_given: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not is_set:
        return 0, UTIME_OMIT
    if not is_given:
        return 0, UTIME_NOW
    if nanoseconds >= _NS:
        raise refused(errno.EINVAL)
    # The client's seconds are signed; on the wire they are not.
    return seconds - (1 << 64) if seconds > _SIZE_MAX else seconds, nanoseconds
