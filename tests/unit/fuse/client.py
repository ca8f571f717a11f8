"""A FUSE client for tests, which can say right and wrong things."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, NamedTuple

from voidbox.fuse import numbers
from voidbox.fuse.numbers import FUSE_ROOT_ID as ROOT
from voidbox.fuse.server import WRITE_BYTES, Server
from voidbox.fuse.wire import ATTR, ENTRY_OUT, IN_HEADER, OUT_HEADER

ROOM = 64 << 10
ALL_FLAGS = (1 << 30) - 1


class Memory:
    """An Exchange over bytes."""

    def __init__(self, payload: bytes = b"", room_bytes: int = ROOM) -> None:
        self._payload = payload
        self.payload_bytes = len(payload)
        self.room_bytes = room_bytes
        self.data = b""

    def write_to(self, fd: int, offset: int, count: int) -> int:
        return os.pwrite(fd, self._payload[:count], offset)

    def read_from(self, fd: int, offset: int, count: int) -> int:
        self.data = os.pread(fd, count, offset)
        return len(self.data)


class Attr(NamedTuple):
    """A struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """A struct fuse_entry_out; times in seconds."""

    node: int
    entry_valid: int
    attr_valid: int
    attr: Attr


class Opened(NamedTuple):
    """An open file."""

    node: int
    fh: int
    open_flags: int


def entry(data: bytes) -> Entry:
    node, generation, entry_valid, attr_valid, *nanoseconds = ENTRY_OUT.unpack_from(data)
    assert (generation, nanoseconds) == (0, [0, 0])
    return Entry(node, entry_valid, attr_valid, Attr(*ATTR.unpack_from(data, ENTRY_OUT.size)))


def message(opcode: int, node: int, body: bytes, unique: int = 7) -> bytes:
    size = IN_HEADER.size + len(body)
    return IN_HEADER.pack(size, opcode, unique, node, 1000, 1000, 5, 0, 0) + body


