"""What KVM has of a machine: a VM with interrupt controllers, memory and vCPUs, and no more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from voidbox.boot import layout
from voidbox.devices.bus import Bus
from voidbox.kvm import api
from voidbox.kvm.kvm import Kvm
from voidbox.kvm.vcpu import Vcpu
from voidbox.memory import GuestMemory
from voidbox.vmm.coalesced import CoalescedRing


class Hardware:
    """The VM, made in the order that KVM wants. Thread: the caller's, where nothing else is said.

    Args:
        memory: guest RAM; it must stay mapped for as long as the VM lives.
        resources: has what is made here closed.
    Raises:
        HostError: an ioctl failed.
    """

    def __init__(
        self, kvm: Kvm, memory: GuestMemory, cpus: int, resources: contextlib.ExitStack
    ) -> None:
        self.kvm = kvm
        self.memory = memory
        self.vm = vm = resources.enter_context(contextlib.closing(kvm.create_vm()))
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        vm.set_tss_addr(layout.KVM_TSS_GPA)
        vm.create_irqchip()
        vm.create_pit2(api.KVM_PIT_SPEAKER_DUMMY)
        for slot, region in enumerate(memory):
            vm.set_user_memory_region(slot, region.gpa, region.map)
        self.vcpus: list[Vcpu] = [
            resources.enter_context(contextlib.closing(vm.create_vcpu(index)))
            for index in range(cpus)
        ]
        self.has_readonly_memory = bool(kvm.check_extension(api.KVM_CAP_READONLY_MEM))

    def coalesce(
        self, writes: Iterable[tuple[int, int]], ports: Bus, mmio: Bus
    ) -> CoalescedRing | None:
        """Have KVM queue port writes instead of leaving the guest; None where it cannot.

        Args:
            writes: port and width in bytes of each.
        """
        page_offset = self.kvm.check_extension(api.KVM_CAP_COALESCED_MMIO)
        if not page_offset or not self.kvm.check_extension(api.KVM_CAP_COALESCED_PIO):
            return None
        for port, width in writes:
            self.vm.register_coalesced_mmio(port, width, pio=True)
        return CoalescedRing(self.vcpus[0].coalesced_ring(page_offset), ports, mmio)

    def pulse(self, gsi: int) -> None:
        """Raise an interrupt line, and lower it. Thread: any, while the VM lives."""
        self.vm.pulser(gsi)()
