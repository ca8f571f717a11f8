"""Messages about what is in files and folders."""

from __future__ import annotations

import errno
import os

from voidbox.free_space import FreeSpace
from voidbox.fuse.handles import Handle
from voidbox.fuse.libc import DIRENT_BYTES_MIN, Dirent, fallocate
from voidbox.fuse.nodes import Node
from voidbox.fuse.numbers import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FUSE_FSYNC_FDATASYNC,
)
from voidbox.fuse.session import Exchange, Session
from voidbox.fuse.wire import (
    COPY_FILE_RANGE_IN,
    CREATE_IN,
    DIRENT,
    ENTRY_OUT_BYTES,
    FALLOCATE_IN,
    FSYNC_IN,
    LSEEK_IN,
    LSEEK_OUT,
    OFFSET_MAX,
    OPEN_IN,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    WRITE_IN,
    WRITE_OUT,
    Request,
    check_offset,
    refused,
)

_CREATE_TRIES = 3  # where the host makes and removes the same name
_FALLOCATE_MODES = frozenset(
    mode | kept
    for mode in (0, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE)
    for kept in (0, FALLOC_FL_KEEP_SIZE)
)
_COPIED_BYTES_MAX = 1 << 30  # by one FUSE_COPY_FILE_RANGE: it is the client's to ask again
_SIZE_MAX = 1 << 20  # of one read, and of one answer about a folder


