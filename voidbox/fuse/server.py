"""The server: sessions, and which message goes to whom."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeAlias

from voidbox.fuse import numbers
from voidbox.fuse.attributes import Attributes
from voidbox.fuse.cache import CACHE_DEFAULT, find_cache
from voidbox.fuse.files import Files
from voidbox.fuse.names import Names
from voidbox.fuse.owners import GUEST_GID, GUEST_UID
from voidbox.fuse.session import Exchange, Session
from voidbox.fuse.wire import IN_HEADER, INIT_IN, INIT_OUT, OUT_HEADER, WRITE_IN, Request, refused
from voidbox.named_tuple import NamedTuple

# FUSE_SETXATTR's value is the longest that a request brings, but for FUSE_WRITE's data.
REQUEST_BYTES_MAX = 72 << 10
# What is taken of a FUSE_WRITE: all but its data.
WRITE_BYTES = IN_HEADER.size + WRITE_IN.size
PAGES_MAX = 256  # of one read or write: 1 MiB
_PAGE_BYTES = 4096
_BACKGROUND_MAX = 64  # requests that the client may have under way beside those it waits for
_WANTED = (
    numbers.FUSE_ASYNC_READ
    | numbers.FUSE_ATOMIC_O_TRUNC
    | numbers.FUSE_BIG_WRITES
    | numbers.FUSE_AUTO_INVAL_DATA
    | numbers.FUSE_DO_READDIRPLUS
    | numbers.FUSE_READDIRPLUS_AUTO
    | numbers.FUSE_ASYNC_DIO
    | numbers.FUSE_PARALLEL_DIROPS
    | numbers.FUSE_MAX_PAGES
    | numbers.FUSE_CACHE_SYMLINKS
    # There is never anything to take away: a set-user-id file is not opened for writing.
    | numbers.FUSE_HANDLE_KILLPRIV_V2
)

Handler: TypeAlias = Callable[[Request, Exchange], bytes | tuple[bytes, int] | None]


class Answer(NamedTuple):
    """An answer.

    Attributes:
        message: its bytes, but for the data that an Exchange put behind fuse_out_header.
        data_bytes: how many those are.
    """

    message: bytes
    data_bytes: int = 0


class Server:
    """Serves one folder to one client. Thread: one, but for the constructor.

    Args:
        path: the folder.
        is_read_only: refuse every change.
        cache: what the guest may keep: auto, always or none.
        guest_uid, guest_gid: whom the guest takes the host user for.
        server_count: of the same guest's, this one included: they share a limit on descriptors.

    Raises:
        ConfigError: it is no folder that can be shared.
    """

    def __init__(
        self,
        path: str,
        is_read_only: bool = False,
        cache: str = CACHE_DEFAULT,
        guest_uid: int = GUEST_UID,
        guest_gid: int = GUEST_GID,
        server_count: int = 1,
    ) -> None:
        session = Session(path, is_read_only, find_cache(cache), guest_uid, guest_gid, server_count)
        self._session = session
        files, names, attributes = Files(session), Names(session), Attributes(session)
        # What is not here is answered with ENOSYS, and Linux then does without: FUSE_FLUSH at each
        # close, FUSE_ACCESS (it checks permissions itself), locks (its programs' among themselves).
        self._handlers: dict[int, Handler] = {
            numbers.FUSE_INIT: self._init,
            numbers.FUSE_DESTROY: self._destroy,
            numbers.FUSE_INTERRUPT: self._interrupt,
            numbers.FUSE_LOOKUP: names.lookup,
            numbers.FUSE_FORGET: names.forget,
            numbers.FUSE_BATCH_FORGET: names.batch_forget,
            numbers.FUSE_READLINK: names.readlink,
            numbers.FUSE_SYMLINK: names.symlink,
            numbers.FUSE_MKNOD: names.mknod,
            numbers.FUSE_MKDIR: names.mkdir,
            numbers.FUSE_UNLINK: names.unlink,
            numbers.FUSE_RMDIR: names.rmdir,
            numbers.FUSE_RENAME: names.rename,
            numbers.FUSE_RENAME2: names.rename2,
            numbers.FUSE_LINK: names.link,
            numbers.FUSE_GETATTR: attributes.getattr,
            numbers.FUSE_SETATTR: attributes.setattr,
            numbers.FUSE_STATFS: attributes.statfs,
            numbers.FUSE_SETXATTR: attributes.setxattr,
            numbers.FUSE_GETXATTR: attributes.getxattr,
            numbers.FUSE_LISTXATTR: attributes.listxattr,
            numbers.FUSE_REMOVEXATTR: attributes.removexattr,
            numbers.FUSE_OPEN: files.open,
            numbers.FUSE_OPENDIR: files.opendir,
            numbers.FUSE_CREATE: files.create,
            numbers.FUSE_TMPFILE: files.tmpfile,
            numbers.FUSE_RELEASE: files.release,
            numbers.FUSE_RELEASEDIR: files.release,
            numbers.FUSE_READ: files.read,
            numbers.FUSE_WRITE: files.write,
            numbers.FUSE_FSYNC: files.fsync,
            numbers.FUSE_FSYNCDIR: files.fsync,
            numbers.FUSE_FALLOCATE: files.fallocate,
            numbers.FUSE_LSEEK: files.lseek,
            numbers.FUSE_COPY_FILE_RANGE: files.copy_file_range,
            numbers.FUSE_READDIR: files.readdir,
            numbers.FUSE_READDIRPLUS: files.readdirplus,
        }

    def handle(self, message: bytes, exchange: Exchange) -> Answer | None:
        """Do what a request asks for.

        Args:
            message: the whole, but of FUSE_WRITE only WRITE_BYTES; at least a fuse_in_header.
        Returns:
            The answer, one with an error for whatever cannot be done; None where none is wanted.
        """
        request = Request.parse(message)
        opcode, unique = request.opcode, request.unique
        session = self._session
        try:
            handler = self._handlers.get(opcode)
            if handler is None:
                raise refused(errno.ENOSYS)
            if not session.is_begun and opcode != numbers.FUSE_INIT:
                raise refused(errno.EIO)
            body = handler(request, exchange)
        except OSError as error:
            return None if opcode in _UNANSWERED else failed(unique, error.errno or errno.EIO)
        finally:
            session.folder.end_request()
        if body is None:
            return None
        data_bytes = 0
        if isinstance(body, tuple):
            body, data_bytes = body
        size = OUT_HEADER.size + len(body) + data_bytes
        return Answer(OUT_HEADER.pack(size, 0, unique) + body, data_bytes)

    def reset(self) -> None:
        """End the session: its nodes and handles are gone."""
        self._session.clear()

    def close(self) -> None:
        """Free everything. Idempotent. Thread: any, once the server's has ended."""
        self._session.close()

    @property
    def nodes(self) -> int:
        """How many the client knows, the root included."""
        return len(self._session.nodes)

    @property
    def handles(self) -> int:
        """How many files and folders it has open."""
        return len(self._session.handles)

    @property
    def descriptors(self) -> int:
        """How many are held, the root's not included."""
        return self._session.folder.descriptors.count

    # Sessions.

    def _init(self, request: Request, exchange: Exchange) -> bytes:
        """fuse_init_in → fuse_init_out"""
        major, minor, readahead_bytes, flags = request.take(INIT_IN)
        self.reset()
        if major != numbers.FUSE_KERNEL_VERSION or minor < numbers.FUSE_MINOR_MIN:
            raise refused(errno.EPROTO)
        wanted = _WANTED
        if self._session.cache.keeps_data:
            wanted |= numbers.FUSE_WRITEBACK_CACHE
        self._session.is_begun = True
        self._session.is_writeback = bool(wanted & flags & numbers.FUSE_WRITEBACK_CACHE)
        return INIT_OUT.pack(
            numbers.FUSE_KERNEL_VERSION,
            numbers.FUSE_KERNEL_MINOR_VERSION,
            readahead_bytes,
            wanted & flags,
            _BACKGROUND_MAX,
            _BACKGROUND_MAX * 3 // 4,
            PAGES_MAX * _PAGE_BYTES,
            1,  # nanosecond: as exactly as the host keeps times
            PAGES_MAX,
            0,
            0,
        )

    def _destroy(self, request: Request, exchange: Exchange) -> bytes:
        """→; the file system was unmounted"""
        self.reset()
        return b""

    def _interrupt(self, request: Request, exchange: Exchange) -> None:
        """Requests are done in their order, so that what it is about is over."""


_UNANSWERED = frozenset((numbers.FUSE_FORGET, numbers.FUSE_BATCH_FORGET, numbers.FUSE_INTERRUPT))


def failed(unique: int, number: int) -> Answer:
    """Return an answer that says why not."""
    return Answer(OUT_HEADER.pack(OUT_HEADER.size, -number, unique))
