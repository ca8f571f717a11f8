"""An uncompressed vmlinux: program headers, and the PVH note where there is one.

ELF-64 (System V gABI chapter 5). A PVH entry (Xen docs/misc/pvh.pandoc) is announced by the note
XEN_ELFNOTE_PHYS32_ENTRY.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

ELF_MAGIC = b"\x7fELF"

# Elf64_Ehdr
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
assert _EHDR.size == 64
# Elf64_Phdr
_PHDR = struct.Struct("<IIQQQQQQ")
assert _PHDR.size == 56
# Elf64_Nhdr
_NHDR = struct.Struct("<III")

_ELFCLASS64_LSB = b"\x02\x01"
_ET_EXEC, _ET_DYN = 2, 3
_EM_X86_64 = 62
_PT_LOAD, _PT_NOTE = 1, 4
_PROGRAM_HEADERS_MAX = 64
_NOTE_BYTES_MAX = 1 << 20
_XEN_ELFNOTE_PHYS32_ENTRY = 18

ReadAt = Callable[[int, int], bytes]


class Segment(NamedTuple):
    """A PT_LOAD: `file_bytes` at `offset` go to `gpa`; the rest of `memory_bytes` is zero."""

    offset: int
    gpa: int
    file_bytes: int
    memory_bytes: int


class Vmlinux(NamedTuple):
    """A kernel to load. `notes` are the (offset, length) of its PT_NOTE segments."""

    segments: tuple[Segment, ...]
    entry_gpa: int
    notes: tuple[tuple[int, int], ...]


def parse(read_at: ReadAt, file_bytes: int, path: str) -> Vmlinux:
    """Parse a vmlinux's headers.

    Args:
        read_at: (offset, length) to bytes, shorter at the end of the file.
    Raises:
        ConfigError: not an x86-64 executable, or the file is shorter than its headers say.
    """

    def exactly(offset: int, length: int) -> bytes:
        data = read_at(offset, length) if offset + length <= file_bytes else b""
        if len(data) != length:
            raise ConfigError(
                f"{path}: truncated: its headers name bytes up to {offset + length}, "
                f"the file has {file_bytes}; copy or build it again"
            )
        return data

    ident, kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = _EHDR.unpack(
        exactly(0, _EHDR.size)
    )
    if ident[4:6] != _ELFCLASS64_LSB or machine != _EM_X86_64 or kind not in (_ET_EXEC, _ET_DYN):
        raise ConfigError(f"{path}: an ELF file, but no x86-64 kernel; use a 64-bit vmlinux")
    if phentsize != _PHDR.size or not 0 < phnum <= _PROGRAM_HEADERS_MAX:
        raise ConfigError(f"{path}: an ELF file without program headers; use a linked vmlinux")

    segments: list[Segment] = []
    notes: list[tuple[int, int]] = []
    table = exactly(phoff, phnum * _PHDR.size)
    for kind, _, offset, _, paddr, filesz, memsz, _ in _PHDR.iter_unpack(table):
        if kind == _PT_LOAD and memsz:
            if filesz > memsz:
                raise ConfigError(f"{path}: a segment is larger in the file than in memory")
            if filesz:
                exactly(offset + filesz - 1, 1)
            segments.append(Segment(offset, paddr, filesz, memsz))
        elif kind == _PT_NOTE and 0 < filesz <= _NOTE_BYTES_MAX:
            exactly(offset + filesz - 1, 1)
            notes.append((offset, filesz))
    if not segments:
        raise ConfigError(f"{path}: an ELF file with nothing to load; use a linked vmlinux")
    return Vmlinux(tuple(segments), entry, tuple(notes))


def find_pvh_entry(vmlinux: Vmlinux, read_at: ReadAt) -> int | None:
    """Return the PVH entry's guest-physical address, or None where no note announces one."""
    for offset, length in vmlinux.notes:
        entry = _pvh_entry(read_at(offset, length))
        if entry is not None:
            return entry
    return None


def _pvh_entry(notes: bytes) -> int | None:
    """Find XEN_ELFNOTE_PHYS32_ENTRY among the notes; names and contents are padded to 4 bytes."""
    offset = 0
    while offset + _NHDR.size <= len(notes):
        name_bytes, content_bytes, kind = _NHDR.unpack_from(notes, offset)
        name_at = offset + _NHDR.size
        content_at = name_at + (name_bytes + 3 & ~3)
        content = notes[content_at : content_at + content_bytes]
        if (
            notes[name_at : name_at + name_bytes] == b"Xen\0"
            and kind == _XEN_ELFNOTE_PHYS32_ENTRY
            and len(content) in (4, 8)
        ):
            return int.from_bytes(content, "little")
        offset = content_at + (content_bytes + 3 & ~3)
    return None
