"""The state of a VM that KVM keeps: read from a paused one, and set in a new one.

Documentation/virt/kvm/api.rst; the orders are those that QEMU's target/i386/kvm has found to be
right. Reading: a timer that expires between two reads must be found in the later one, so the local
APIC comes after the MSRs (among them the deadline) and the events after all else. Setting: CPUID
first, for KVM judges the rest by it; what starts a timer or a clock last.

    clock ─► each vCPU: MP state, registers, FPU, TSC, MSRs, local APIC, events ─► PICs, IOAPIC, PIT

Every vCPU is paused, none has an access to be completed, and nothing raises an interrupt line from
the first read to the last: it would land in a controller that was read already.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from voidbox.errors import ConfigError, HostError
from voidbox.kvm import api
from voidbox.kvm._abi import ffi
from voidbox.kvm.kvm import Kvm
from voidbox.kvm.vcpu import Vcpu
from voidbox.kvm.vm import Vm
from voidbox.named_tuple import NamedTuple

MSR_IA32_TSC = 0x10
MSR_IA32_TSC_DEADLINE = 0x6E0
_EFER_SVME = 1 << 12
_CR4_VMXE = 1 << 13
_U64 = (1 << 64) - 1
# QEMU's and Firecracker's: NTP may call this much the same frequency.
TSC_TOLERANCE_PPM = 250
_READING_CYCLES_MAX = 1 << 36  # from the clock's reading to the last vCPU's: under half a minute
_XSAVE_BYTES = 4096  # what struct kvm_xsave holds

# KVM's index list lacks them, and the guest compares them when a CPU comes up.
_MTRRS = (0x2FF, *range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270))
# Not kept: Hyper-V's, which no guest of ours has; those of performance counters, which CPUID
# denies and some kernels then refuse; VMX capabilities and MCG_CAP's relatives, which are the
# host's; the two that are set on their own, at their time.
_LEFT_OUT = (
    range(0x4000_0000, 0x4000_0200),
    range(0xC1, 0xC9),
    range(0x186, 0x18E),
    range(0x309, 0x30E),
    range(0x345, 0x346),
    range(0x38D, 0x391),
    range(0x3F1, 0x3F2),
    range(0x480, 0x492),
    range(0x4C1, 0x4C9),
    range(0x600, 0x601),
    range(0x17B, 0x17C),
    range(0xC001_0000, 0xC001_0008),
    range(0xC001_0200, 0xC001_020C),
    range(0xC000_0300, 0xC000_0304),
    range(MSR_IA32_TSC, MSR_IA32_TSC + 1),
    range(MSR_IA32_TSC_DEADLINE, MSR_IA32_TSC_DEADLINE + 1),
)


# struct kvm_cpuid_entry2 { __u32 function, index, flags, eax, ebx, ecx, edx; __u32 padding[3]; };
_CPUID_ENTRY = struct.Struct("<7I12x")
# struct kvm_msr_entry { __u32 index; __u32 reserved; __u64 data; };
_MSR_ENTRY = struct.Struct("<I4xQ")
assert _CPUID_ENTRY.size == ffi.sizeof("struct kvm_cpuid_entry2")
assert _MSR_ENTRY.size == ffi.sizeof("struct kvm_msr_entry")


class VcpuState(NamedTuple):
    """One vCPU. Structures are as KVM has them; their layout is the kernel's ABI.

    Attributes:
        cpuid: what it was given: see cpuid_values().
        tsc_khz: the frequency of its TSC.
        tsc: its TSC, at the moment that VmState.clock_ns is of.
        tsc_offset: guest TSC - host TSC, to compare with the other vCPUs'; None if not known.
        tsc_deadline: the TSC at which its timer is due, or 0.
        msrs: all others: see msr_values().
    """

    cpuid: bytes
    mp_state: Annotated[int, 32]
    regs: bytes
    sregs: bytes
    xsave: bytes
    xcrs: bytes
    debugregs: bytes
    lapic: bytes
    events: bytes
    tsc_khz: int
    tsc: int
    tsc_offset: int | None
    tsc_deadline: int
    msrs: bytes


class VmState(NamedTuple):
    """What the vCPUs share.

    Attributes:
        clock_ns: kvmclock.
        irqchips: both PICs and the IOAPIC, struct kvm_irqchip each.
        pit: struct kvm_pit_state2.
    """

    clock_ns: int
    irqchips: tuple[bytes, ...]
    pit: bytes
    vcpus: tuple[VcpuState, ...]


# Reading.


def read(vm: Vm, vcpus: Sequence[Vcpu], msrs: Sequence[int]) -> VmState:
    """Return the state of a paused VM.

    Args:
        msrs: saved_msrs().
    Raises:
        ConfigError: the guest does what cannot be kept: it runs virtual machines of its own.
        HostError: an ioctl failed.
    """
    if vm.check_extension(api.KVM_CAP_XSAVE2) > _XSAVE_BYTES:
        raise HostError("the guest has processor state (AMX) that snapshots do not keep")
    clock = vm.get_clock()
    host_tsc = int(clock.host_tsc) if clock.flags & api.KVM_CLOCK_HOST_TSC else None
    states = tuple(_read_vcpu(vcpu, msrs, host_tsc) for vcpu in vcpus)
    chips = tuple(_bytes(vm.get_irqchip(chip)) for chip in range(api.KVM_IRQCHIP_IOAPIC + 1))
    return VmState(int(clock.clock), chips, _bytes(vm.get_pit2()), states)


def saved_msrs(kvm: Kvm) -> list[int]:
    """Return which MSRs belong to a snapshot, of those that KVM lists, and the MTRRs."""
    wanted = dict.fromkeys((*kvm.get_msr_index_list(), *_MTRRS))
    return [index for index in wanted if not any(index in left for left in _LEFT_OUT)]


def _read_vcpu(vcpu: Vcpu, msrs: Sequence[int], host_tsc: int | None) -> VcpuState:
    mp_state = vcpu.get_mp_state()  # first: it lets the APIC take INIT and SIPI, which move CS:RIP
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    if sregs.efer & _EFER_SVME or sregs.cr4 & _CR4_VMXE:
        raise ConfigError(
            "the guest uses virtualisation of its own, which a snapshot cannot keep: "
            "end its virtual machines and unload its kvm modules first"
        )
    xsave, xcrs, debugregs = vcpu.get_xsave(), vcpu.get_xcrs(), vcpu.get_debugregs()
    khz = vcpu.get_tsc_khz()
    offset = vcpu.get_tsc_offset()
    values, _refused = vcpu.read_msrs((*msrs, MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE))
    lapic = vcpu.get_lapic()  # after the deadline: one that expires now is pending there
    events = vcpu.get_vcpu_events()
    tsc = values.pop(MSR_IA32_TSC)
    if host_tsc is not None and offset is not None:
        # Of one instant for all vCPUs; the MSRs were read one after the other. Where KVM scales
        # the TSC the sum means nothing.
        at_clock = (host_tsc + offset) & _U64
        if (tsc - at_clock) & _U64 < _READING_CYCLES_MAX:
            tsc = at_clock
    return VcpuState(
        cpuid=_pack_cpuid(vcpu.cpuid),
        mp_state=mp_state,
        regs=_bytes(regs),
        sregs=_bytes(sregs),
        xsave=_bytes(xsave),
        xcrs=_bytes(xcrs),
        debugregs=_bytes(debugregs),
        lapic=_bytes(lapic),
        events=_bytes(events),
        tsc_khz=khz,
        tsc=tsc,
        tsc_offset=offset,
        tsc_deadline=values.pop(MSR_IA32_TSC_DEADLINE, 0),
        msrs=b"".join(_MSR_ENTRY.pack(index, value) for index, value in values.items()),
    )


def _pack_cpuid(cpuid: Any) -> bytes:
    return bytes(ffi.buffer(cpuid.entries, cpuid.nent * _CPUID_ENTRY.size))


def cpuid_values(packed: bytes) -> list[tuple[int, ...]]:
    """Return function, index, flags, eax, ebx, ecx and edx of each entry of VcpuState.cpuid.

    Raises:
        ConfigError: it is damaged.
    """
    return list(_unpack(_CPUID_ENTRY, packed, "CPUID"))


def msr_values(packed: bytes) -> list[tuple[int, int]]:
    """Return (index, value) of each MSR of VcpuState.msrs.

    Raises:
        ConfigError: it is damaged.
    """
    return [(index, value) for index, value in _unpack(_MSR_ENTRY, packed, "MSRs")]


def _unpack(entry: struct.Struct, packed: bytes, what: str) -> Iterator[tuple[int, ...]]:
    if len(packed) % entry.size:
        raise ConfigError(f"the snapshot is damaged: its {what} are cut short")
    return entry.iter_unpack(packed)


# Setting.


def write(vm: Vm, vcpus: Sequence[Vcpu], state: VmState) -> None:
    """Give a new VM, of which no vCPU has run, the state of a saved one; time goes on from there.

    Raises:
        ConfigError: this host's KVM refuses a part of it.
        HostError: an ioctl failed.
    """
    for vcpu, saved in zip(vcpus, state.vcpus, strict=True):
        _write_vcpu(vcpu, saved)
    _write_time(vcpus, state.vcpus)
    for vcpu, saved in zip(vcpus, state.vcpus, strict=True):
        # After the registers, which clear exceptions that are pending.
        vcpu.set_vcpu_events(_struct("struct kvm_vcpu_events *", saved.events))
        vcpu.set_mp_state(saved.mp_state)
    vm.set_pit2(_struct("struct kvm_pit_state2 *", state.pit))
    for chip in state.irqchips:
        vm.set_irqchip(_struct("struct kvm_irqchip *", chip))
    # No KVM_CLOCK_REALTIME: the guest's monotonic clock stands still while it is away, and its
    # timers do not all expire at once.
    vm.set_clock(ffi.new("struct kvm_clock_data *", {"clock": state.clock_ns}))
    for vcpu in vcpus:
        with contextlib.suppress(HostError):  # the guest does not use kvmclock
            vcpu.kvmclock_ctrl()


def _write_vcpu(vcpu: Vcpu, state: VcpuState) -> None:
    """Set all that starts no clock."""
    entries = cpuid_values(state.cpuid)
    vcpu.set_cpuid2(ffi.new("struct kvm_cpuid2 *", {"nent": len(entries), "entries": entries}))
    if not is_same_frequency(vcpu.get_tsc_khz(), state.tsc_khz):
        vcpu.set_tsc_khz(state.tsc_khz)
    vcpu.set_regs(_struct("struct kvm_regs *", state.regs))
    vcpu.set_sregs(_struct("struct kvm_sregs *", state.sregs))
    vcpu.set_xsave(_struct("struct kvm_xsave *", state.xsave))
    xcrs = _struct("struct kvm_xcrs *", state.xcrs)
    if xcrs.nr_xcrs:  # a host without XSAVE has none, and KVM refuses to set none
        vcpu.set_xcrs(xcrs)
    vcpu.set_debugregs(_struct("struct kvm_debugregs *", state.debugregs))
    vcpu.set_lapic(_struct("struct kvm_lapic_state *", state.lapic))  # after apic_base, in sregs
    try:
        vcpu.set_msrs(msr_values(state.msrs))
    except HostError as error:
        raise ConfigError(f"this host cannot continue the snapshot: {error}") from error


def _write_time(vcpus: Sequence[Vcpu], states: Sequence[VcpuState]) -> None:
    """Set the TSCs, in step as they were, and then the timers that are due by them."""
    for vcpu, state in zip(vcpus, states, strict=True):
        vcpu.set_msrs([(MSR_IA32_TSC, state.tsc)])
    first = _catch_up(vcpus[0], states[0].tsc)
    if first is not None and states[0].tsc_offset is not None:
        # KVM takes TSCs that are set within a second for the same, which is but a guess.
        for vcpu, state in zip(vcpus[1:], states[1:], strict=True):
            if state.tsc_offset is not None:
                apart = state.tsc_offset - states[0].tsc_offset
                vcpu.set_tsc_offset((first + apart) & _U64)
    for vcpu, state in zip(vcpus, states, strict=True):
        # After the local APIC's mode and the TSC: KVM drops a deadline that it has no timer for.
        vcpu.set_msrs([(MSR_IA32_TSC_DEADLINE, state.tsc_deadline)])


def _catch_up(vcpu: Vcpu, tsc: int) -> int | None:
    """Return a vCPU's TSC offset, by which its TSC is at least what it was set to.

    KVM takes a TSC that is set to within a second of what a new machine's is for that one, and
    ignores it: a guest that is as young would see its clock go back.
    """
    offset = vcpu.get_tsc_offset()
    values, _ = vcpu.read_msrs((MSR_IA32_TSC,))
    missing = tsc - values[MSR_IA32_TSC]
    if offset is None or missing <= 0:
        return offset
    offset = (offset + missing) & _U64
    vcpu.set_tsc_offset(offset)
    return offset


def is_same_frequency(khz: int, other_khz: int) -> bool:
    """Whether two TSC frequencies are the same but for how they were measured."""
    return abs(khz - other_khz) * 1_000_000 <= other_khz * TSC_TOLERANCE_PPM


def _bytes(structure: Any) -> bytes:
    return bytes(ffi.buffer(structure))


def _struct(ctype: str, data: bytes) -> Any:
    """Return a new structure with these bytes.

    Raises:
        ConfigError: they are not as many as it has.
    """
    structure = ffi.new(ctype)
    buffer = ffi.buffer(structure)
    if len(buffer) != len(data):
        raise ConfigError(f"the snapshot is damaged: {ctype[7:-2]} has {len(data)} bytes")
    buffer[:] = data
    return structure
