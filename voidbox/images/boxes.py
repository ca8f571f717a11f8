"""Files by their names in a tar archive or in a folder: where archives of images are read from.

Nothing is unpacked: a file is a part of the archive. Names that lead out are refused, and what is
read into memory is bounded.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO, Protocol

from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS
from voidbox.images.tar_reader import Reader
from voidbox.named_tuple import NamedTuple

_MEMBERS_MAX = 100_000
_LINKS_MAX = 8
_LIMITS = DEFAULT_LIMITS


class Box(Protocol):
    """Files by name."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes. Raises ImageError: there is none."""

    def open(self, name: str) -> BinaryIO:
        """Return a file's content. Raises ImageError: there is none."""


def read_small(box: Box, name: str, limit_bytes: int) -> bytes:
    """Return a file's content.

    Raises:
        ImageError: there is none, or it is larger.
    """
    if box.size(name) > limit_bytes:
        raise ImageError(f"its {name!r} has {box.size(name):,} bytes, which is too much")
    with box.open(name) as file:
        return file.read(limit_bytes)


class _Member(NamedTuple):
    offset: int
    size: int
    target: str  # of a symbolic link; "" for a file


class TarBox:
    """The files of an uncompressed tar archive.

    Args:
        file: a real one, which stays open as long as this is used.
        is_wanted: whether a member's name is one of such an archive.

    Raises:
        ImageError: it is damaged, or holds too much.

    Attributes:
        is_other: a member is not wanted, or there are too many: perhaps another kind of archive.
        is_empty: it has no members at all.
    """

    def __init__(self, file: BinaryIO, is_wanted: Callable[[str], bool]) -> None:
        self._file = file
        self._members: dict[str, _Member] = {}
        self.is_other = False
        self.is_empty = True
        self._scan(Reader(file.fileno(), os.fstat(file.fileno()).st_size, _LIMITS), is_wanted)

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def size(self, name: str) -> int:
        return self._get(name).size

    def open(self, name: str) -> BinaryIO:
        member = self._get(name)
        return io.BufferedReader(_Part(self._file.fileno(), member.offset, member.size))

    def _scan(self, reader: Reader, is_wanted: Callable[[str], bool]) -> None:
        for count, entry in enumerate(reader.entries()):
            self.is_empty = False
            name = _clean(entry.name)
            self.is_other = self.is_other or not is_wanted(name)
            if count >= _MEMBERS_MAX:
                self.is_other = True
                self._members.clear()
                return
            if entry.type == tarfile.REGTYPE:
                if entry.size == sum(length for _, length, _ in entry.pieces[:1]):  # no holes
                    offset = entry.pieces[0][2] if entry.pieces else 0
                    self._members[name] = _Member(offset, entry.size, "")
            elif entry.type == tarfile.SYMTYPE:
                target = posixpath.join(posixpath.dirname(name), entry.link)
                self._members[name] = _Member(0, 0, _clean(target))
            elif entry.type == tarfile.LNKTYPE:
                self._members[name] = _Member(0, 0, _clean(entry.link))

    def _find(self, name: str) -> _Member | None:
        for _ in range(_LINKS_MAX):  # docker links layers that are the same
            member = self._members.get(name)
            if member is None or not member.target:
                return member
            name = member.target
        return None

    def _get(self, name: str) -> _Member:
        member = self._find(name)
        if member is None:
            raise ImageError(f"it has no {name!r}")
        return member


class FolderBox:
    """The files of a folder. Nothing outside of it is opened."""

    def __init__(self, path: str) -> None:
        self._root = os.path.realpath(path)

    def has(self, name: str) -> bool:
        return os.path.isfile(self._path(name))

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, name: str) -> BinaryIO:
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ImageError(f"it has no {name!r}") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"its {name!r} cannot be read: {error}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"its {name!r} is no file")
        return open(fd, "rb")

    def _path(self, name: str) -> str:
        try:
            path = os.path.realpath(f"{self._root}/{name}")
        except ValueError as error:  # a NUL
            raise ImageError(f"{name!r} is no file's name") from error
        if not path.startswith(f"{self._root}/"):
            raise ImageError(f"its {name!r} leads out of it")
        return path


def _clean(name: str) -> str:
    """Return a member's name as others call it: archives may have been made with absolute ones."""
    return posixpath.normpath(name.lstrip("/"))


class _Part(io.RawIOBase):
    """A part of a file, with a position of its own."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._left = fd, offset, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        count = os.preadv(self._fd, [view], self._offset)
        if not count:
            raise ImageError("it became shorter while it was read")
        self._offset += count
        self._left -= count
        return count
