"""Kernels made by hand: as small as their formats allow, and whole."""

from __future__ import annotations

import gzip
import lzma
import struct

ENTRY_GPA = 0x100_0000
CODE = bytes(range(256)) * 20
PVH_ENTRY_GPA = 0x100_0080


def elf(notes: bool = False, code: bytes = CODE, bss_bytes: int = 0x1000) -> bytes:
    """An ELF vmlinux: one PT_LOAD at 16 MiB, and a PVH note if wanted."""
    headers = 2 if notes else 1
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", PVH_ENTRY_GPA) if notes else b""
    note_offset = 64 + 56 * headers
    code_offset = note_offset + len(note)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    image = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, 62, 1, ENTRY_GPA, 64, 0, 0, 64, 56, headers, 0, 0, 0
    )
    memory_bytes = len(code) + bss_bytes
    image += struct.pack(
        "<IIQQQQQQ", 1, 7, code_offset, 0, ENTRY_GPA, len(code), memory_bytes, 4096
    )
    if notes:
        image += struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(note), len(note), 4)
    return image + note + code


def compressed(vmlinux: bytes, method: str) -> bytes:
    """A payload as Linux's build makes it: all but gzip carry the unpacked size behind."""
    if method == "gzip":
        return gzip.compress(vmlinux)
    size = struct.pack("<I", len(vmlinux))
    if method == "xz":
        return lzma.compress(vmlinux, check=lzma.CHECK_CRC32) + size
    if method == "lz4":
        # One legacy block of literals only: a token with the length, then the bytes.
        rest, lengths = len(vmlinux) - 15, b""
        while rest >= 255:
            lengths += b"\xff"
            rest -= 255
        block = b"\xf0" + lengths + bytes([rest]) + vmlinux
        return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + size
    raise ValueError(method)


def bzimage(
    payload: bytes = b"",
    version: int = 0x20F,
    xloadflags: int = 1,
    init_size: int = 1 << 20,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 2047,
) -> bytes:
    """A bzImage with one setup sector; its protected-mode part holds `payload` at 0x400."""
    kernel = (bytes(0x400) + payload).ljust(0x800, b"\xcc")
    kernel += bytes(-len(kernel) % 16)
    image = bytearray(1024)
    image[0x1F1] = 1
    struct.pack_into("<I", image, 0x1F4, len(kernel) // 16)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x202] = b"\xeb\x66"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, initrd_addr_max)
    struct.pack_into("<H", image, 0x236, xloadflags)
    struct.pack_into("<I", image, 0x238, cmdline_size)
    struct.pack_into("<II", image, 0x248, 0x400, len(payload))
    struct.pack_into("<Q", image, 0x258, ENTRY_GPA)
    struct.pack_into("<I", image, 0x260, init_size)
    return bytes(image) + kernel
