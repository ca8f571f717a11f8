"""CPUID as the guest shall see it: what the host supports, with the topology made true.

Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst.
One thread a core, one package; the APIC id is the vCPU id.
"""

from __future__ import annotations

from collections.abc import Sequence

from voidbox.named_tuple import NamedTuple

_EBX_CLFLUSH_8_QUADWORDS = 8 << 8
_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
_ECX_EPB = 1 << 3
_EAX_TURBO_AND_HWP = 0x2 | 0x3F80
_LEVEL_SMT, _LEVEL_CORE = 1, 2
_AMD_CMP_LEGACY = 1 << 1
_AMD_TOPOEXT = 1 << 22
_INTEL_TOPOLOGY_LEAVES = (0xB, 0x1F)
_EBX_AUTHENTIC_AMD = int.from_bytes(b"Auth", "little")
_EBX_HYGON_GENUINE = int.from_bytes(b"Hygo", "little")
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1


class CpuidEntry(NamedTuple):
    """struct kvm_cpuid_entry2; `index` there is `subleaf` here."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def fix_up(
    supported: Sequence[CpuidEntry], apic_id: int, cpus: int, has_tsc_deadline: bool
) -> list[CpuidEntry]:
    """Return the CPUID of one vCPU.

    Args:
        supported: KVM_GET_SUPPORTED_CPUID.
        apic_id: this vCPU's id, 0 to cpus - 1.
        has_tsc_deadline: KVM_CAP_TSC_DEADLINE_TIMER; CPUID leaves it for the VMM to say.
    """
    id_bits = (cpus - 1).bit_length()
    entries: list[CpuidEntry] = []
    topology_leaves: set[int] = set()
    vendor_ebx = next((entry.ebx for entry in supported if entry.function == 0), 0)
    is_amd = vendor_ebx in (_EBX_AUTHENTIC_AMD, _EBX_HYGON_GENUINE)
    for entry in supported:
        if entry.function in _INTEL_TOPOLOGY_LEAVES:
            topology_leaves.add(entry.function)
            continue
        fixed = _fix_common(entry, apic_id, cpus, has_tsc_deadline)
        entries.append(_fix_amd(fixed, apic_id, cpus, id_bits) if is_amd else fixed)
    for leaf in sorted(topology_leaves):
        entries += _topology(leaf, apic_id, cpus, id_bits)
    return entries


def _topology(leaf: int, apic_id: int, cpus: int, id_bits: int) -> list[CpuidEntry]:
    """Leaves 0xB and 0x1F: a level of 1 thread, a level of `cpus` cores, the end."""
    flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return [
        CpuidEntry(leaf, 0, flags, 0, 1, _LEVEL_SMT << 8, apic_id),
        CpuidEntry(leaf, 1, flags, id_bits, cpus, _LEVEL_CORE << 8 | 1, apic_id),
        CpuidEntry(leaf, 2, flags, 0, 0, 2, apic_id),
    ]


def _fix_common(entry: CpuidEntry, apic_id: int, cpus: int, has_tsc_deadline: bool) -> CpuidEntry:
    function, eax, ebx, ecx, edx = entry.function, entry.eax, entry.ebx, entry.ecx, entry.edx
    if function == 1:
        ebx = ebx & 0xFF | _EBX_CLFLUSH_8_QUADWORDS | cpus << 16 | apic_id << 24
        ecx |= _ECX_HYPERVISOR | (_ECX_TSC_DEADLINE if has_tsc_deadline else 0)
        edx = edx | _EDX_HTT if cpus > 1 else edx & ~_EDX_HTT
    elif function == 4 and eax & 0x1F:
        # Deterministic caches: levels 1 and 2 are a core's own, level 3 is everyone's.
        sharing = cpus - 1 if eax >> 5 & 7 >= 3 else 0
        eax = eax & 0x3FFF | sharing << 14 | cpus - 1 << 26
    elif function == 6:
        eax &= ~_EAX_TURBO_AND_HWP
        ecx &= ~_ECX_EPB
    elif function == 0xA:
        eax = ebx = ecx = edx = 0  # no performance counters
    return entry._replace(eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def _fix_amd(entry: CpuidEntry, apic_id: int, cpus: int, id_bits: int) -> CpuidEntry:
    function, eax, ebx, ecx = entry.function, entry.eax, entry.ebx, entry.ecx
    if function == 0x8000_0001:
        # One thread a core: TOPOEXT describes it where the host has it, CMP_LEGACY elsewhere.
        if ecx & _AMD_TOPOEXT or cpus == 1:
            ecx &= ~_AMD_CMP_LEGACY
    elif function == 0x8000_0008:
        ecx = ecx & ~0xF0FF | id_bits << 12 | cpus - 1
    elif function == 0x8000_001D and eax & 0x1F:
        sharing = cpus - 1 if eax >> 5 & 7 >= 3 else 0
        eax = eax & ~(0xFFF << 14) | sharing << 14
    elif function == 0x8000_001E:
        eax, ebx, ecx = apic_id, apic_id & 0xFF, 0
    return entry._replace(eax=eax, ebx=ebx, ecx=ecx)
