"""multipart/form-data as it comes, without keeping any of it; RFC 7578, RFC 2046 §5.1. Sans-IO."""

from __future__ import annotations

import re
from collections.abc import Iterator

from voidbox.named_tuple import NamedTuple

_HEADERS_BYTES_MAX = 16 << 10  # of one part
_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,200})"|([^\s;,"]{1,200}))""", re.IGNORECASE)
_NAME = re.compile(rb'(?:^|[;\s])name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILENAME = re.compile(rb'(?:^|[;\s])filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILENAME_EXT = re.compile(rb"filename\*=utf-8''([^;\s]+)", re.IGNORECASE)


class MultipartError(Exception):
    """What came is no multipart/form-data."""


class Begin(NamedTuple):
    """A part begins."""

    name: str
    filename: str


class End(NamedTuple):
    """The part is over."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a header Content-Type names.

    Raises:
        MultipartError: it names none.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MultipartError("Content-Type names no boundary")
    return (found[1] or found[2]).encode("latin-1")


class MultipartParser:
    """Cuts a body into parts. What a part holds comes as bytes, in pieces of whatever length."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # so that the first delimiter is like the others
        self._state = "preamble"

    @property
    def is_over(self) -> bool:
        """Whether the last delimiter has come."""
        return self._state == "epilogue"

    def feed(self, data: bytes) -> Iterator[Begin | bytes | End]:
        """Take bytes; yield what they bring. Exhaust it before the next call.

        Raises:
            MultipartError: the body is malformed.
        """
        self._buffer += data
        while True:
            if self._state == "epilogue":
                self._buffer.clear()
                return
            if self._state in ("preamble", "data"):
                yield from self._data()
                if self._state in ("preamble", "data"):
                    return
            elif self._state == "delimiter":
                if not self._after_delimiter():
                    return
            else:
                begin = self._headers()
                if begin is None:
                    return
                yield begin

    def _data(self) -> Iterator[bytes | End]:
        """Yield what is before the next delimiter; keep what may be the beginning of one."""
        at = self._buffer.find(self._delimiter)
        is_part = self._state == "data"
        end = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        if end and is_part:
            yield bytes(memoryview(self._buffer)[:end])
        if at < 0:
            del self._buffer[:end]
            return
        del self._buffer[: at + len(self._delimiter)]
        self._state = "delimiter"
        if is_part:
            yield End()

    def _after_delimiter(self) -> bool:
        """Look at the two bytes that say what follows; False if they have not come."""
        line = bytes(self._buffer[:2])
        if len(line) < 2:
            return False
        if line == b"--":
            self._state = "epilogue"
        elif line == b"\r\n":
            self._state = "headers"
        else:
            raise MultipartError("a delimiter is followed by something else")
        del self._buffer[:2]
        return True

    def _headers(self) -> Begin | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEADERS_BYTES_MAX:
                raise MultipartError("the headers of a part are too long")
            return None
        head = bytes(self._buffer[:end])
        if len(head) > _HEADERS_BYTES_MAX:
            raise MultipartError("the headers of a part are too long")
        del self._buffer[: end + 4]
        self._state = "data"
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                return Begin(_parameter(_NAME, value), _filename(value))
        raise MultipartError("a part without Content-Disposition")


def _parameter(pattern: re.Pattern[bytes], value: bytes) -> str:
    found = pattern.search(value)
    return _plain(found[1]) if found is not None else ""


def _filename(value: bytes) -> str:
    found = _FILENAME_EXT.search(value)
    if found is not None:
        from urllib.parse import unquote_to_bytes

        return unquote_to_bytes(found[1]).decode("utf-8", "replace")
    return _parameter(_FILENAME, value)


def _plain(quoted: bytes) -> str:
    """Return a quoted value as it was: browsers escape by percent, others by backslash."""
    text = re.sub(rb'\\(["\\])', rb"\1", quoted).decode("utf-8", "replace")
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
