"""The entries of a tar archive that a stranger made.

Headers are taken apart by the standard library (TarInfo.frombuf); what joins them is done here,
for tarfile's own way, up to Python 3.11.9, spends hours on one PAX header of digits, takes a
header of any size into memory, calls itself for each, and ends in silence where one is damaged.

POSIX.1-2008 pax, "ustar" and "pax Interchange Format"; GNU tar manual, "Basic Tar Format" and
"Storing Sparse Files".
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator

from voidbox.images.errors import ImageError
from voidbox.images.limits import Limits
from voidbox.images.tree import decode
from voidbox.named_tuple import NamedTuple

_BLOCK_BYTES = 512
_NS = 10**9
_SECONDS_MAX = 1 << 62
_MAGIC = slice(257, 265)
_GNU_MAGIC = b"ustar  \0"
_NAME = slice(0, 100)
_XATTR_KEY = "SCHILY.xattr."
# What a header for the rest of an archive may say: every entry after it pays for each of them.
_GLOBAL_KEYS = frozenset(("path", "linkpath", "size", "uid", "gid", "mtime"))
_REGULAR_TYPES = (*tarfile.REGULAR_TYPES,)
_GNU_NAME_TYPES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# struct oldgnu_header, struct sparse_header (GNU tar's tar.h)
_SPARSE_AT, _SPARSE_COUNT, _IS_EXTENDED_AT, _REAL_SIZE = 386, 4, 482, slice(483, 495)
_SPARSE_MORE_COUNT, _IS_MORE_EXTENDED_AT = 21, 504
_SPARSE_FIELD_BYTES = 12


_Piece = tuple[int, int, int]


class Entry(NamedTuple):
    """A file as an archive tells it.

    Attributes:
        name: as it is there, with slashes and dots.
        type: tarfile's type byte; b"0" for every kind of regular file.
        link: a link's target.
        size: in bytes, with holes.
        pieces: (position in the file, length, offset in the archive) of what is stored.
    """

    name: str
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    size: int
    pieces: tuple[_Piece, ...]


def said(name: str) -> str:
    """Return a name as a message can show it."""
    return ascii(name if len(name) <= 200 else name[:200] + "…")


class Reader:
    """One archive in a file.

    Args:
        descriptor: of the file.
        size: of the archive, in bytes.
    """

    def __init__(self, descriptor: int, size: int, limits: Limits) -> None:
        self._descriptor = descriptor
        self._size = size
        self._limits = limits
        self._offset = 0  # of what is read next
        self._header_bytes = 0  # read for this entry so far
        self._globals: dict[str, bytes] = {}
        self._global_bytes = 0  # read of headers that tell of all entries

    def entries(self) -> Iterator[Entry]:
        """Yield the archive's entries, in its order.

        Raises:
            ImageError: it is damaged or cut short.
            OSError: reading failed.
        """
        while True:
            self._header_bytes = 0
            entry = self._next()
            if entry is None:
                return
            yield entry

    def _next(self) -> Entry | None:
        records: list[tuple[str, bytes]] = []  # of the headers before the entry's own
        is_extended = False
        while True:
            start = self._offset
            info, block = self._header(is_extended)
            if info is None:
                return None
            if info.size < 0:
                raise ImageError(f"{self._at(start)}: a negative size")
            if info.type in _GNU_NAME_TYPES:
                name = self._take(self._sized(info.size)).partition(b"\0")[0]
                records.append((_GNU_NAME_TYPES[info.type], name))
            elif info.type in _PAX_TYPES:
                records.extend(_pax_records(self._take(self._sized(info.size)), self._at(start)))
            elif info.type == tarfile.XGLTYPE:
                self._take_globals(info.size, self._at(start))
                continue
            else:
                return self._entry(info, block, records, self._at(start))
            is_extended = True

    def _take_globals(self, size: int, where: str) -> None:
        self._global_bytes += _BLOCK_BYTES + size
        if self._global_bytes > self._limits.global_bytes:
            raise ImageError(f"global headers have more than {self._limits.global_bytes} bytes")
        for key, value in _pax_records(self._take(size), where):
            if key in _GLOBAL_KEYS:
                self._globals[key] = value

    def _at(self, offset: int) -> str:
        return f"the archive is damaged at byte {offset}"

    def _sized(self, size: int) -> int:
        self._bound(size)
        return size

    def _bound(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.header_bytes:
            raise ImageError(f"an entry's headers have more than {self._limits.header_bytes} bytes")

    def _take(self, size: int) -> bytes:
        """Return the next bytes; what follows them up to a block's end is skipped."""
        data = os.pread(self._descriptor, size, self._offset)
        if len(data) < size:
            raise ImageError(f"the archive is cut short: it ends after {self._size} bytes")
        self._offset += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
        return data

    def _header(self, is_extended: bool) -> tuple[tarfile.TarInfo | None, bytes]:
        """Return the next header, or None at the archive's end."""
        start = self._offset
        self._bound(_BLOCK_BYTES)
        if start >= self._size and not is_extended:  # no two blocks of zeros: others allow it too
            return None, b""
        block = self._take(_BLOCK_BYTES)
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"), block
        except tarfile.HeaderError as error:
            if not any(block) and not is_extended:
                return None, b""
            if not start:
                raise ImageError(
                    "a layer is no tar archive, nor one packed by gzip or zstd"
                ) from None
            raise ImageError(f"{self._at(start)}: {error}") from error

    def _entry(
        self, info: tarfile.TarInfo, block: bytes, records: list[tuple[str, bytes]], where: str
    ) -> Entry:
        pax = {**self._globals, **dict(records)}
        if block[_MAGIC] == _GNU_MAGIC:  # it has other things where ustar has a prefix
            info.name = decode(block[_NAME].partition(b"\0")[0])
        name = _text(pax, "GNU.sparse.name") or _text(pax, "path") or info.name
        kind = info.type
        if kind == tarfile.AREGTYPE and name.endswith("/"):
            kind = tarfile.DIRTYPE
        stored = _number(pax, "size", info.size, where)
        size, pieces = 0, list[_Piece]()
        if kind in _REGULAR_TYPES:
            kind = tarfile.REGTYPE
            size, pieces = self._content(info, block, stored, pax, records, where)
        return Entry(
            name=name,
            type=kind,
            mode=info.mode & 0o7777,
            uid=_number(pax, "uid", info.uid, where),
            gid=_number(pax, "gid", info.gid, where),
            mtime_ns=_time(pax.get("mtime"), info.mtime),
            link=_text(pax, "linkpath") or info.linkname,
            device=(info.devmajor, info.devminor),
            xattrs={
                key.removeprefix(_XATTR_KEY): value
                for key, value in pax.items()
                if key.startswith(_XATTR_KEY)
            },
            size=size,
            pieces=tuple(pieces),
        )

    def _content(
        self,
        info: tarfile.TarInfo,
        block: bytes,
        stored: int,
        pax: dict[str, bytes],
        records: list[tuple[str, bytes]],
        where: str,
    ) -> tuple[int, list[_Piece]]:
        """Return a file's size and pieces, and go on to what follows its content."""
        size = stored
        ranges = [(0, stored)]
        end = self._offset + stored
        if info.type == tarfile.GNUTYPE_SPARSE:
            ranges, size = self._old_sparse(block, where)
            end = self._offset + stored
        elif pax.get("GNU.sparse.major") == b"1":
            ranges = self._sparse_1_0(where)
            size = _number(pax, "GNU.sparse.realsize", -1, where)
        elif "GNU.sparse.map" in pax:
            ranges = _pairs(pax["GNU.sparse.map"].split(b","), where)
            size = _number(pax, "GNU.sparse.size", -1, where)
        elif "GNU.sparse.size" in pax:
            keys = ("GNU.sparse.offset", "GNU.sparse.numbytes")
            ranges = _pairs([value for key, value in records if key in keys], where)
            size = _number(pax, "GNU.sparse.size", -1, where)
        if end < self._offset:
            raise ImageError(f"{where}: a sparse file's map is wrong")
        pieces = _placed(ranges, size, self._offset, end, where)
        self._offset += -(-(end - self._offset) // _BLOCK_BYTES) * _BLOCK_BYTES
        if end > self._size:
            raise ImageError(f"the archive is cut short: it ends after {self._size} bytes")
        return size, pieces

    def _old_sparse(self, block: bytes, where: str) -> tuple[list[tuple[int, int]], int]:
        """GNU's own format: the map is in the header, and in blocks after it."""
        ranges = _sparse_fields(block[_SPARSE_AT:], _SPARSE_COUNT, where)
        size = _field(block[_REAL_SIZE], where)
        is_extended = block[_IS_EXTENDED_AT]
        while is_extended:
            self._bound(_BLOCK_BYTES)
            block = self._take(_BLOCK_BYTES)
            ranges += _sparse_fields(block, _SPARSE_MORE_COUNT, where)
            is_extended = block[_IS_MORE_EXTENDED_AT]
        return ranges, size

    def _sparse_1_0(self, where: str) -> list[tuple[int, int]]:
        """PAX 1.0: the map stands before the content: how many, then pairs, each on a line."""
        lines: list[bytes] = []
        rest = b""
        count = -1
        while count < 0 or len(lines) < 2 * count:
            self._bound(_BLOCK_BYTES)
            *more, rest = (rest + self._take(_BLOCK_BYTES)).split(b"\n")
            lines += more
            if count < 0 and lines:
                count = _decimal(lines.pop(0), where)
            if len(rest) > _BLOCK_BYTES:
                raise ImageError(f"{where}: no map of a sparse file")
        return _pairs(lines[: 2 * count], where)


def _pax_records(data: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Yield the (keyword, value) of "length keyword=value\\n" …"""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise ImageError(f"{where}: no PAX header")
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or not equals or data[end - 1 : end] != b"\n":
            raise ImageError(f"{where}: no PAX header")
        yield decode(key), value
        position = end


def _text(pax: dict[str, bytes], key: str) -> str:
    return decode(pax.get(key, b""))


def _decimal(text: bytes, where: str) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", text):
        raise ImageError(f"{where}: {said(decode(text))} is no number")
    return int(text)


def _number(pax: dict[str, bytes], key: str, default: int, where: str) -> int:
    """Return a number; an empty value means the header's own."""
    text = pax.get(key)
    return _decimal(text, where) if text else default


def _time(text: bytes | None, default: float) -> int:
    """Return a time in nanoseconds."""
    match = re.fullmatch(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?", text or b"")
    if not match:
        return min(max(int(default), -_SECONDS_MAX), _SECONDS_MAX) * _NS
    sign, seconds, fraction = match.groups()
    time_ns = int(seconds) * _NS + int((fraction or b"")[:9].ljust(9, b"0"))
    return -time_ns if sign else time_ns


def _field(field: bytes, where: str) -> int:
    """Return a number of an old header: octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ImageError(f"{where}: no map of a sparse file")
    return int(digits or b"0", 8)


def _sparse_fields(data: bytes, count: int, where: str) -> list[tuple[int, int]]:
    ranges = []
    for position in range(0, 2 * count * _SPARSE_FIELD_BYTES, 2 * _SPARSE_FIELD_BYTES):
        middle = position + _SPARSE_FIELD_BYTES
        if not data[position] and not data[middle]:  # an unused one
            break
        offset = _field(data[position:middle], where)
        ranges.append((offset, _field(data[middle : middle + _SPARSE_FIELD_BYTES], where)))
    return ranges


def _pairs(numbers: list[bytes], where: str) -> list[tuple[int, int]]:
    values = [_decimal(number, where) for number in numbers if number]
    if len(values) % 2:
        raise ImageError(f"{where}: no map of a sparse file")
    return list(zip(values[::2], values[1::2], strict=True))


def _placed(
    ranges: list[tuple[int, int]], size: int, offset: int, end: int, where: str
) -> list[_Piece]:
    """Return (position, length, offset in the archive) of each range of a file."""
    pieces = []
    last = 0
    for position, length in ranges:
        if position < last or position + length > size or offset + length > end:
            raise ImageError(f"{where}: a sparse file's map is wrong")
        last = position + length
        if length:
            pieces.append((position, length, offset))
        offset += length
    return pieces
