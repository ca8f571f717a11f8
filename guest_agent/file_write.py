"""FILE_WRITE: a file comes to the guest, in one request or in several.

    FILE_WRITE {path}                        DATA … END {checksum}                 a small file
    FILE_WRITE {path, part: T}               DATA … END {checksum, more: true}     a big one,
    FILE_WRITE {path, part: T, offset: n}    DATA … END {checksum, more: true}     piece by piece
    FILE_WRITE {path, part: T, offset: m}    DATA … END {checksum}

When the connection is lost in the middle, what has come so far stays a while under its temporary
name: the client connects again and goes on where the last whole piece ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from guest_agent import arguments, attributes, protocol, users
from guest_agent.connection import Connection, Request, RequestError
from guest_agent.files import new_checksum, require_regular, temporary_name, user_of
from guest_agent.loop import Loop, Timer
from guest_agent.users import acting_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    _Target: TypeAlias = "Part | KernelsFile"


_KERNELS_OWN = ("/proc/", "/sys/")  # files there take what is written, and have no other names
_KERNELS_BYTES_MAX = 64 << 10
_OFFSET_MAX = (1 << 63) - 1  # loff_t
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # what a folder answers to a new file


class Part:
    """A file that is not whole yet, under a temporary name. Values: see FileWrite.

    Where no other file can take the place of an old one, that is written to itself, and keeps its
    owner: in a folder that is not the user's, and where something is mounted on it.
    """

    def __init__(self, path: str, user: users.User, values: dict[str, Any]) -> None:
        mode = arguments.optional_integer(values, "mode")
        self._mtime_ns = arguments.optional_integer(values, "mtime_ns")
        has_attributes = values.get("attributes") is not None
        self._attributes = arguments.text_map(values, "attributes") if has_attributes else None
        makes_parents = arguments.flag(values, "parents", True)
        self._user = user
        self.path = path
        self.is_whole = False
        with acting_as(self._user):
            folder = os.path.dirname(self.path)
            if makes_parents:
                os.makedirs(folder, exist_ok=True)
            old = _old_file(self.path)
            self._owner = None if old is None else (old.st_uid, old.st_gid)
            old_mode = 0o644 if old is None else old.st_mode
            self._mode = stat.S_IMODE(old_mode if mode is None else mode)
            self._temporary = ""
            with _naming(self.path):
                self._fd = self._open(folder, old)

    def _open(self, folder: str, old: os.stat_result | None) -> int:
        if old is not None and _stays(self.path, folder, old, self._user):
            return _open_old(self.path)
        temporary = temporary_name(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(temporary, flags, 0o600)
        except OSError as error:
            if old is None or error.errno not in _NOT_OURS:
                raise
            return _open_old(self.path)
        self._temporary = temporary
        return fd

    def truncate(self, size: int) -> None:
        """Forget what came after the first `size` bytes."""
        if os.fstat(self._fd).st_size < size:
            raise RequestError(protocol.GONE, f"{self.path}: fewer than {size} bytes have come")
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def skip(self, size: int) -> None:
        """Leave a hole."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR) + size
        if end > _OFFSET_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, end, os.SEEK_SET)

    def commit(self) -> int:
        """Give the file its name; return its size."""
        with acting_as(self._user):
            if self._temporary:
                self._keep_owner()
                self._describe()
                os.rename(self._temporary, self.path)
            else:
                with contextlib.suppress(PermissionError):  # it is somebody else's
                    self._describe()
        self._temporary = ""
        self.is_whole = True
        return os.fstat(self._fd).st_size

    def _describe(self) -> None:
        os.fchmod(self._fd, self._mode)
        if self._attributes is not None:
            attributes.write(self._fd, self._attributes)
        if self._mtime_ns is not None:
            os.utime(self._fd, ns=(self._mtime_ns, self._mtime_ns))

    def _keep_owner(self) -> None:
        """Give it to whom the old file belongs to, as far as the user may."""
        status = os.fstat(self._fd)
        if self._owner not in (None, (status.st_uid, status.st_gid)):
            uid, gid = self._owner or (-1, -1)
            try:
                os.fchown(self._fd, uid, gid)
            except PermissionError:
                with contextlib.suppress(PermissionError):
                    os.fchown(self._fd, -1, gid)

    def close(self) -> None:
        """Free it; without a commit nothing is left of a temporary file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            with acting_as(self._user), contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = ""


class KernelsFile:
    """As Part, for a file of /proc or /sys: it is written at once, when all is there."""

    def __init__(self, path: str, user: users.User) -> None:
        self.path = path
        self.is_whole = False
        self._data = bytearray()
        with acting_as(user):
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)

    def truncate(self, size: int) -> None:
        """Forget what came after the first `size` bytes."""
        if len(self._data) < size:
            raise RequestError(protocol.GONE, f"{self.path}: fewer than {size} bytes have come")
        del self._data[size:]

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes."""
        self._data += data
        if len(self._data) > _KERNELS_BYTES_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def skip(self, size: int) -> None:
        """Add zeros: there are no holes here."""
        self.write(bytes(min(size, _KERNELS_BYTES_MAX + 1)))

    def commit(self) -> int:
        """Give them to the kernel; return how many."""
        os.write(self._fd, self._data)
        self.is_whole = True
        return len(self._data)

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_target(values: dict[str, Any]) -> Part | KernelsFile:
    path = arguments.path(values)
    if path.endswith("/"):
        raise RequestError("EISDIR", f"{path}: a file's name does not end with a slash")
    user = user_of(values)
    with acting_as(user):
        path = os.path.realpath(path)  # through a link to what it names
        is_kernels = path.startswith(_KERNELS_OWN) and _old_file(path) is not None
    return KernelsFile(path, user) if is_kernels else Part(path, user, values)


