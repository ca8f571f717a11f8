"""What a kernel is told: the memory map, and the zero page or PVH start_info that carries it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voidbox.boot import layout
from voidbox.memory import MMIO_HOLE_END_GPA, PAGE_BYTES
from voidbox.memory import layout as memory_layout
from voidbox.named_tuple import NamedTuple

E820_TYPE_RAM = 1
E820_TYPE_RESERVED = 2

# struct boot_params, Documentation/arch/x86/zero-page.rst
_ACPI_RSDP_ADDR = 0x070
_E820_ENTRIES = 0x1E8
_SETUP_HEADER = 0x1F1
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_RAMDISK_IMAGE = 0x218
_RAMDISK_SIZE = 0x21C
_CMD_LINE_PTR = 0x228
_CMDLINE_SIZE = 0x238
_E820_TABLE = 0x2D0
# struct boot_e820_entry
_E820_ENTRY = struct.Struct("<QQI")
assert _E820_ENTRY.size == 20

_LOADER_UNDEFINED = 0xFF
_LOADED_HIGH = 1

# struct hvm_start_info, version 1: Xen include/public/arch-x86/hvm/start_info.h
_HVM_START_INFO = struct.Struct("<IIIIQQQQII")
assert _HVM_START_INFO.size == 56
_HVM_MODLIST_ENTRY = struct.Struct("<QQQQ")
_HVM_MEMMAP_ENTRY = struct.Struct("<QQII")
_XEN_HVM_START_MAGIC = 0x336EC578


class BootInfo(NamedTuple):
    """Addresses that go into either structure; an initramfs of 0 bytes is none."""

    cmdline_gpa: int
    cmdline_bytes: int
    initrd_gpa: int
    initrd_bytes: int
    rsdp_gpa: int
    memory_bytes: int


def e820(memory_bytes: int) -> list[tuple[int, int, int]]:
    """Return (gpa, length in bytes, type): RAM but for the system data and ACPI below 1 MiB."""
    system_data_end = layout.HIGH_RAM_GPA
    entries = [
        (0, layout.SYSTEM_DATA_GPA, E820_TYPE_RAM),
        (layout.SYSTEM_DATA_GPA, system_data_end - layout.SYSTEM_DATA_GPA, E820_TYPE_RESERVED),
    ]
    for gpa, length in memory_layout(memory_bytes):
        start = gpa if gpa >= MMIO_HOLE_END_GPA else layout.HIGH_RAM_GPA
        entries.append((start, gpa + length - start, E820_TYPE_RAM))
    return entries


def zero_page(info: BootInfo, setup_header: bytes = b"") -> bytes:
    """Build struct boot_params; `setup_header` is a bzImage's own, if there is one."""
    page = bytearray(PAGE_BYTES)
    page[_SETUP_HEADER : _SETUP_HEADER + len(setup_header)] = setup_header
    struct.pack_into("<H", page, _BOOT_FLAG, 0xAA55)
    page[_HEADER_MAGIC : _HEADER_MAGIC + 4] = b"HdrS"
    if not setup_header:
        struct.pack_into("<H", page, _VERSION, 0x020C)
        struct.pack_into("<I", page, _CMDLINE_SIZE, info.cmdline_bytes)
    page[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    page[_LOADFLAGS] |= _LOADED_HIGH
    struct.pack_into("<I", page, _CMD_LINE_PTR, info.cmdline_gpa)
    struct.pack_into("<I", page, _RAMDISK_IMAGE, info.initrd_gpa)
    struct.pack_into("<I", page, _RAMDISK_SIZE, info.initrd_bytes)
    struct.pack_into("<Q", page, _ACPI_RSDP_ADDR, info.rsdp_gpa)
    entries = e820(info.memory_bytes)
    page[_E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        _E820_ENTRY.pack_into(page, _E820_TABLE + index * _E820_ENTRY.size, *entry)
    return bytes(page)


def pvh_start_info(info: BootInfo) -> Sequence[tuple[int, bytes]]:
    """Build struct hvm_start_info and what it points to, as (gpa, bytes) to write."""
    entries = e820(info.memory_bytes)
    start_info = _HVM_START_INFO.pack(
        _XEN_HVM_START_MAGIC,
        1,
        0,
        1 if info.initrd_bytes else 0,
        layout.PVH_MODLIST_GPA if info.initrd_bytes else 0,
        info.cmdline_gpa,
        info.rsdp_gpa,
        layout.PVH_MEMMAP_GPA,
        len(entries),
        0,
    )
    memmap = b"".join(_HVM_MEMMAP_ENTRY.pack(gpa, length, kind, 0) for gpa, length, kind in entries)
    modlist = _HVM_MODLIST_ENTRY.pack(info.initrd_gpa, info.initrd_bytes, 0, 0)
    return (
        (layout.PVH_START_INFO_GPA, start_info),
        (layout.PVH_MODLIST_GPA, modlist),
        (layout.PVH_MEMMAP_GPA, memmap),
    )
