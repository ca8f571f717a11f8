"""Requests about files: FILE_READ, LIST, STAT, MKDIR, REMOVE, RENAME, LINK.

Each acts on the file system as the request's user, "sandbox" if it names none, so that nothing
that this user's programs prepare leads further than they get themselves.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat

from guest_agent import arguments, attributes, protocol, users
from guest_agent.connection import Request, RequestError
from guest_agent.users import acting_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_ENTRIES_PER_EVENT = 16  # with the longest names they still fit into what may wait for a client
_REMOVALS_PER_PASS = 256  # then other requests get their turn
_OFFSET_MAX = (1 << 63) - 1  # loff_t
_NUMBERS = itertools.count()
_UNKNOWN = {"type": "unknown", "size": 0, "mode": 0, "uid": 0, "gid": 0, "mtime_ns": 0}
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
}


def new_checksum() -> Any:
    """Return what computes the checksum of a file's bytes."""
    from hashlib import blake2b  # loads OpenSSL, so not at every start

    return blake2b(digest_size=protocol.CHECKSUM_BYTES)


def temporary_name(folder: str) -> str:
    """Return a new name for what is not whole yet."""
    return f"{folder}/.voidbox-{os.getpid()}-{next(_NUMBERS)}.part"


def user_of(values: dict[str, Any]) -> users.User:
    """Return whom the request acts as."""
    return users.find(arguments.text(values, "user", users.default()))


def describe(path: str, name: str, follow: bool = False, details: bool = False) -> dict[str, Any]:
    """Return what STAT and LIST say of a file.

    With `details` also what a link leads to in the end, as `resolved` and `followed`, and extended
    attributes of the namespace user, as `attributes`.
    """
    status = os.stat(path, follow_symlinks=follow)
    entry = {
        "name": name,
        "type": _TYPES[stat.S_IFMT(status.st_mode)],
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "file": status.st_ino,
    }
    if stat.S_ISLNK(status.st_mode):
        entry["target"] = os.readlink(path)
        if details:
            entry["resolved"] = os.path.realpath(path)
            with contextlib.suppress(OSError):  # it leads nowhere
                entry["followed"] = describe(path, name, follow=True)
    if details:
        entry["attributes"] = attributes.read(path)
    return entry


