"""The server: sessions, and which message goes to whom."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from voidbox.ninep import numbers
from voidbox.ninep.attributes import Attributes
from voidbox.ninep.fids import Fid, drop_nodes
from voidbox.ninep.files import Files
from voidbox.ninep.names import Names
from voidbox.ninep.numbers import P9_MAXWELEM, P9_NOFID, P9_RLERROR
from voidbox.ninep.session import MSIZE_MAX, MSIZE_MIN, Exchange, Session
from voidbox.ninep.wire import HEADER, LERROR, READ_HEADER, WRITE_HEADER, Fields, refused, text

VERSION = b"9P2000.L"
GUEST_UID = GUEST_GID = 1000
# No request but Twrite is longer: Tsymlink's two strings, Twalk's sixteen names.
REQUEST_BYTES_MAX = 8 << 10

_U16, _U32, _U32X2 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<II")
_WALK = struct.Struct("<IIH")  # fid newfid nwname

Handler = Callable[[Fields, Exchange], bytes | tuple[bytes, int]]


class Answer(NamedTuple):
    """An answer.

    Attributes:
        message: its bytes, but for the data that an Exchange put behind Rread's header.
        data_bytes: how many those are.
    """

    message: bytes
    data_bytes: int = 0


class Server:
    """Serves one folder to one client. Thread: one, but for the constructor.

    Args:
        path: the folder.
        is_read_only: refuse every change.
        guest_uid, guest_gid: whom the guest takes the host user for.

    Raises:
        ConfigError: it is no folder that can be shared.
    """

    def __init__(
        self,
        path: str,
        is_read_only: bool = False,
        guest_uid: int = GUEST_UID,
        guest_gid: int = GUEST_GID,
    ) -> None:
        self._session = session = Session(path, is_read_only, guest_uid, guest_gid)
        self._attributes = attributes = Attributes(session)
        files, names = Files(session), Names(session)
        self.requests: Counter[int] = Counter()  # by type
        self._handlers: dict[int, Handler] = {
            numbers.P9_TVERSION: self._version,
            numbers.P9_TAUTH: self._auth,
            numbers.P9_TATTACH: self._attach,
            numbers.P9_TFLUSH: self._flush,
            numbers.P9_TWALK: self._walk,
            numbers.P9_TCLUNK: self._clunk,
            numbers.P9_TLOPEN: files.lopen,
            numbers.P9_TLCREATE: files.lcreate,
            numbers.P9_TREAD: files.read,
            numbers.P9_TWRITE: files.write,
            numbers.P9_TFSYNC: files.fsync,
            numbers.P9_TREADDIR: files.readdir,
            numbers.P9_TLOCK: files.lock,
            numbers.P9_TGETLOCK: files.getlock,
            numbers.P9_TGETATTR: attributes.getattr,
            numbers.P9_TSETATTR: attributes.setattr,
            numbers.P9_TSTATFS: attributes.statfs,
            numbers.P9_TXATTRWALK: attributes.xattrwalk,
            numbers.P9_TXATTRCREATE: attributes.xattrcreate,
            numbers.P9_TMKDIR: names.mkdir,
            numbers.P9_TMKNOD: names.mknod,
            numbers.P9_TSYMLINK: names.symlink,
            numbers.P9_TREADLINK: names.readlink,
            numbers.P9_TLINK: names.link,
            numbers.P9_TRENAME: names.rename,
            numbers.P9_TRENAMEAT: names.renameat,
            numbers.P9_TUNLINKAT: names.unlinkat,
            numbers.P9_TREMOVE: names.remove,
        }

    def handle(self, message: bytes, exchange: Exchange) -> Answer:
        """Do what a request asks for.

        Args:
            message: the whole, but of Twrite only the fields before its data.
        Returns:
            The answer, an Rlerror for whatever cannot be done.
        """
        _, kind, tag = HEADER.unpack_from(message)
        self.requests[kind] += 1
        try:
            handler = self._handlers.get(kind)
            if handler is None:
                raise refused(errno.EOPNOTSUPP)
            if not self._session.msize and kind != numbers.P9_TVERSION:
                raise refused(errno.EPROTO)
            body = handler(Fields(message), exchange)
        except OSError as error:
            return Answer(lerror(tag, error.errno or errno.EIO))
        data_bytes = 0
        if isinstance(body, tuple):
            body, data_bytes = body
        size = HEADER.size + len(body) + data_bytes
        return Answer(HEADER.pack(size, kind + 1, tag) + body, data_bytes)

    def reset(self) -> None:
        """End the session: its fids are gone."""
        self._session.fids.clear()
        self._session.msize = 0

    def close(self) -> None:
        """Free everything. Idempotent. Thread: any, once the server's has ended."""
        self._session.close()

    @property
    def fids(self) -> int:
        """How many there are."""
        return len(self._session.fids)

    @property
    def descriptors(self) -> int:
        """How many are held, the root's included."""
        return self._session.folder.descriptors.count

    # Sessions.

    def _version(self, fields: Fields, exchange: Exchange) -> bytes:
        """msize[4] version[s] → msize[4] version[s]"""
        (msize,) = fields.take(_U32)
        version = fields.text()
        fields.end()
        self.reset()
        if msize < MSIZE_MIN:
            raise refused(errno.EINVAL)
        msize = min(msize, MSIZE_MAX)
        if version != VERSION:
            return _U32.pack(msize) + text(b"unknown")
        self._session.msize = msize
        return _U32.pack(msize) + text(VERSION)

    def _auth(self, fields: Fields, exchange: Exchange) -> bytes:
        """There is nothing to prove: whoever can send this has the machine."""
        raise refused(errno.EOPNOTSUPP)

    def _attach(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] afid[4] uname[s] aname[s] n_uname[4] → qid[13]"""
        number, auth_number = fields.take(_U32X2)
        fields.text()
        name = fields.text()
        fields.take(_U32)
        fields.end()
        if auth_number != P9_NOFID:
            raise refused(errno.EINVAL)
        if name not in (b"", b"/"):
            raise refused(errno.ENOENT)
        self._session.fids.require_free(number)
        root = self._session.folder.root
        qid = self._session.folder.qid(root.status())
        self._session.fids.add(number, Fid(root.hold(), None, b""))
        return qid.pack()

    def _flush(self, fields: Fields, exchange: Exchange) -> bytes:
        """oldtag[2] →; requests are done in their order, so that the old one is over"""
        fields.take(_U16)
        fields.end()
        return b""

    def _walk(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] newfid[4] nwname[2] nwname*(wname[s]) → nwqid[2] nwqid*(qid[13])"""
        number, new_number, count = fields.take(_WALK)
        if count > P9_MAXWELEM:
            raise refused(errno.EPROTO)
        names = [fields.text() for _ in range(count)]
        fields.end()
        fids = self._session.fids
        fid = fids.get(number)
        if new_number != number:
            fids.require_free(new_number)
        elif fid.file is not None:
            raise refused(errno.EINVAL)
        qids, made = self._session.walk(fid, names)
        if made is not None:
            if new_number == number:
                fids.clunk(number)
            fids.add(new_number, made)
        return _U16.pack(len(qids)) + b"".join(qids)

    def _clunk(self, fields: Fields, exchange: Exchange) -> bytes:
        """fid[4] →; the fid is gone, whatever comes of it"""
        (number,) = fields.take(_U32)
        fields.end()
        self._session.fids.get_any(number)
        fid = self._session.fids.remove(number)
        assert fid is not None
        try:
            self._attributes.finish(fid)
        finally:
            drop_nodes(fid)
        return b""


def lerror(tag: int, number: int) -> bytes:
    """Return an Rlerror."""
    return LERROR.pack(LERROR.size, P9_RLERROR, tag, number)


__all__ = ["READ_HEADER", "REQUEST_BYTES_MAX", "WRITE_HEADER", "Answer", "Server", "lerror"]
