"""Messages about what is in files and folders."""

from __future__ import annotations

import errno
import os
import struct

from voidbox.ninep.fids import Fid, OpenFile, ReadXattr, WrittenXattr
from voidbox.ninep.folder import Node, check_name
from voidbox.ninep.numbers import (
    P9_DOTL_CREATE,
    P9_DOTL_DIRECTORY,
    P9_DOTL_EXCL,
    P9_DOTL_NOACCESS,
    P9_DOTL_RDONLY,
    P9_LOCK_SUCCESS,
    P9_LOCK_TYPE_UNLCK,
    P9_QTDIR,
    P9_QTFILE,
    P9_QTSYMLINK,
)
from voidbox.ninep.session import Exchange, Session
from voidbox.ninep.wire import QID, READ_HEADER, Fields, Qid, refused, text

_U32, _U32X2, _U32X3 = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<III")
_FID_OFFSET_COUNT = struct.Struct("<IQI")
_LOCK = struct.Struct("<IBIQQI")  # fid type flags start length proc_id
_GETLOCK = struct.Struct("<IBQQI")  # fid type start length proc_id
_GETLOCK_ANSWER = struct.Struct("<BQQI")
_DIRENT = struct.Struct("<QB")  # offset type, behind the qid
_DIRENT_BYTES = QID.size + _DIRENT.size + 2
_OFFSET_MAX = (1 << 63) - 1
_CREATE_TRIES = 3  # where the host makes and removes the same name
_QID_TYPES = {4: P9_QTDIR, 10: P9_QTSYMLINK}  # by d_type: DT_DIR, DT_LNK


