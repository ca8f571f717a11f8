"""All vCPUs of a machine: their first state, and their threads together."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TypeVar

from voidbox.boot import cpu, cpuid, loader
from voidbox.kvm import api
from voidbox.kvm._abi import ffi
from voidbox.kvm.kvm import Kvm
from voidbox.kvm.vcpu import Vcpu
from voidbox.vmm.vcpu_thread import VcpuThread

_Key = TypeVar("_Key", str, int)


_PAUSED, _HELD = "paused", "held"


class Vcpus:
    """The threads of all vCPUs. Thread: any, but for `start`, which is the caller's."""

    def __init__(self, threads: Iterable[VcpuThread] = ()) -> None:
        self.threads = tuple(threads)
        self._pause_lock = threading.Lock()  # one of the following at a time
        self._halts: set[str] = set()  # why the vCPUs stand still

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: the host gives no thread.
        """
        for thread in self.threads:
            thread.start()

    def kick(self) -> None:
        """End every vCPU's run for good, paused or not. Never blocks."""
        for thread in self.threads:
            thread.kick()

    def join(self) -> None:
        """Wait for the end of every thread that was started."""
        for thread in self.threads:
            thread.join()

    @property
    def is_paused(self) -> bool:
        """Whether they were paused."""
        return _PAUSED in self._halts

    def pause(self) -> None:
        """Halt every vCPU between two instructions; returns when all have halted. Idempotent."""
        self._halt(_PAUSED)

    def resume(self) -> None:
        """Let them go on, unless they are held. Idempotent."""
        self._go_on(_PAUSED)

    def hold(self) -> None:
        """Halt them as well, paused or not, until let_go(): they have used their time."""
        self._halt(_HELD)

    def let_go(self) -> None:
        """Let them go on, unless they are paused. Idempotent."""
        self._go_on(_HELD)

    def _halt(self, why: str) -> None:
        with self._pause_lock:
            for thread in self.threads:  # all at once, then wait for each
                thread.request_pause()
            for thread in self.threads:
                thread.wait_paused()
            self._halts.add(why)

    def _go_on(self, why: str) -> None:
        with self._pause_lock:
            self._halts.discard(why)
            if not self._halts:
                for thread in self.threads:
                    thread.resume()

    def cpu_ns(self) -> int:
        """Return the host's CPU time of all of them, in nanoseconds."""
        return sum(thread.cpu_ns() for thread in self.threads)

    def exits(self) -> dict[str, int]:
        """Return how often each KVM_EXIT_* has come."""
        return _sum(
            (api.EXIT_NAMES.get(reason, str(reason)), count)
            for thread in self.threads
            for reason, count in list(thread.exits.items())
        )

    def port_exits(self) -> dict[int, int]:
        """Return how often each port has caused a KVM_EXIT_IO."""
        return _sum(item for thread in self.threads for item in list(thread.port_exits.items()))


def _sum(items: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    sums: dict[_Key, int] = {}
    for key, count in items:
        sums[key] = sums.get(key, 0) + count
    return sums


def cpuids(kvm: Kvm, cpus: int) -> list[list[cpuid.CpuidEntry]]:
    """Return the CPUID of each vCPU of a machine with so many, on this host."""
    host = kvm.get_supported_cpuid()
    supported = [
        cpuid.CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in host.entries[0 : host.nent]
    ]
    has_tsc_deadline = bool(kvm.check_extension(api.KVM_CAP_TSC_DEADLINE_TIMER))
    return [cpuid.fix_up(supported, index, cpus, has_tsc_deadline) for index in range(cpus)]


def set_up(kvm: Kvm, vcpus: list[Vcpu], entry: loader.EntryPoint) -> None:
    """Give every vCPU its CPUID, and the first one the state of a boot loader's hand-over.

    The others wait for the guest's INIT and SIPI, which the in-kernel APIC handles.
    """
    for vcpu, entries in zip(vcpus, cpuids(kvm, len(vcpus)), strict=True):
        fixed = ffi.new(
            "struct kvm_cpuid2 *",
            {"nent": len(entries), "entries": entries},
        )
        vcpu.set_cpuid2(fixed)
        vcpu.set_msrs(cpu.BOOT_MSRS)
        fpu = vcpu.get_fpu()
        fpu.fcw, fpu.mxcsr = cpu.FPU_CONTROL_WORD, cpu.MXCSR_DEFAULT
        vcpu.set_fpu(fpu)
        lapic = vcpu.get_lapic()
        cpu.set_lapic(lapic)
        vcpu.set_lapic(lapic)
    first = vcpus[0]
    sregs, regs = first.get_sregs(), first.get_regs()
    cpu.set_sregs(sregs, entry)
    cpu.set_regs(regs, entry)
    first.set_sregs(sregs)
    first.set_regs(regs)
