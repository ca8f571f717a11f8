"""CPUID and registers for the machine that the guest is told of."""

from __future__ import annotations

import pytest

from voidbox.boot import cpu, cpuid, layout
from voidbox.boot.cpuid import CpuidEntry
from voidbox.boot.loader import EntryPoint
from voidbox.kvm._abi import ffi
from voidbox.memory import GuestMemory

ONES = 0xFFFF_FFFF


INTEL = CpuidEntry(0, 0, 0, 0x1F, int.from_bytes(b"Genu", "little"), 0, 0)
AMD = CpuidEntry(0, 0, 0, 0x10, int.from_bytes(b"Auth", "little"), 0, 0)


def one(entries: list[CpuidEntry], function: int, subleaf: int = 0) -> CpuidEntry:
    (entry,) = [e for e in entries if (e.function, e.subleaf) == (function, subleaf)]
    return entry


@pytest.mark.parametrize("cpus", range(1, 9))
def test_topology(cpus: int) -> None:
    host = [INTEL, CpuidEntry(1, 0, 0, 0, ONES, 0, ONES)]
    host += [CpuidEntry(leaf, sub, 1, 9, 9, 9, 9) for leaf in (0xB, 0x1F) for sub in range(3)]
    for apic_id in range(cpus):
        entries = cpuid.fix_up(host, apic_id, cpus, has_tsc_deadline=True)
        leaf1 = one(entries, 1)
        assert leaf1.ebx >> 24 == apic_id
        assert leaf1.ebx >> 16 & 0xFF == cpus
        assert bool(leaf1.edx & 1 << 28) == (cpus > 1)
        assert leaf1.ecx & 1 << 31
        assert leaf1.ecx & 1 << 24
        for leaf in (0xB, 0x1F):
            smt, core = one(entries, leaf, 0), one(entries, leaf, 1)
            assert (smt.eax, smt.ebx, smt.edx) == (0, 1, apic_id)
            assert core.ebx == cpus
            assert 1 << core.eax >= cpus
            assert one(entries, leaf, 2).ecx >> 8 == 0


def test_what_kvm_does_not_offer_is_not_invented() -> None:
    entries = cpuid.fix_up([INTEL, CpuidEntry(1, 0, 0, 0, 0, 0, 0)], 0, 1, False)
    assert not one(entries, 1).ecx & 1 << 24
    assert len(entries) == 2


def test_no_performance_counters_and_no_turbo() -> None:
    host = [
        INTEL,
        CpuidEntry(0xA, 0, 0, ONES, ONES, ONES, ONES),
        CpuidEntry(6, 0, 0, ONES, 0, 8, 0),
    ]
    entries = cpuid.fix_up(host, 0, 1, True)
    assert one(entries, 0xA)[3:] == (0, 0, 0, 0)
    assert one(entries, 6).eax & 0x2 == 0
    assert one(entries, 6).ecx == 0


def test_intel_caches_are_shared_as_the_topology_says() -> None:
    host = [INTEL, CpuidEntry(4, 0, 1, 0x21, 0, 0, 0), CpuidEntry(4, 3, 1, 0x63, 0, 0, 0)]
    entries = cpuid.fix_up(host, 0, 4, True)
    assert one(entries, 4, 0).eax >> 14 & 0xFFF == 0
    assert one(entries, 4, 3).eax >> 14 & 0xFFF == 3
    assert one(entries, 4, 3).eax >> 26 == 3


def test_amd_topology_and_only_on_amd() -> None:
    leaves = [
        CpuidEntry(0x8000_0001, 0, 0, 0, 0, 1 << 22 | 2, 0),
        CpuidEntry(0x8000_0008, 0, 0, 0, 0, 0xF0FF, 0),
        CpuidEntry(0x8000_001E, 0, 0, 9, 9, 9, 0),
    ]
    amd = cpuid.fix_up([AMD, *leaves], 3, 4, True)
    assert one(amd, 0x8000_0001).ecx == 1 << 22
    assert one(amd, 0x8000_0008).ecx == 2 << 12 | 3
    assert one(amd, 0x8000_001E)[3:6] == (3, 3, 0)
    assert cpuid.fix_up([INTEL, *leaves], 3, 4, True)[1:] == leaves