class FileRead(Request):
    """Read a regular file.

    Values: path, user, offset, length (of data at most), holes (bool: send none of what is in
    holes). Answers: DATA, then RESULT {size, mode, mtime_ns, file (a number that another file of
    this name would not have), end_size and end_mtime_ns (others if it changed while it was read),
    checksum (BLAKE2b-256 of what was sent)}, and if it has holes that are not sent extents (list of
    [bytes of a hole, bytes of the data after it]).
    """

    def start(self, values: dict[str, Any]) -> None:
        self._fd = -1
        path = arguments.path(values)
        offset = arguments.integer(values, "offset", 0)
        self._left = arguments.optional_integer(values, "length")
        with acting_as(user_of(values)):
            # NONBLOCK: a FIFO without a writer is refused below, not waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self._status = os.fstat(self._fd)
        require_regular(self._status.st_mode, path)
        os.lseek(self._fd, offset, os.SEEK_SET)
        has_holes = self._status.st_blocks * 512 < self._status.st_size
        wants_holes = arguments.flag(values, "holes")
        self._extents: list[list[int]] | None = [] if has_holes and wants_holes else None
        self._run = 0  # of data, until the next hole
        self._checksum = new_checksum()
        self.on_room()

    def on_room(self) -> None:
        while not self.is_done and self.room:
            size = self.room if self._left is None else min(self.room, self._left)
            data = self._read(size) if size else b""
            if not data:
                self._finish()
                return
            if self._left is not None:
                self._left -= len(data)
            self._checksum.update(data)
            self.send(data)

    def _read(self, size: int) -> bytes:
        """Return what comes next, without holes; b"" at the end, or where there are too many."""
        if self._extents is None:
            return os.read(self._fd, size)
        if not self._run:
            self._find_data(self._extents)
        data = os.read(self._fd, min(size, self._run)) if self._run else b""
        self._run -= len(data)
        if data:
            self._extents[-1][1] += len(data)
        return data

    def _find_data(self, extents: list[list[int]]) -> None:
        """Go to where the next data is; lseek(2)."""
        if len(extents) == protocol.EXTENTS_MAX:
            return
        at = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            begin = os.lseek(self._fd, at, os.SEEK_DATA)
            self._run = os.lseek(self._fd, begin, os.SEEK_HOLE) - begin
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that knows of no holes
                self._run = _OFFSET_MAX - at
            # Else the rest is one.
            begin = at if self._run else max(at, self._status.st_size)
        os.lseek(self._fd, begin, os.SEEK_SET)
        if begin > at or self._run:
            extents.append([begin - at, 0])

    def _finish(self) -> None:
        status, at_end = self._status, os.fstat(self._fd)
        extents = {} if self._extents is None else {"extents": self._extents}
        self.result(
            {
                "size": status.st_size,
                "mode": stat.S_IMODE(status.st_mode),
                "mtime_ns": status.st_mtime_ns,
                "file": status.st_ino,
                "end_size": at_end.st_size,
                "end_mtime_ns": at_end.st_mtime_ns,
                "checksum": self._checksum.digest(),
                **extents,
            }
        )

    def on_close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def require_regular(mode: int, path: str) -> None:
    """Refuse what is no regular file.

    Raises:
        RequestError: as the system call would say it.
    """
    if stat.S_ISDIR(mode):
        raise RequestError("EISDIR", f"{path}: Is a directory")
    if not stat.S_ISREG(mode):
        raise RequestError("EINVAL", f"{path}: not a regular file")


class FileList(Request):
    """List a folder.

    Values: path, user, depth (1: its own entries), details (bool). Answers: EVENT {entries: [as
    STAT's, the name relative to path]}, then RESULT {}. An entry has an `error` if it cannot be
    described, and then nothing else of sense but its name; or if it is a folder to be entered that
    cannot be read.
    """

    def start(self, values: dict[str, Any]) -> None:
        path = arguments.path(values)
        depth = arguments.integer(values, "depth", 1, low=1)
        self._has_details = arguments.flag(values, "details")
        self._user = user_of(values)
        self._pending: list[dict[str, Any]] = []
        self._names(path)  # an error here is the request's; further down it is an entry's
        self._entries = self._walk(path, depth)
        self.on_room()

    def _walk(self, path: str, depth: int) -> Iterator[dict[str, Any]]:
        """Not recursive: a tree can be deeper than Python's stack."""
        levels = [("", iter(self._names(path)))]  # the prefix of the names, and those to come
        while levels:
            prefix, names = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
                continue
            full = f"{path}/{prefix}{name}"
            inner: list[str] = []
            entry = {**_UNKNOWN, "name": prefix + name}
            try:
                with acting_as(self._user):
                    entry = describe(full, prefix + name, details=self._has_details)
                if entry["type"] == "folder" and len(levels) < depth:
                    inner = self._names(full)
            except FileNotFoundError:
                continue  # removed since
            except OSError as error:
                entry["error"] = error.strerror
            yield entry
            if inner:
                levels.append((f"{prefix}{name}/", iter(inner)))

    def _names(self, path: str) -> list[str]:
        with acting_as(self._user):
            return sorted(os.listdir(path))

    def on_room(self) -> None:
        while not self.is_done:
            if not self._pending:
                self._pending = list(itertools.islice(self._entries, _ENTRIES_PER_EVENT))
            if not self._pending:
                self.result({})
            elif self.event({"entries": self._pending}):
                self._pending = []
            else:
                return