class Client:
    """Sends messages to a server and checks the form of its answers."""

    def __init__(self, server: Server, begins: bool = True) -> None:
        self.server = server
        if begins:
            self.init()

    def send(self, opcode: int, node: int, body: bytes = b"", room_bytes: int = ROOM) -> bytes:
        """Send a message; return the answer's body.

        Raises:
            OSError: of an answer with an error.
        """
        sent, payload = message(opcode, node, body), b""
        if opcode == numbers.FUSE_WRITE:
            sent, payload = sent[:WRITE_BYTES], sent[WRITE_BYTES:]
        exchange = Memory(payload, room_bytes)
        answer = self.server.handle(sent, exchange)
        if answer is None:
            assert opcode in (
                numbers.FUSE_FORGET,
                numbers.FUSE_BATCH_FORGET,
                numbers.FUSE_INTERRUPT,
            )
            return b""
        size, error, unique = OUT_HEADER.unpack_from(answer.message)
        assert size == len(answer.message) + answer.data_bytes
        assert answer.data_bytes == len(exchange.data)
        assert unique == 7
        if error:
            assert (size, -error in errno.errorcode) == (OUT_HEADER.size, True)
            raise OSError(-error, os.strerror(-error))
        return answer.message[OUT_HEADER.size :] + exchange.data

    def init(self, minor: int = 37, flags: int = ALL_FLAGS, major: int = 7) -> tuple[int, ...]:
        """Return major, minor, max_readahead, flags, and what else fuse_init_out has."""
        body = struct.pack("<IIII48x", major, minor, 128 << 10, flags)
        answer = self.send(numbers.FUSE_INIT, 0, body)
        return struct.unpack("<IIIIHHIIHH32x", answer)

    def lookup(self, folder: int, name: bytes) -> Entry:
        """Look a name up; FileNotFoundError also for the entry that says there is nothing."""
        found = entry(self.send(numbers.FUSE_LOOKUP, folder, name + b"\0"))
        if not found.node:
            raise FileNotFoundError(errno.ENOENT, f"{name!r}, for {found.entry_valid} s")
        return found

    def path(self, path: str) -> int:
        """Return the node of a path."""
        node = ROOT
        for part in path.split("/"):
            if part:
                node = self.lookup(node, part.encode()).node
        return node

    def forget(self, node: int, count: int = 1) -> None:
        self.send(numbers.FUSE_FORGET, node, struct.pack("<Q", count))

    def forget_many(self, *counts: tuple[int, int]) -> None:
        body = struct.pack("<II", len(counts), 0)
        body += b"".join(struct.pack("<QQ", *each) for each in counts)
        self.send(numbers.FUSE_BATCH_FORGET, 0, body)

    # Files.

    def _opened(self, node: int, data: bytes) -> Opened:
        fh, flags, _ = struct.unpack("<QII", data)
        return Opened(node, fh, flags)

    def open(self, node: int, flags: int = os.O_RDONLY) -> Opened:
        body = struct.pack("<II", flags, 0)
        return self._opened(node, self.send(numbers.FUSE_OPEN, node, body))

    def opendir(self, node: int) -> Opened:
        return self._opened(node, self.send(numbers.FUSE_OPENDIR, node, bytes(8)))

    def create(
        self,
        folder: int,
        name: bytes,
        mode: int = 0o644,
        flags: int = os.O_RDWR | os.O_CREAT,
        opcode: int = numbers.FUSE_CREATE,
    ) -> Opened:
        body = struct.pack("<IIII", flags, mode, 0, 0) + name + b"\0"
        answer = self.send(opcode, folder, body)
        found = entry(answer)
        return self._opened(found.node, answer[128:])

    def release(self, file: Opened) -> None:
        body = struct.pack("<QIIQ", file.fh, 0, 0, 0)
        self.send(numbers.FUSE_RELEASE, file.node, body)

    def read(
        self, file: Opened, offset: int = 0, count: int = ROOM, room_bytes: int = ROOM
    ) -> bytes:
        body = struct.pack("<QQIIQII", file.fh, offset, count, 0, 0, 0, 0)
        return self.send(numbers.FUSE_READ, file.node, body, room_bytes)

    def write(self, file: Opened, data: bytes, offset: int = 0) -> int:
        body = struct.pack("<QQIIQII", file.fh, offset, len(data), 0, 0, 0, 0) + data
        count: int = struct.unpack("<II", self.send(numbers.FUSE_WRITE, file.node, body))[0]
        return count

    def fsync(self, file: Opened, flags: int = 0) -> None:
        self.send(numbers.FUSE_FSYNC, file.node, struct.pack("<QII", file.fh, flags, 0))

    def fallocate(self, file: Opened, offset: int, length: int, mode: int = 0) -> None:
        body = struct.pack("<QQQII", file.fh, offset, length, mode, 0)
        self.send(numbers.FUSE_FALLOCATE, file.node, body)

    def lseek(self, file: Opened, offset: int, whence: int) -> int:
        body = struct.pack("<QQII", file.fh, offset, whence, 0)
        found: int = struct.unpack("<Q", self.send(numbers.FUSE_LSEEK, file.node, body))[0]
        return found

    def copy(self, source: Opened, target: Opened, count: int, at: int = 0, to: int = 0) -> int:
        body = struct.pack("<QQQQQQQ", source.fh, at, target.node, target.fh, to, count, 0)
        answer = self.send(numbers.FUSE_COPY_FILE_RANGE, source.node, body)
        done: int = struct.unpack("<II", answer)[0]
        return done

    # Folders.

    def readdir(self, file: Opened, count: int = 4096) -> list[tuple[bytes, int]]:
        """Return all entries of an open folder, each with its type."""
        return [(name, kind) for name, kind, _ in self._entries(file, count, False)]

    def readdirplus(self, file: Opened, count: int = 4096) -> dict[bytes, Entry]:
        """Return all entries of an open folder."""
        return {name: entry(data) for name, _, data in self._entries(file, count, True)}

    def _entries(self, file: Opened, count: int, is_plus: bool) -> list[tuple[bytes, int, bytes]]:
        opcode = numbers.FUSE_READDIRPLUS if is_plus else numbers.FUSE_READDIR
        entry_bytes = 128 if is_plus else 0
        found, offset = [], 0
        while True:
            body = struct.pack("<QQIIQII", file.fh, offset, count, 0, 0, 0, 0)
            data = self.send(opcode, file.node, body)
            assert len(data) <= count
            if not data:
                return found
            while data:
                told, data = data[:entry_bytes], data[entry_bytes:]
                _, offset, length, kind = struct.unpack_from("<QQII", data)
                found.append((data[24 : 24 + length], kind, told))
                data = data[-(-(24 + length) // 8) * 8 :]

    def names(self, node: int) -> set[bytes]:
        """Return the names in a folder."""
        opened = self.opendir(node)
        found = {name for name, _ in self.readdir(opened)}
        self.release(opened)
        return found - {b".", b".."}

    def mkdir(self, folder: int, name: bytes, mode: int = 0o755) -> Entry:
        body = struct.pack("<II", mode, 0) + name + b"\0"
        return entry(self.send(numbers.FUSE_MKDIR, folder, body))

    def mknod(self, folder: int, name: bytes, mode: int) -> Entry:
        body = struct.pack("<IIII", mode, 0x801, 0, 0) + name + b"\0"
        return entry(self.send(numbers.FUSE_MKNOD, folder, body))

    def symlink(self, folder: int, name: bytes, target: bytes) -> Entry:
        return entry(self.send(numbers.FUSE_SYMLINK, folder, name + b"\0" + target + b"\0"))

    def readlink(self, node: int) -> bytes:
        return self.send(numbers.FUSE_READLINK, node)

    def link(self, folder: int, node: int, name: bytes) -> Entry:
        return entry(self.send(numbers.FUSE_LINK, folder, struct.pack("<Q", node) + name + b"\0"))

    def rename(
        self, old: int, name: bytes, new: int, new_name: bytes, flags: int | None = None
    ) -> None:
        """Rename, by FUSE_RENAME2 if there are flags."""
        names = name + b"\0" + new_name + b"\0"
        if flags is None:
            self.send(numbers.FUSE_RENAME, old, struct.pack("<Q", new) + names)
        else:
            self.send(numbers.FUSE_RENAME2, old, struct.pack("<QII", new, flags, 0) + names)

    def remove(self, folder: int, name: bytes, is_folder: bool = False) -> None:
        opcode = numbers.FUSE_RMDIR if is_folder else numbers.FUSE_UNLINK
        self.send(opcode, folder, name + b"\0")

    # Attributes.

    def getattr(self, node: int, file: Opened | None = None) -> Attr:
        flags, fh = (numbers.FUSE_GETATTR_FH, file.fh) if file is not None else (0, 0)
        answer = self.send(numbers.FUSE_GETATTR, node, struct.pack("<IIQ", flags, 0, fh))
        return Attr(*ATTR.unpack_from(answer, 16))

    def setattr(self, node: int, valid: int, file: Opened | None = None, **values: Any) -> Attr:
        names = ("size", "lock_owner", "atime", "mtime", "ctime", "atime_ns", "mtime_ns")
        names += ("ctime_ns", "mode", "unused4", "uid", "gid", "unused5")
        fields = [values.get(name, 0) for name in names]
        if file is not None:
            valid |= numbers.FATTR_FH
        body = struct.pack("<IIQQQqqqIIIIIIII", valid, 0, file.fh if file else 0, *fields)
        answer = self.send(numbers.FUSE_SETATTR, node, body)
        return Attr(*ATTR.unpack_from(answer, 16))

    def statfs(self, node: int) -> tuple[int, ...]:
        return struct.unpack("<QQQQQIII28x", self.send(numbers.FUSE_STATFS, node))

    def getxattr(self, node: int, name: bytes, size: int = ROOM) -> bytes:
        body = struct.pack("<II", size, 0) + name + b"\0"
        return self.send(numbers.FUSE_GETXATTR, node, body)

    def listxattr(self, node: int, size: int = ROOM) -> bytes:
        return self.send(numbers.FUSE_LISTXATTR, node, struct.pack("<II", size, 0))

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int = 0) -> None:
        body = struct.pack("<II", len(value), flags) + name + b"\0" + value
        self.send(numbers.FUSE_SETXATTR, node, body)

    def removexattr(self, node: int, name: bytes) -> None:
        self.send(numbers.FUSE_REMOVEXATTR, node, name + b"\0")
