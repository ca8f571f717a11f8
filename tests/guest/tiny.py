"""Guests of a few bytes: x86 machine code wrapped into an ELF that the real loader boots."""

from __future__ import annotations

import struct
from pathlib import Path

CODE_GPA = 0x100000

COM1 = 0x3F8
ACPI_SLEEP_CONTROL = 0x600
S5_SLP_EN = 5 << 2 | 1 << 5

HLT_FOREVER = b"\xf4\xeb\xfd"  # hlt; jmp -3
SPIN = b"\xeb\xfe"  # jmp .


def out8(port: int, value: int) -> bytes:
    """Mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def out32(port: int, value: int) -> bytes:
    """Mov dx, port; mov eax, value; out dx, eax."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"


def in8(port: int) -> bytes:
    """Mov dx, port; in al, dx."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xec"


def in32(port: int) -> bytes:
    """Mov dx, port; in eax, dx."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xed"


def store_eax(address: int) -> bytes:
    """Mov edi, address; mov [edi], eax: the same bytes in 32-bit and 64-bit mode."""
    return b"\xbf" + struct.pack("<I", address) + b"\x89\x07"


def say(text: str) -> bytes:
    """Send `text` to the console, one OUT a byte."""
    return b"".join(out8(COM1, byte) for byte in text.encode())


def power_off() -> bytes:
    """Enter S5, then wait for the end."""
    return out8(ACPI_SLEEP_CONTROL, S5_SLP_EN) + HLT_FOREVER


def write_elf(path: Path, code: bytes, pvh: bool = False) -> str:
    """Write an ELF kernel with `code` at CODE_GPA; with `pvh`, entered in 32-bit mode."""
    headers = 2 if pvh else 1
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", CODE_GPA) if pvh else b""
    code_offset = 0x1000
    note_offset = 64 + headers * 56
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, 62, 1, CODE_GPA, 64, 0, 0, 64, 56, headers, 0, 0, 0
    )
    elf += struct.pack(
        "<IIQQQQQQ", 1, 5, code_offset, CODE_GPA, CODE_GPA, len(code), len(code), 4096
    )
    if pvh:
        elf += struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(note), len(note), 4)
    path.write_bytes((elf + note).ljust(code_offset, b"\0") + code)
    return str(path)