def test_64_bit_entry_state() -> None:
    sregs, regs = ffi.new("struct kvm_sregs *"), ffi.new("struct kvm_regs *")
    entry = EntryPoint(0x100_0000, is_pvh=False)
    cpu.set_sregs(sregs, entry)
    cpu.set_regs(regs, entry)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.selector, sregs.cs.limit) == (1, 0, 0x10, ONES)
    assert (sregs.ds.type, sregs.ds.s, sregs.ds.present) == (3, 1, 1)
    assert (sregs.tr.type, sregs.tr.s) == (0xB, 0)
    assert sregs.cr0 & (1 << 31 | 1) == 1 << 31 | 1
    assert sregs.cr4 & 1 << 5
    assert sregs.efer == 1 << 8 | 1 << 10
    assert sregs.cr3 == layout.PML4_GPA
    assert (regs.rip, regs.rsi, regs.rsp) == (0x100_0000, layout.ZERO_PAGE_GPA, layout.STACK_GPA)
    assert regs.rflags == 2


def test_pvh_entry_state() -> None:
    sregs, regs = ffi.new("struct kvm_sregs *"), ffi.new("struct kvm_regs *")
    entry = EntryPoint(0x100_0000, is_pvh=True)
    cpu.set_sregs(sregs, entry)
    cpu.set_regs(regs, entry)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (sregs.cs.l, sregs.cs.db) == (0, 1)
    assert sregs.tr.limit == 0x67
    assert regs.rbx == layout.PVH_START_INFO_GPA


@pytest.mark.parametrize("is_pvh", [False, True])
def test_selectors_name_what_the_gdt_holds(is_pvh: bool) -> None:
    entry = EntryPoint(0x100_0000, is_pvh)
    sregs = ffi.new("struct kvm_sregs *")
    cpu.set_sregs(sregs, entry)
    # __BOOT_CS, and __BOOT_DS in every data segment: what the 64-bit boot protocol asks.
    assert sregs.cs.selector == 0x10
    data = (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss)
    assert {segment.selector for segment in data} == {0x18}
    with GuestMemory(1 << 20) as memory:
        cpu.write_tables(memory, entry)
        for segment in (sregs.cs, *data, sregs.tr):
            assert segment.selector + 7 <= sregs.gdt.limit
            descriptor = int.from_bytes(memory.read(sregs.gdt.base + segment.selector, 8), "little")
            assert descriptor >> 40 & 0xF == segment.type
            assert descriptor >> 44 & 1 == segment.s
            assert descriptor >> 53 & 1 == segment.l
    assert sregs.gdt.base + sregs.gdt.limit < sregs.idt.base


def test_page_tables_map_the_first_gib_one_to_one() -> None:
    with GuestMemory(1 << 20) as memory:
        cpu.write_tables(memory, EntryPoint(0, is_pvh=False))

        def entry(table_gpa: int, index: int) -> int:
            return int.from_bytes(memory.read(table_gpa + 8 * index, 8), "little")

        for gpa in (0, 0x1234_5678, (1 << 30) - 1):
            pml4e = entry(layout.PML4_GPA, gpa >> 39)
            pdpte = entry(pml4e & ~0xFFF, gpa >> 30)
            pde = entry(pdpte & ~0xFFF, gpa >> 21)
            assert pde & 0x83 == 0x83
            assert pde & ~0x1F_FFFF | gpa & 0x1F_FFFF == gpa


def test_lapic_lint_lines() -> None:
    lapic = ffi.new("struct kvm_lapic_state *")
    lapic.regs[0x350:0x354] = [0, 0, 1, 0]  # masked, as after a reset
    cpu.set_lapic(lapic)
    assert list(lapic.regs[0x350:0x354]) == [0, 7, 1, 0]
    assert list(lapic.regs[0x360:0x364]) == [0, 4, 0, 0]