class Files:
    """Handlers. Each takes a request and returns what its answer is made of.

    Thread: the server's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._nodes = session.nodes
        self._handles = session.handles
        self._room = FreeSpace()

    # Opening.

    def open(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_open_in → fuse_open_out"""
        flags, _ = request.take(OPEN_IN)
        node = self._nodes.get(request.node_id)
        if node.is_folder:
            raise refused(errno.EISDIR)
        return self._opened(node, flags)

    def opendir(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_open_in → fuse_open_out"""
        request.take(OPEN_IN)
        node = self._nodes.get(request.node_id)
        if not node.is_folder:
            raise refused(errno.ENOTDIR)
        return self._opened(node, os.O_RDONLY)

    def _opened(self, node: Node, flags: int) -> bytes:
        fd = self._folder.open(node, self._for_writeback(flags))
        return self._handle_out(fd, node, flags)

    def _for_writeback(self, flags: int) -> int:
        """Return flags by which a client that writes later can read what it writes parts of."""
        if not self._session.is_writeback:
            return flags
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags & ~os.O_APPEND  # it knows the end; we do not yet

    def _handle_out(self, fd: int, node: Node, flags: int) -> bytes:
        """Return a fuse_open_out; the descriptor is the handle's."""
        number = self._handles.add(fd, node, flags & os.O_ACCMODE != os.O_RDONLY)
        cache = self._session.cache
        answer = 0
        if node.is_folder:
            answer = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR if cache.keeps_data else 0
        elif cache.is_direct:
            answer = FOPEN_DIRECT_IO
        elif cache.keeps_data:
            answer = FOPEN_KEEP_CACHE
        return OPEN_OUT.pack(number, answer, 0)

    def create(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_create_in, name → fuse_entry_out, fuse_open_out"""
        flags, mode, _umask, _ = request.take(CREATE_IN)
        name = request.name(CREATE_IN.size)
        folder = self._nodes.get(request.node_id)
        self._nodes.require_room()
        opened = self._for_writeback(flags)
        for _ in range(_CREATE_TRIES):
            try:
                fd = self._folder.create(folder, name, opened, mode)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            else:
                return self._made(fd, folder, name, flags)
            try:
                entry = self._session.looked_up(folder, name)
            except FileNotFoundError:
                continue  # removed meanwhile
            return self._open_existing(entry, opened & ~(os.O_CREAT | os.O_EXCL), flags)
        raise refused(errno.EAGAIN)

    def tmpfile(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_create_in, name → fuse_entry_out, fuse_open_out; the name is only for show"""
        flags, mode, _umask, _ = request.take(CREATE_IN)
        folder = self._nodes.get(request.node_id)
        if not folder.is_folder:
            raise refused(errno.ENOTDIR)
        self._nodes.require_room()
        fd = self._folder.create_unnamed(folder, self._for_writeback(flags), mode)
        return self._made(fd, None, b"", flags)

    def _made(self, fd: int, folder: Node | None, name: bytes, flags: int) -> bytes:
        try:
            status = os.fstat(fd)
            entry = self._session.found(folder, name, status)
        except BaseException:
            self._folder.descriptors.close(fd)
            raise
        node = self._nodes.known(status)
        assert node is not None
        return entry + self._handle_out(fd, node, flags)

    def _open_existing(self, entry: bytes, opened: int, flags: int) -> bytes:
        node = self._nodes.get(int.from_bytes(entry[:8], "little"))
        try:
            fd = self._folder.open(node, opened)
        except BaseException:
            self._nodes.forget(node.node_id, 1)  # the client is not told of it
            raise
        return entry + self._handle_out(fd, node, flags)

    def release(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_release_in →"""
        number, *_ = request.take(RELEASE_IN)
        self._handles.release(number)
        return b""

    # Contents of files.

    def read(self, request: Request, exchange: Exchange) -> tuple[bytes, int]:
        """fuse_read_in → the data, which goes past us"""
        number, offset, count, *_ = request.take(READ_IN)
        handle = self._handles.file(number)
        count = min(count, exchange.room_bytes)
        done = exchange.read_from(handle.fd, check_offset(offset), count) if count else 0
        return b"", done

    def write(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_write_in, the data, which goes past us → fuse_write_out"""
        number, offset, count, *_ = request.take(WRITE_IN)
        if count != exchange.payload_bytes:
            raise refused(errno.EPROTO)
        handle = self._handles.writable(number)
        self._room.take(handle.fd, check_offset(offset), count)
        done = exchange.write_to(handle.fd, offset, count) if count else 0
        return WRITE_OUT.pack(done, 0)

    def fsync(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_fsync_in →; for a folder as well"""
        number, flags, _ = request.take(FSYNC_IN)
        handle = self._handles.get(number)
        (os.fdatasync if flags & FUSE_FSYNC_FDATASYNC else os.fsync)(handle.fd)
        return b""

    def fallocate(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_fallocate_in →"""
        number, offset, length, mode, _ = request.take(FALLOCATE_IN)
        if mode not in _FALLOCATE_MODES:
            raise refused(errno.EOPNOTSUPP)
        handle = self._handles.writable(number)
        offset, length = check_offset(offset), check_offset(length)
        if not mode & FALLOC_FL_PUNCH_HOLE:
            self._room.take(handle.fd, offset, length)
        fallocate(handle.fd, mode, offset, length)
        return b""

    def lseek(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_lseek_in → fuse_lseek_out; what is data and what a hole"""
        number, offset, whence, _ = request.take(LSEEK_IN)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise refused(errno.EINVAL)
        handle = self._handles.file(number)
        return LSEEK_OUT.pack(os.lseek(handle.fd, check_offset(offset), whence))

    def copy_file_range(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_copy_file_range_in → fuse_write_out"""
        from_number, from_offset, _, to_number, to_offset, length, _ = request.take(
            COPY_FILE_RANGE_IN
        )
        source, target = self._handles.file(from_number), self._handles.writable(to_number)
        length = min(length, _COPIED_BYTES_MAX)
        self._room.take(target.fd, check_offset(to_offset), length)
        done = os.copy_file_range(
            source.fd,
            target.fd,
            length,
            check_offset(from_offset),
            check_offset(to_offset),
        )
        return WRITE_OUT.pack(done, 0)

    # Contents of folders.

    def readdir(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_read_in → fuse_dirent…"""
        return self._read_folder(request, exchange, is_plus=False)

    def readdirplus(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_read_in → fuse_direntplus…"""
        return self._read_folder(request, exchange, is_plus=True)

    def _read_folder(self, request: Request, exchange: Exchange, *, is_plus: bool) -> bytes:
        number, offset, size, *_ = request.take(READ_IN)
        handle = self._handles.get(number)
        if not handle.node.is_folder:
            raise refused(errno.ENOTDIR)
        size = min(size, exchange.room_bytes, _SIZE_MAX)
        if check_offset(offset) != handle.position:
            os.lseek(handle.fd, offset, os.SEEK_SET)
            handle.position = offset
            handle.unread.clear()
        each_bytes = DIRENT.size + (ENTRY_OUT_BYTES if is_plus else 0)
        found: list[bytes] = []
        while True:
            if not handle.unread:
                try:
                    self._read_ahead(handle, size, each_bytes)
                except OSError:
                    if not found:  # else the next request meets it
                        raise
            if not handle.unread:
                break
            entry = handle.unread[0]
            size -= each_bytes + -(-len(entry.name) // 8) * 8
            if size < 0:
                if not found:
                    raise refused(errno.EINVAL)
                break
            found.append(self._dirent(handle, entry, is_plus=is_plus))
            handle.unread.popleft()
            handle.position = entry.next_offset & OFFSET_MAX
        return b"".join(found)

    def _read_ahead(self, handle: Handle, size: int, each_bytes: int) -> None:
        """Read entries for `size` bytes of an answer, and hardly more than fit there.

        What does not fit is kept, for each folder that the guest has open.
        """
        least_bytes = each_bytes + 8  # of one in the answer, with the shortest of names
        host_bytes = size * DIRENT_BYTES_MIN // least_bytes
        handle.unread.extend(self._session.dirents.read(handle.fd, host_bytes))

    def _dirent(self, handle: Handle, entry: Dirent, *, is_plus: bool) -> bytes:
        folder, inode = handle.node, entry.inode
        is_special = entry.name in (b".", b"..")
        if entry.name == b".." and folder is self._nodes.root:
            inode = folder.identity[1]  # what is above the folder is nobody's business
        number = self._session.inode(folder.identity[0], inode)
        name = entry.name + bytes(-len(entry.name) % 8)
        position = entry.next_offset & OFFSET_MAX
        dirent = DIRENT.pack(number, position, len(entry.name), entry.type) + name
        if not is_plus:
            return dirent
        return (_NOT_TOLD if is_special else self._told(handle, entry.name)) + dirent

    def _told(self, handle: Handle, name: bytes) -> bytes:
        """Return a fuse_entry_out, or one that says nothing where there is no more to say."""
        try:
            status = os.stat(name, dir_fd=handle.fd, follow_symlinks=False)
            return self._session.found(handle.node, name, status)
        except OSError:  # removed meanwhile, say
            return _NOT_TOLD


_NOT_TOLD = bytes(ENTRY_OUT_BYTES)