class FileStat(Request):
    """Describe a file.

    Values: path, user, follow (bool, true), details (bool). Answers: RESULT, see describe().
    """

    def start(self, values: dict[str, Any]) -> None:
        path = arguments.path(values)
        follow = arguments.flag(values, "follow", True)
        details = arguments.flag(values, "details")
        with acting_as(user_of(values)):
            self.result(describe(path, os.path.basename(path), follow, details))


class FileMkdir(Request):
    """Make a folder. Values: path, user, mode, parents (bool: also those above; it may exist).

    With mtime_ns it gets this time and exactly this mode, also if it exists: what makes a tree
    says so at its end. Answers: RESULT {created (bool)}.
    """

    def start(self, values: dict[str, Any]) -> None:
        path = arguments.path(values)
        mode = arguments.integer(values, "mode", 0o755) & 0o7777
        parents = arguments.flag(values, "parents", True)
        mtime_ns = arguments.optional_integer(values, "mtime_ns")
        with acting_as(user_of(values)):
            existed = os.path.isdir(path)
            if parents:
                os.makedirs(path, mode, exist_ok=True)
            else:
                os.mkdir(path, mode)
            if mtime_ns is not None:
                _finish_folder(path, mode, mtime_ns)
        self.result({"created": not existed})


def _finish_folder(path: str, mode: int, mtime_ns: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(fd)


class FileRemove(Request):
    """Remove a file or a folder. Values: path, user, recursive (bool: with what is in it).

    Answers: EVENT {} now and then, RESULT {}.
    """

    def start(self, values: dict[str, Any]) -> None:
        path = arguments.path(values).rstrip("/")
        if os.path.normpath(path or "/") in ("/", "//"):  # "/." and "/usr/.." too
            raise RequestError(protocol.BAD_REQUEST, "the root is not to be removed")
        if os.path.basename(path) in (".", ".."):  # the kernel says so when all in it is gone
            raise RequestError("EINVAL", f"{path}: give the folder's own name to remove it")
        self._user = user_of(values)
        if arguments.flag(values, "recursive"):
            self._steps = _removals(path)
        else:
            self._steps = _removal(path)
        self._go_on()

    def _go_on(self) -> None:
        if self.is_done:
            return
        try:
            with acting_as(self._user):
                taken = sum(1 for _ in itertools.islice(self._steps, _REMOVALS_PER_PASS))
        except Exception as error:  # as _guard: nobody above us on the loop could answer
            self.fail_by(error)
            return
        if taken < _REMOVALS_PER_PASS:
            self.result({})
        else:
            self.event({})  # a sign of life; one that finds no room is not missed
            self.loop.call_later(0, self._go_on)


def _removal(path: str) -> Iterator[None]:
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    else:
        os.unlink(path)
    yield


def _removals(path: str) -> Iterator[None]:
    """Remove a tree, one file a step. Links are removed, never followed."""
    waiting = [(path, False)]  # and whether what was in it is gone
    while waiting:
        path, is_emptied = waiting.pop()
        if is_emptied or os.path.islink(path) or not os.path.isdir(path):
            yield from _removal(path)
        else:
            waiting.append((path, True))
            waiting += ((f"{path}/{name}", False) for name in os.listdir(path))


class FileRename(Request):
    """Rename a file or folder, replacing a file of the new name. Values: path, to, user."""

    def start(self, values: dict[str, Any]) -> None:
        source, target = arguments.path(values), arguments.path(values, "to")
        with acting_as(user_of(values)):
            os.rename(source, target)
        self.result({})


class FileLink(Request):
    """Make a symbolic link, replacing a link or file of its name. Values: path, target, user."""

    def start(self, values: dict[str, Any]) -> None:
        path = arguments.path(values)
        target = arguments.text(values, "target")
        temporary = temporary_name(os.path.dirname(path))
        with acting_as(user_of(values)):
            os.symlink(target, temporary)
            try:
                os.rename(temporary, path)
            except OSError:
                os.unlink(temporary)
                raise
        self.result({})
