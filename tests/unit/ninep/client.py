"""A 9P2000.L client for tests, which can say right and wrong things."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, NamedTuple

from voidbox.ninep import numbers
from voidbox.ninep.numbers import P9_NOFID, P9_NOTAG, P9_RLERROR
from voidbox.ninep.server import Server
from voidbox.ninep.wire import HEADER, READ_HEADER, WRITE_HEADER

MSIZE = 64 << 10
ROOT = 0


class Memory:
    """An Exchange over bytes."""

    def __init__(self, payload: bytes = b"", room_bytes: int = MSIZE) -> None:
        self._payload = payload
        self.payload_bytes = len(payload)
        self.room_bytes = room_bytes
        self.data = b""

    def write_to(self, fd: int, offset: int, count: int) -> int:
        return os.pwrite(fd, self._payload[:count], offset)

    def read_from(self, fd: int, offset: int, count: int) -> int:
        self.data = os.pread(fd, count, offset)
        return len(self.data)

    def payload(self, count: int) -> bytes:
        return self._payload[:count]


class Stat(NamedTuple):
    """Rgetattr, as far as tests look."""

    qid: tuple[int, int, int]
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime: tuple[int, int]


def text(value: bytes) -> bytes:
    """A string on the wire."""
    return struct.pack("<H", len(value)) + value


class Client:
    """Sends messages to a server and checks the form of its answers."""

    def __init__(self, server: Server, attaches: bool = True) -> None:
        self.server = server
        self._next_fid = 1
        if attaches:
            self.version()
            self.attach()

    def send(self, kind: int, body: bytes, room_bytes: int = MSIZE) -> bytes:
        """Send a message; return the answer's body.

        Raises:
            OSError: of an Rlerror.
        """
        tag = P9_NOTAG if kind == numbers.P9_TVERSION else 7
        message = HEADER.pack(HEADER.size + len(body), kind, tag) + body
        payload = b""
        if kind == numbers.P9_TWRITE:
            message, payload = message[: WRITE_HEADER.size], message[WRITE_HEADER.size :]
        exchange = Memory(payload, room_bytes)
        answer, data_bytes = self.server.handle(message, exchange)
        size, answered, answer_tag = HEADER.unpack_from(answer)
        assert size == len(answer) + data_bytes
        assert data_bytes == len(exchange.data)
        assert answer_tag == tag
        if answered == P9_RLERROR:
            (number,) = struct.unpack("<I", answer[HEADER.size :])
            assert number in errno.errorcode
            raise OSError(number, os.strerror(number))
        assert answered == kind + 1
        return answer[HEADER.size :] + exchange.data

    def version(self, msize: int = MSIZE, version: bytes = b"9P2000.L") -> tuple[int, bytes]:
        answer = self.send(numbers.P9_TVERSION, struct.pack("<I", msize) + text(version))
        return struct.unpack_from("<I", answer)[0], answer[6:]

    def attach(self, fid: int = ROOT) -> bytes:
        body = struct.pack("<II", fid, P9_NOFID) + text(b"") + text(b"") + struct.pack("<I", 1000)
        return self.send(numbers.P9_TATTACH, body)

    def new(self) -> int:
        self._next_fid += 1
        return self._next_fid

    def walk(self, fid: int, *names: bytes, to: int | None = None) -> int:
        """Return a fid at the end of the names; NotADirectoryError if only some were there."""
        new = self.new() if to is None else to
        body = struct.pack("<IIH", fid, new, len(names)) + b"".join(map(text, names))
        answer = self.send(numbers.P9_TWALK, body)
        (count,) = struct.unpack_from("<H", answer)
        assert len(answer) == 2 + 13 * count
        if count < len(names):
            raise NotADirectoryError(f"{count} of {len(names)}")
        return new

    def path(self, path: str) -> int:
        """Return a fid of a path."""
        return self.walk(ROOT, *[part.encode() for part in path.split("/") if part])

    def open(self, fid: int, flags: int = os.O_RDONLY) -> int:
        self.send(numbers.P9_TLOPEN, struct.pack("<II", fid, flags))
        return fid

    def create(
        self, folder: int, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR | os.O_CREAT
    ) -> int:
        """Create and open; return a new fid."""
        fid = self.walk(folder)
        body = struct.pack("<I", fid) + text(name) + struct.pack("<III", flags, mode, 1000)
        try:
            self.send(numbers.P9_TLCREATE, body)
        except OSError:
            self.clunk(fid)
            raise
        return fid

    def read(self, fid: int, offset: int = 0, count: int = MSIZE) -> bytes:
        answer = self.send(numbers.P9_TREAD, struct.pack("<IQI", fid, offset, count))
        assert struct.unpack_from("<I", answer)[0] == len(answer) - 4
        return answer[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        body = struct.pack("<IQI", fid, offset, len(data)) + data
        count: int = struct.unpack("<I", self.send(numbers.P9_TWRITE, body))[0]
        return count

    def clunk(self, fid: int) -> None:
        self.send(numbers.P9_TCLUNK, struct.pack("<I", fid))

    def readdir(self, fid: int, count: int = 4096) -> list[tuple[bytes, int]]:
        """Return all entries of an open folder, each with its type."""
        found, offset = [], 0
        while True:
            answer = self.send(numbers.P9_TREADDIR, struct.pack("<IQI", fid, offset, count))
            data = answer[4:]
            if not data:
                return found
            while data:
                _, _, _, offset, kind, length = struct.unpack_from("<BIQQBH", data)
                found.append((data[24 : 24 + length], kind))
                data = data[24 + length :]

    def names(self, fid: int) -> set[bytes]:
        """Return the names in a folder."""
        opened = self.open(self.walk(fid))
        found = {name for name, _ in self.readdir(opened)}
        self.clunk(opened)
        return found - {b".", b".."}

    def getattr(self, fid: int) -> Stat:
        answer = self.send(numbers.P9_TGETATTR, struct.pack("<IQ", fid, 0x7FF))
        values = struct.unpack("<QBIQIII15Q", answer)
        qid, (mode, uid, gid, nlink), size = values[1:4], values[4:8], values[9]
        return Stat(qid, mode, uid, gid, nlink, size, (values[14], values[15]))

    def setattr(self, fid: int, valid: int, **values: Any) -> None:
        names = ("mode", "uid", "gid", "size", "atime", "atime_ns", "mtime", "mtime_ns")
        numbers_ = [values.get(name, 0) for name in names]
        self.send(numbers.P9_TSETATTR, struct.pack("<IIIIIQQQQQ", fid, valid, *numbers_))

    def mkdir(self, fid: int, name: bytes, mode: int = 0o755) -> None:
        body = struct.pack("<I", fid) + text(name) + struct.pack("<II", mode, 1000)
        self.send(numbers.P9_TMKDIR, body)

    def mknod(self, fid: int, name: bytes, mode: int) -> None:
        body = struct.pack("<I", fid) + text(name) + struct.pack("<IIII", mode, 8, 0, 1000)
        self.send(numbers.P9_TMKNOD, body)

    def symlink(self, fid: int, name: bytes, target: bytes) -> None:
        body = struct.pack("<I", fid) + text(name) + text(target) + struct.pack("<I", 1000)
        self.send(numbers.P9_TSYMLINK, body)

    def readlink(self, fid: int) -> bytes:
        return self.send(numbers.P9_TREADLINK, struct.pack("<I", fid))[2:]

    def link(self, folder: int, fid: int, name: bytes) -> None:
        self.send(numbers.P9_TLINK, struct.pack("<II", folder, fid) + text(name))

    def rename(self, fid: int, folder: int, name: bytes) -> None:
        self.send(numbers.P9_TRENAME, struct.pack("<II", fid, folder) + text(name))

    def renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> None:
        body = struct.pack("<I", old) + text(old_name) + struct.pack("<I", new) + text(new_name)
        self.send(numbers.P9_TRENAMEAT, body)

    def unlinkat(self, fid: int, name: bytes, is_folder: bool = False) -> None:
        flags = numbers.P9_DOTL_AT_REMOVEDIR if is_folder else 0
        body = struct.pack("<I", fid) + text(name) + struct.pack("<I", flags)
        self.send(numbers.P9_TUNLINKAT, body)

    def remove(self, fid: int) -> None:
        self.send(numbers.P9_TREMOVE, struct.pack("<I", fid))

    def fsync(self, fid: int, datasync: int = 0) -> None:
        self.send(numbers.P9_TFSYNC, struct.pack("<II", fid, datasync))

    def statfs(self, fid: int) -> tuple[int, ...]:
        return struct.unpack("<IIQQQQQQI", self.send(numbers.P9_TSTATFS, struct.pack("<I", fid)))

    def xattrwalk(self, fid: int, name: bytes = b"") -> tuple[int, int]:
        """Return a new fid and the size of what it reads."""
        new = self.new()
        answer = self.send(numbers.P9_TXATTRWALK, struct.pack("<II", fid, new) + text(name))
        return new, struct.unpack("<Q", answer)[0]

    def xattrcreate(self, fid: int, name: bytes, size: int, flags: int = 0) -> int:
        new = self.walk(fid)
        body = struct.pack("<I", new) + text(name) + struct.pack("<QI", size, flags)
        self.send(numbers.P9_TXATTRCREATE, body)
        return new


assert READ_HEADER.size == 11
