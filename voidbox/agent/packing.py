"""MessagePack, as much of it as the agent's protocol uses, checked for hostile input.

Values are None, bool, int (64 bits), float, str, bytes, list, and dict with str keys. Bytes of a
str that are no UTF-8 (a file name may be anything) pass as Python's surrogate escapes. The guest's
Python has no msgpack package, and json would cost its start 5 ms and cannot carry the bytes of a
file name. What is written here any MessagePack reader understands.

This file runs on both sides: the image build packs it beside the guest's agent. It imports nothing
but what every Python starts with.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEPTH_MAX = 8

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_I8, _I16, _I32, _I64 = (struct.Struct(">" + code) for code in "bhiq")
_F32, _F64 = struct.Struct(">f"), struct.Struct(">d")

# Marker byte to the number that follows it.
_NUMBERS = {
    0xCA: _F32, 0xCB: _F64,
    0xCC: struct.Struct(">B"), 0xCD: _U16, 0xCE: _U32, 0xCF: _U64,
    0xD0: _I8, 0xD1: _I16, 0xD2: _I32, 0xD3: _I64,
}  # fmt: skip
# Marker byte to the kind of value and the width of its length.
_SIZED = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class PackingError(ValueError):
    """Bytes that are not one value of ours."""


def pack(value: Any) -> bytes:
    """Encode one value.

    Raises:
        TypeError: a kind of value that the protocol does not carry.
        OverflowError: an integer of more than 64 bits.
        ValueError: a surrogate in a string that stands for no byte.
    """
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value: Any, out: bytearray) -> None:
    if value is None:
        out.append(0xC0)
    elif value is True or value is False:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out.append(0xCB)
        out += _F64.pack(value)
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        _pack_length(len(data), out, 0xA0, 32, (0xD9, 0xDA, 0xDB))
        out += data
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _pack_length(memoryview(value).nbytes, out, 0, 0, (0xC4, 0xC5, 0xC6))
        out += value
    elif isinstance(value, (list, tuple)):
        _pack_length(len(value), out, 0x90, 16, (0, 0xDC, 0xDD))
        for item in value:
            _pack(item, out)
    elif isinstance(value, dict):
        _pack_length(len(value), out, 0x80, 16, (0, 0xDE, 0xDF))
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key must be str, not {type(key).__name__}")
            _pack(key, out)
            _pack(item, out)
    else:
        raise TypeError(f"cannot pack {type(value).__name__}")


def _pack_int(value: int, out: bytearray) -> None:
    if 0 <= value < 0x80 or -0x20 <= value < 0:
        out.append(value & 0xFF)
    elif value >= 0:
        if value >> 64:
            raise OverflowError("an integer of more than 64 bits")
        out.append(0xCF)
        out += _U64.pack(value)
    else:
        if value < -(1 << 63):
            raise OverflowError("an integer of more than 64 bits")
        out.append(0xD3)
        out += _I64.pack(value)


def _pack_length(
    length: int, out: bytearray, fix: int, fix_limit: int, markers: tuple[int, int, int]
) -> None:
    """Write a length in its shortest form; `markers` are those for 8, 16 and 32 bits."""
    if length < fix_limit:
        out.append(fix | length)
    elif length < 1 << 8 and markers[0]:
        out += bytes((markers[0], length))
    elif length < 1 << 16:
        out.append(markers[1])
        out += _U16.pack(length)
    else:
        out.append(markers[2])
        out += _U32.pack(length)


def unpack(data: bytes) -> Any:
    """Decode exactly one value.

    Raises:
        PackingError: truncated, trailing or unknown bytes, nesting too deep, a bad key.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise PackingError(f"{len(data) - reader.at} bytes too many")
    return value


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise PackingError("cut off in the middle of a value")
        part = self.data[self.at : end]
        self.at = end
        return part

    def value(self, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise PackingError("nested too deeply")
        marker = self.take(1)[0]
        if marker < 0x80:
            return marker
        if marker >= 0xE0:
            return marker - 0x100
        if marker < 0x90:
            return self.sized("map", marker & 0x0F, depth)
        if marker < 0xA0:
            return self.sized("array", marker & 0x0F, depth)
        if marker < 0xC0:
            return self.sized("str", marker & 0x1F, depth)
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        number = _NUMBERS.get(marker)
        if number is not None:
            return number.unpack(self.take(number.size))[0]
        if marker in _SIZED:
            kind, width = _SIZED[marker]
            return self.sized(kind, int.from_bytes(self.take(width), "big"), depth)
        raise PackingError(f"unknown kind of value: {marker:#04x}")

    def sized(self, kind: str, length: int, depth: int) -> Any:
        # A length that the rest cannot hold fails at its first missing byte: nothing is reserved.
        if kind == "bin":
            return self.take(length)
        if kind == "str":
            return self.take(length).decode("utf-8", "surrogateescape")
        if kind == "array":
            return [self.value(depth + 1) for _ in range(length)]
        items = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise PackingError("a key that is not a string")
            if key in items:
                raise PackingError(f"a second value for {key[:40]!r}")
            items[key] = self.value(depth + 1)
        return items
