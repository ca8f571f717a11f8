"""ACPI Machine Language, as much as a DSDT of plain devices needs (ACPI 6.4 chapters 6.4 and 20).

Each function returns the bytes of one term; terms nest by concatenation:
`device("COM1", name("_UID", integer(1)))`.
"""

from __future__ import annotations

import struct

_ZERO_OP = 0x00
_ONE_OP = 0x01
_NAME_OP = 0x08
_BYTE_PREFIX = 0x0A
_WORD_PREFIX = 0x0B
_DWORD_PREFIX = 0x0C
_STRING_PREFIX = 0x0D
_QWORD_PREFIX = 0x0E
_SCOPE_OP = 0x10
_BUFFER_OP = 0x11
_PACKAGE_OP = 0x12
_METHOD_OP = 0x14
_EXT_PREFIX = 0x5B
_DEVICE_OP = 0x82
_NOTIFY_OP = 0x86
_ROOT_PREFIX = b"\\"


def name_string(path: str) -> bytes:
    r"""Encode a name of one segment, `_SB_`, `\_S5_` or `COM1`, padded with underscores."""
    prefix, segment = (_ROOT_PREFIX, path[1:]) if path.startswith("\\") else (b"", path)
    if not 1 <= len(segment) <= 4:
        raise ValueError(f"an AML name segment has 1 to 4 characters: {path!r}")
    return prefix + segment.ljust(4, "_").encode("ascii")


def _package_length(body_bytes: int) -> bytes:
    """PkgLength (§20.2.4): counts itself, in 1 to 4 bytes."""
    if body_bytes + 1 < 1 << 6:
        return bytes([body_bytes + 1])
    for extra in (1, 2, 3):
        total = body_bytes + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0x0F]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError("the AML package is too long")


def integer(value: int) -> bytes:
    """Encode an integer constant in its shortest form."""
    if value in (0, 1):
        return bytes([_ONE_OP if value else _ZERO_OP])
    for prefix, code, limit in (
        (_BYTE_PREFIX, "<B", 1 << 8),
        (_WORD_PREFIX, "<H", 1 << 16),
        (_DWORD_PREFIX, "<I", 1 << 32),
        (_QWORD_PREFIX, "<Q", 1 << 64),
    ):
        if 0 <= value < limit:
            return bytes([prefix]) + struct.pack(code, value)
    raise ValueError(f"no AML integer: {value}")


def string(value: str) -> bytes:
    """Encode a string constant."""
    return bytes([_STRING_PREFIX]) + value.encode("ascii") + b"\0"


def eisa_id(identifier: str) -> bytes:
    """Encode a seven-character EISA id such as PNP0501 (§19.3.4, EISAID macro)."""
    letters, digits = identifier[:3], identifier[3:]
    packed = 0
    for letter in letters:
        packed = packed << 5 | ord(letter) - 0x40
    packed = packed << 16 | int(digits, 16)
    # The id is stored most significant byte first, inside a little-endian integer.
    return bytes([_DWORD_PREFIX]) + struct.pack(">I", packed)


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return bytes([_NAME_OP]) + name_string(path) + value


def package(*elements: bytes) -> bytes:
    """Package () {elements}."""
    body = bytes([len(elements)]) + b"".join(elements)
    return bytes([_PACKAGE_OP]) + _package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """Buffer () {data}."""
    body = integer(len(data)) + data
    return bytes([_BUFFER_OP]) + _package_length(len(body)) + body


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) {terms}."""
    body = name_string(path) + b"".join(terms)
    return bytes([_SCOPE_OP]) + _package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) {terms}."""
    body = name_string(path) + b"".join(terms)
    return bytes([_EXT_PREFIX, _DEVICE_OP]) + _package_length(len(body)) + body


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments, Serialized) {terms}."""
    serialized = 1 << 3
    body = name_string(path) + bytes([arguments | serialized]) + b"".join(terms)
    return bytes([_METHOD_OP]) + _package_length(len(body)) + body


def notify(path: str, value: int) -> bytes:
    """Notify (path, value)."""
    return bytes([_NOTIFY_OP]) + name_string(path) + integer(value)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}: a buffer that ends with an end tag without checksum."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io_ports(base: int, length: int) -> bytes:
    """IO (Decode16, base, base, 1, length): §6.4.2.5."""
    return struct.pack("<BBHHBB", 0x47, 0x01, base, base, 1, length)


def memory32_fixed(gpa: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, gpa, length): §6.4.3.4."""
    return struct.pack("<BHBII", 0x86, 9, 1, gpa, length)


def interrupt(gsi: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}: §6.4.3.6."""
    consumer_edge_high_exclusive = 0b0011
    return struct.pack("<BHBBI", 0x89, 6, consumer_edge_high_exclusive, 1, gsi)
