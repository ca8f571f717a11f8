"""The first vCPU's registers, its page tables, and the MSRs that a boot loader leaves behind.

Functions take KVM's structures (`struct kvm_sregs` and the like) by their kernel names and set
fields; they call nothing.
"""

from __future__ import annotations

import struct
from typing import Any

from voidbox.boot import layout
from voidbox.boot.loader import EntryPoint
from voidbox.memory import GuestMemory

X86_CR0_PE = 1 << 0
X86_CR0_ET = 1 << 4
X86_CR0_PG = 1 << 31
X86_CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
_RFLAGS_RESERVED = 2

_GDT_NULL = 0
_GDT_CODE64 = 0x00AF_9B00_0000_FFFF
_GDT_CODE32 = 0x00CF_9B00_0000_FFFF
_GDT_DATA = 0x00CF_9300_0000_FFFF
_GDT_TSS64 = 0x008F_8B00_0000_FFFF
_GDT_TSS32 = 0x0000_8B00_0000_0067

_PAGE_PRESENT_RW = 0x03
_PAGE_PRESENT_RW_LARGE = 0x83
_LARGE_PAGE_SHIFT = 21
_ENTRIES = 512

MSR_IA32_TSC = 0x10
MSR_IA32_MISC_ENABLE = 0x1A0
MSR_IA32_MISC_ENABLE_FAST_STRING = 1
MSR_MTRRdefType = 0x2FF
_MTRR_ENABLE_WRITE_BACK = 0x806

# Zero after a reset, and stated so that no KVM's default matters.
_ZERO_MSRS = (
    0x174,  # MSR_IA32_SYSENTER_CS
    0x175,  # MSR_IA32_SYSENTER_ESP
    0x176,  # MSR_IA32_SYSENTER_EIP
    0xC000_0081,  # MSR_STAR
    0xC000_0082,  # MSR_LSTAR
    0xC000_0083,  # MSR_CSTAR
    0xC000_0084,  # MSR_SYSCALL_MASK
    0xC000_0102,  # MSR_KERNEL_GS_BASE
    MSR_IA32_TSC,
)
BOOT_MSRS: tuple[tuple[int, int], ...] = (
    *((index, 0) for index in _ZERO_MSRS),
    (MSR_IA32_MISC_ENABLE, MSR_IA32_MISC_ENABLE_FAST_STRING),
    (MSR_MTRRdefType, _MTRR_ENABLE_WRITE_BACK),
)

FPU_CONTROL_WORD = 0x37F
MXCSR_DEFAULT = 0x1F80

APIC_LVT0 = 0x350
APIC_LVT1 = 0x360
_APIC_MODE_EXTINT = 0x700
_APIC_MODE_NMI = 0x400


def write_tables(memory: GuestMemory, entry: EntryPoint) -> None:
    """Write the GDT, an empty IDT, and for 64-bit entry the page tables: the first GiB, 1:1."""
    code = _GDT_CODE32 if entry.is_pvh else _GDT_CODE64
    tss = _GDT_TSS32 if entry.is_pvh else _GDT_TSS64
    # boot.rst, 64-bit protocol: __BOOT_CS is selector 0x10, __BOOT_DS 0x18.
    memory.write(layout.GDT_GPA, struct.pack("<5Q", _GDT_NULL, _GDT_NULL, code, _GDT_DATA, tss))
    memory.write(layout.IDT_GPA, bytes(8))
    if entry.is_pvh:
        return
    memory.write(layout.PML4_GPA, struct.pack("<Q", layout.PDPT_GPA | _PAGE_PRESENT_RW))
    memory.write(layout.PDPT_GPA, struct.pack("<Q", layout.PD_GPA | _PAGE_PRESENT_RW))
    large_pages = [index << _LARGE_PAGE_SHIFT | _PAGE_PRESENT_RW_LARGE for index in range(_ENTRIES)]
    memory.write(layout.PD_GPA, struct.pack(f"<{_ENTRIES}Q", *large_pages))


def set_sregs(sregs: Any, entry: EntryPoint) -> None:
    """Set `struct kvm_sregs` for the entry's mode: 64-bit with paging, or flat 32-bit without."""
    code = _GDT_CODE32 if entry.is_pvh else _GDT_CODE64
    _set_segment(sregs.cs, 2, code)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set_segment(segment, 3, _GDT_DATA)
    _set_segment(sregs.tr, 4, _GDT_TSS32 if entry.is_pvh else _GDT_TSS64)
    sregs.gdt.base, sregs.gdt.limit = layout.GDT_GPA, 5 * 8 - 1
    sregs.idt.base, sregs.idt.limit = layout.IDT_GPA, 8 - 1
    if entry.is_pvh:
        sregs.cr0 = X86_CR0_PE | X86_CR0_ET
        sregs.cr4 = 0
        return
    # Outright: after a reset CD and NW are set, and the kernel would run uncached.
    sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_PG
    sregs.cr3 = layout.PML4_GPA
    sregs.cr4 |= X86_CR4_PAE
    sregs.efer |= EFER_LME | EFER_LMA


def _set_segment(segment: Any, index: int, descriptor: int) -> None:
    """Unpack a GDT descriptor into `struct kvm_segment` (Intel SDM vol. 3, figure 3-8)."""
    segment.selector = index * 8
    segment.base = descriptor >> 16 & 0xFF_FFFF | descriptor >> 56 << 24
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    segment.g = descriptor >> 55 & 1
    # KVM wants the limit in bytes, whatever the granularity.
    segment.limit = limit << 12 | 0xFFF if segment.g else limit
    segment.type = descriptor >> 40 & 0xF
    segment.s = descriptor >> 44 & 1
    segment.dpl = descriptor >> 45 & 3
    segment.present = descriptor >> 47 & 1
    segment.avl = descriptor >> 52 & 1
    segment.l = descriptor >> 53 & 1
    segment.db = descriptor >> 54 & 1
    segment.unusable = 0


def set_regs(regs: Any, entry: EntryPoint) -> None:
    """Set `struct kvm_regs` for the kernel's entry point."""
    regs.rflags = _RFLAGS_RESERVED
    regs.rip = entry.rip
    if entry.is_pvh:
        regs.rbx = layout.PVH_START_INFO_GPA
    else:
        regs.rsi = layout.ZERO_PAGE_GPA
        regs.rsp = regs.rbp = layout.STACK_GPA


def set_lapic(lapic: Any) -> None:
    """Set LINT0 to ExtINT and LINT1 to NMI in `struct kvm_lapic_state`, as firmware does."""
    for offset, mode in ((APIC_LVT0, _APIC_MODE_EXTINT), (APIC_LVT1, _APIC_MODE_NMI)):
        raw = bytes(lapic.regs[offset : offset + 4])
        value = int.from_bytes(raw, "little") & ~0x700 | mode
        lapic.regs[offset : offset + 4] = list(value.to_bytes(4, "little"))
