"""Write `boot-timer`: a guest program that tells the VMM, by one port write, that init is up.

A static ELF of 200 bytes, made without a compiler because Debian's cloud kernel has no /dev/port
and busybox no OUT instruction.

    python scripts/boot_timer.py OUTPUT
"""

from __future__ import annotations

import os
import struct
import sys

BASE = 0x400000
PORT = 0x3F0
VALUE = 123

CODE = b"".join(
    (
        b"\xbf" + struct.pack("<I", PORT),  # mov edi, PORT
        b"\xbe\x01\x00\x00\x00",  # mov esi, 1            one port
        b"\xba\x01\x00\x00\x00",  # mov edx, 1            on
        b"\xb8\xad\x00\x00\x00",  # mov eax, 173          SYS_ioperm
        b"\x0f\x05",  # syscall
        b"\x85\xc0",  # test eax, eax
        b"\x75\x10",  # jnz fail
        b"\x66\xba" + struct.pack("<H", PORT),  # mov dx, PORT
        b"\xb0" + bytes([VALUE]),  # mov al, VALUE
        b"\xee",  # out dx, al
        b"\x31\xff",  # xor edi, edi
        b"\xb8\x3c\x00\x00\x00",  # mov eax, 60           SYS_exit
        b"\x0f\x05",  # syscall
        # fail:
        b"\xbf\x01\x00\x00\x00",  # mov edi, 1
        b"\xb8\x3c\x00\x00\x00",  # mov eax, 60
        b"\x0f\x05",  # syscall
    )
)

# Elf64_Ehdr and Elf64_Phdr
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_EXEC, _EM_X86_64, _PT_LOAD, _PF_R_X = 2, 62, 1, 5


def build() -> bytes:
    """Return the program."""
    headers = _EHDR.size + _PHDR.size
    size = headers + len(CODE)
    ehdr = _EHDR.pack(
        _IDENT, _ET_EXEC, _EM_X86_64, 1, BASE + headers, _EHDR.size, 0, 0,
        _EHDR.size, _PHDR.size, 1, 0, 0, 0,
    )  # fmt: skip
    return ehdr + _PHDR.pack(_PT_LOAD, _PF_R_X, 0, BASE, BASE, size, size, 4096) + CODE


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        file.write(build())
    os.chmod(sys.argv[1], 0o755)