class Parts:
    """The beginnings of files that come in several requests, by the client's names for them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[str, tuple[_Target, Timer]] = {}  # the oldest first
        self._under_way: dict[str, FileWrite] = {}

    def begin(self, token: str, request: FileWrite) -> None:
        """A request works on this one now."""
        self._under_way[token] = request

    def end(self, token: str, request: FileWrite) -> None:
        """It does no more. Idempotent."""
        if self._under_way.get(token) is request:
            del self._under_way[token]

    def take(self, token: str) -> _Target | None:
        """Return one that has begun, also from a request whose client is gone unnoticed."""
        request = self._under_way.pop(token, None)
        if request is not None:
            return request.release()
        part, timer = self._waiting.pop(token, (None, None))
        if timer is not None:
            timer.cancel()
        return part

    def keep(self, token: str, part: _Target) -> None:
        """Keep one until the next request asks for it, or nobody does for too long."""
        timer = self._loop.call_later(protocol.PART_KEPT_S, lambda: self._drop(token))
        self._waiting[token] = part, timer
        while len(self._waiting) > protocol.PARTS_MAX:
            self._drop(next(iter(self._waiting)))

    def _drop(self, token: str) -> None:
        part = self.take(token)
        if part is not None:
            part.close()


class FileWrite(Request):
    """Write a file, whole or not at all: it gets its name when all of it is there and right.

    A file that must stay where it is (see Part) is written in place: what of it came is there.

    Values: path, user, mode (the old file's or 0644), mtime_ns, parents (bool: make the folders
    above); attributes (map: all that it is to have, see attributes.py); part (the client's name for
    a file that comes in several requests) and offset (of this one in it); extents (list of [bytes
    of a hole, bytes of the data after it]: where the data belongs). Then DATA, and END {checksum
    (of this request's data), more (bool: it goes on in another request)}. Answers: RESULT {size (of
    all so far)}. Fails with "checksum" if that of what came differs, and with "gone" if the
    beginning is no longer there.
    """

    def __init__(self, parts: Parts, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._parts = parts
        self._part: _Target | None = None
        self._token: str | None = None

    def start(self, values: dict[str, Any]) -> None:
        self._checksum = new_checksum()
        self._token = arguments.optional_text(values, "part")
        self._offset = arguments.integer(values, "offset", 0)
        self._size = self._offset
        extents = arguments.extents(values, "extents")
        self._extents = None if extents is None else iter(extents)
        self._run = 0  # of data, until the next hole
        part = self._parts.take(self._token) if self._token is not None else None
        if self._offset == 0:
            if part is not None:
                part.close()
            part = _open_target(values)
        elif part is None:
            raise RequestError(protocol.GONE, "the beginning of this file is no longer here")
        self._part = part
        part.truncate(self._offset)
        if self._token is not None:
            self._parts.begin(self._token, self)

    def on_data(self, data: bytes) -> None:
        if self._part is not None:
            with _naming(self._part.path):
                self._write(self._part, data)
        self._checksum.update(data)
        self._size += len(data)
        self.used(data)

    def _write(self, part: _Target, data: bytes) -> None:
        """Put data where it belongs."""
        if self._extents is None:
            part.write(data)
            return
        view = memoryview(data)
        while view:
            if not self._run and not self._skip(part):
                raise RequestError(protocol.BAD_REQUEST, "more data than there are extents for")
            piece = view[: self._run]
            part.write(piece)
            self._run -= len(piece)
            view = view[len(piece) :]

    def _skip(self, part: _Target) -> bool:
        """Leave the next hole; False if there is none."""
        hole, self._run = next(self._extents or iter(()), (-1, 0))
        if hole > 0:
            part.skip(hole)
            self._size += hole
        return hole >= 0

    def _finish_extents(self, part: _Target) -> None:
        while not self._run and self._skip(part):
            pass
        if self._run:
            raise RequestError(protocol.BAD_REQUEST, "less data than the extents say")

    def on_end(self, values: dict[str, Any]) -> None:
        part = self._part
        if part is None:
            return
        if values.get("checksum") != self._checksum.digest():
            part.close()  # before the answer: who has that sees nothing left
            raise RequestError(protocol.CHECKSUM, f"{part.path}: what arrived has another checksum")
        with _naming(part.path):
            self._finish_extents(part)
        if self._token is not None and arguments.flag(values, "more"):
            self._part = None
            self._parts.end(self._token, self)
            self._parts.keep(self._token, part)
            self.result({"size": self._size})
        else:
            with _naming(part.path):
                size = part.commit()
            self.result({"size": size})

    def release(self) -> _Target | None:
        """Give the file to another request, which goes on with it."""
        part, self._part = self._part, None
        self.fail(protocol.CANCELLED, "another request goes on with this file")
        return part

    def on_close(self) -> None:
        part, self._part = self._part, None
        if self._token is not None:
            self._parts.end(self._token, self)
        if part is None:
            return
        if self._token is not None and self.connection.is_ended and not part.is_whole:
            self._parts.keep(self._token, part)  # the client is gone, perhaps for a moment
        else:
            part.close()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Have errors of descriptors say which file they are about."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def _stays(path: str, folder: str, old: os.stat_result, user: users.User) -> bool:
    """Whether no other file can be renamed to this one's name, though the folder takes new ones."""
    from guest_agent import syscalls  # not at the start of an agent that is a program

    status = os.stat(folder)
    is_sticky = status.st_mode & stat.S_ISVTX and user.uid not in (0, status.st_uid, old.st_uid)
    return bool(is_sticky) or syscalls.is_mount_point(path)


def _open_old(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        require_regular(os.fstat(fd).st_mode, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _old_file(path: str) -> os.stat_result | None:
    """Return what there is of a file that is to be written."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return None
    require_regular(old.st_mode, path)
    return old
