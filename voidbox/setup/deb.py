"""Debian's binary packages, deb(5): an ar archive of two tar archives.

    debian-binary     "2.0"
    control.tar.*     what dpkg wants to know: control, conffiles, scripts
    data.tar.*        the files

packed by gzip, xz or Zstandard, or not at all.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.tar_layers import apply_layer
from voidbox.images.tar_reader import Reader
from voidbox.images.tree import Tree
from voidbox.images.unpack import unpack
from voidbox.named_tuple import NamedTuple
from voidbox.setup.errors import SetupError

_MAGIC = b"!<arch>\n"
# struct ar_hdr: ar_name[16], ar_date[12], ar_uid[6], ar_gid[6], ar_mode[8], ar_size[10], ar_fmag[2]
_HEADER_BYTES = 60
_NAME, _SIZE, _END = slice(0, 16), slice(48, 58), slice(58, 60)
_MEMBERS_MAX = 16
_VERSION = re.compile(rb"2\.[0-9]+\n")
_PACKED = ("", ".gz", ".xz", ".zst")
_CONTROL_BYTES_MAX = 32 << 20


class _Member(NamedTuple):
    """A file in the archive."""

    name: str
    offset: int
    size_bytes: int


def unpack_deb(tree: Tree, path: str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Lay a package's files over a tree, as dpkg --unpack does: no script of it is run.

    Raises:
        SetupError: it is damaged, or no package.
        OSError: reading or writing failed: no room is left on the disk, say.
    """
    with open(path, "rb") as file:
        try:
            apply_layer(tree, _open_member(file, "data.tar"), limits, are_links_kept=True)
        except (ImageError, lzma.LZMAError, EOFError) as error:
            raise SetupError(f"{path} is damaged: {error}") from error


def read_control(tree: Tree, path: str) -> dict[str, bytes]:
    """Return a package's control files, by name.

    Args:
        tree: whose folder temporary files go to.
    Raises:
        SetupError, OSError: as unpack_deb.
    """
    limits = DEFAULT_LIMITS._replace(total_bytes=_CONTROL_BYTES_MAX, entries=1000)
    found = {}
    with open(path, "rb") as file:
        try:
            spool = tree.new_spool()
            size, _ = unpack(_open_member(file, "control.tar"), spool, limits)
            for entry in Reader(spool.fileno(), size, limits).entries():
                if entry.type == tarfile.REGTYPE and entry.pieces[:1]:
                    _, length, offset = entry.pieces[0]
                    spool.seek(offset)
                    found[entry.name.removeprefix("./")] = spool.read(length)
        except (ImageError, lzma.LZMAError, EOFError) as error:
            raise SetupError(f"{path} is damaged: {error}") from error
    return found


def _open_member(file: BinaryIO, name: str) -> BinaryIO:
    """Return a stream of one of its archives, unpacked as far as tar_layers does not do it."""
    for member in _members(file):
        if member.name.startswith(name):
            kind = member.name.removeprefix(name)
            if kind not in _PACKED:
                raise ImageError(f"{member.name} is packed in a way that is not known here")
            part = cast(BinaryIO, Part(file, member.offset, member.size_bytes))
            return cast(BinaryIO, lzma.LZMAFile(part)) if kind == ".xz" else part
    raise ImageError(f"it has no {name}")


def _members(file: BinaryIO) -> Iterator[_Member]:
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ImageError("it is no Debian package")
    offset = len(_MAGIC)
    for idx in range(_MEMBERS_MAX):
        file.seek(offset)
        header = file.read(_HEADER_BYTES)
        if not header:
            return
        size = header[_SIZE].strip()
        if len(header) < _HEADER_BYTES or header[_END] != b"`\n" or not size.isdigit():
            raise ImageError(f"a damaged header at byte {offset}")
        member = _Member(
            header[_NAME].decode("latin-1").rstrip(" /"), offset + _HEADER_BYTES, int(size)
        )
        if not idx and not (
            member.name == "debian-binary" and _VERSION.match(file.read(member.size_bytes)[:8])
        ):
            raise ImageError("it is no Debian package of version 2")
        yield member
        offset = member.offset + member.size_bytes + member.size_bytes % 2
    raise ImageError("it has too many parts")


class Part(io.RawIOBase):
    """A range of an open file, as a stream."""

    def __init__(self, file: BinaryIO, offset: int, size_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self._left = size_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        self._file.seek(self._offset)
        data = self._file.read(wanted)
        if len(data) < wanted:
            raise EOFError("it is cut short")
        self._offset += len(data)
        self._left -= len(data)
        return data