class Files:
    """Handlers. Each takes a request's fields and returns the answer's. Thread: the server's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._fids = session.fids

    # Opening.

    def lopen(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] flags[4] → qid[13] iounit[4]"""
        number, flags = fields.take(_U32X2)
        fields.end()
        fid = self._fids.get(number)
        if fid.file is not None:
            raise refused(errno.EINVAL)
        self._open(fid, flags)
        return self._opened(fid)

    def _open(self, fid: Fid, flags: int) -> None:
        if flags & P9_DOTL_DIRECTORY and not fid.node.is_folder:
            raise refused(errno.ENOTDIR)
        fd = self._folder.open(fid.node, flags)
        is_writable = flags & P9_DOTL_NOACCESS != P9_DOTL_RDONLY
        fid.file = OpenFile(fd, fid.node.is_folder, is_writable)

    def _opened(self, fid: Fid) -> bytes:
        # iounit 0: as much as a message holds.
        return self._folder.qid(fid.node.status()).pack() + _U32.pack(0)

    def lcreate(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] name[s] flags[4] mode[4] gid[4] → qid[13] iounit[4]"""
        (number,) = fields.take(_U32)
        name = fields.text()
        flags, mode, _gid = fields.take(_U32X3)
        fields.end()
        fid = self._fids.get(number)
        if fid.file is not None or not fid.node.is_folder:
            raise refused(errno.EINVAL)
        self._folder.require_writable()
        check_name(name)
        for _ in range(_CREATE_TRIES):
            try:
                node, fd = self._folder.create(fid.node, name, flags, mode)
            except FileExistsError:
                if flags & P9_DOTL_EXCL and flags & P9_DOTL_CREATE:
                    raise
            else:
                fid.move(node, fid.node.hold(), name)
                is_writable = flags & P9_DOTL_NOACCESS != P9_DOTL_RDONLY
                fid.file = OpenFile(fd, False, is_writable)
                return self._opened(fid)
            try:
                node = self._folder.child(fid.node, name)
            except FileNotFoundError:
                continue  # removed meanwhile
            return self._open_existing(fid, node, name, flags)
        raise refused(errno.EAGAIN)

    def _open_existing(self, fid: Fid, node: Node, name: bytes, flags: int) -> bytes:
        try:
            fd = self._folder.open(node, flags)
        except BaseException:
            node.drop()
            raise
        fid.move(node, fid.node.hold(), name)
        fid.file = OpenFile(fd, node.is_folder, flags & P9_DOTL_NOACCESS != P9_DOTL_RDONLY)
        return self._opened(fid)

    # Contents.

    def read(self, fields: Fields, exchange: Exchange) -> tuple[bytes, int]:
        """fid[4] offset[8] count[4] → count[4] data[count]; the data goes past us"""
        number, offset, count = fields.take(_FID_OFFSET_COUNT)
        fields.end()
        fid = self._fids.get_any(number)
        count = min(count, exchange.room_bytes, self._session.msize - READ_HEADER.size)
        if isinstance(fid.xattr, ReadXattr):
            data = fid.xattr.value[offset : offset + count]
            return _U32.pack(len(data)) + data, 0
        if fid.xattr is not None:
            raise refused(errno.EINVAL)
        file = fid.opened()
        if file.is_folder:
            raise refused(errno.EISDIR)
        _check_offset(offset)
        done = exchange.read_from(file.fd, offset, count) if count > 0 else 0
        return _U32.pack(done), done

    def write(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] offset[8] count[4] data[count] → count[4]; the data goes past us"""
        number, offset, count = fields.take(_FID_OFFSET_COUNT)
        fields.end()
        if count != exchange.payload_bytes:
            raise refused(errno.EPROTO)
        fid = self._fids.get_any(number)
        if isinstance(fid.xattr, WrittenXattr):
            return _U32.pack(_extend(fid.xattr, offset, count, exchange))
        if fid.xattr is not None:
            raise refused(errno.EINVAL)
        file = fid.opened()
        if not file.is_writable:
            raise refused(errno.EBADF)
        self._folder.require_writable()
        _check_offset(offset)
        return _U32.pack(exchange.write_to(file.fd, offset, count) if count else 0)

    def fsync(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] datasync[4] →"""
        number, datasync = fields.take(_U32X2)
        fields.end()
        file = self._fids.get(number).opened()
        (os.fdatasync if datasync else os.fsync)(file.fd)
        return b""

    def readdir(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] offset[8] count[4] → count[4] data[count]: qid[13] offset[8] type[1] name[s]"""
        number, offset, count = fields.take(_FID_OFFSET_COUNT)
        fields.end()
        fid = self._fids.get(number)
        file = fid.opened()
        if not file.is_folder:
            raise refused(errno.ENOTDIR)
        count = min(count, exchange.room_bytes, self._session.msize - READ_HEADER.size)
        _check_offset(offset)
        if offset != fid.position:
            os.lseek(file.fd, offset, os.SEEK_SET)
        data = self._entries(fid, file.fd, count)
        return _U32.pack(len(data)) + data

    def _entries(self, fid: Fid, fd: int, count: int) -> bytes:
        device = fid.node.identity[0]
        found: list[bytes] = []
        room = count
        fid.position = -1  # until it is known again
        for entry in self._session.dirents.read(fd, count):
            room -= _DIRENT_BYTES + len(entry.name)
            if room < 0:
                break
            inode = entry.inode
            if entry.name == b".." and fid.node.identity == self._folder.root.identity:
                inode = fid.node.identity[1]  # what is above the folder is nobody's business
            path = self._folder.qid_path(device, inode)
            qid = Qid(_QID_TYPES.get(entry.type, P9_QTFILE), 0, path)
            position = entry.next_offset & _OFFSET_MAX
            found.append(qid.pack() + _DIRENT.pack(position, entry.type) + text(entry.name))
        else:
            fid.position = position if found else -1
        if room < 0 and not found:
            raise refused(errno.EINVAL)
        return b"".join(found)

    # Locks: the guest's kernel keeps its programs' among themselves, and this server has one guest.

    def lock(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] type[1] flags[4] start[8] length[8] proc_id[4] client_id[s] → status[1]"""
        number, *_ = fields.take(_LOCK)
        fields.text()
        fields.end()
        self._fids.get(number).opened()
        return bytes([P9_LOCK_SUCCESS])

    def getlock(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] type[1] start[8] length[8] proc_id[4] client_id[s] → the same, but the fid"""
        number, _type, start, length, process = fields.take(_GETLOCK)
        client = fields.text()
        fields.end()
        self._fids.get(number).opened()
        return _GETLOCK_ANSWER.pack(P9_LOCK_TYPE_UNLCK, start, length, process) + text(client)


def _check_offset(offset: int) -> None:
    if offset > _OFFSET_MAX:
        raise refused(errno.EINVAL)


def _extend(xattr: WrittenXattr, offset: int, count: int, exchange: Exchange) -> int:
    """Add to the value of an extended attribute, which comes in order."""
    if offset != len(xattr.value) or offset + count > xattr.size:
        raise refused(errno.ENOSPC)
    xattr.value += exchange.payload(count)
    return count
