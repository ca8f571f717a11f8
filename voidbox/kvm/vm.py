"""One VM: memory slots, the in-kernel interrupt controllers, eventfds, the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voidbox.errors import HostError
from voidbox.kvm import api
from voidbox.kvm._abi import ffi
from voidbox.kvm.handle import Handle, _ioctl
from voidbox.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from voidbox.kvm.kvm import Kvm


class Vm(Handle):
    """A VM's descriptor. Thread: any; every method is one ioctl.

    The maps given to `set_user_memory_region` must outlive it.
    """

    def __init__(self, fd: int, kvm: Kvm) -> None:
        super().__init__(fd)
        self._vcpu_mmap_bytes = kvm.get_vcpu_mmap_size()
        # One structure per line and level, made once: IRQ_LINE is on the interrupt path.
        self._irq_levels: dict[tuple[int, bool], Any] = {}

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU; on x86 the id is also the initial APIC id."""
        fd = self.ioctl("KVM_CREATE_VCPU", api.KVM_CREATE_VCPU, vcpu_id)
        return Vcpu(fd, vcpu_id, self._vcpu_mmap_bytes)

    def set_user_memory_region(
        self, slot: int, gpa: int, memory: mmap.mmap | None, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: the whole of `memory` at `gpa`, or None to delete `slot`."""
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.flags = flags
        region.guest_phys_addr = gpa
        if memory is not None:
            region.memory_size = len(memory)
            region.userspace_addr = host_address(memory)
        self.ioctl("KVM_SET_USER_MEMORY_REGION", api.KVM_SET_USER_MEMORY_REGION, region)

    def set_tss_addr(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that no slot or device uses (Intel)."""
        self.ioctl("KVM_SET_TSS_ADDR", api.KVM_SET_TSS_ADDR, gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page below 4 GiB, before any vCPU exists (Intel)."""
        self.ioctl(
            "KVM_SET_IDENTITY_MAP_ADDR",
            api.KVM_SET_IDENTITY_MAP_ADDR,
            ffi.new("uint64_t *", gpa),
        )

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: two PICs, an IOAPIC with 24 lines, a local APIC per vCPU."""
        self.ioctl("KVM_CREATE_IRQCHIP", api.KVM_CREATE_IRQCHIP)

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2; KVM_PIT_SPEAKER_DUMMY keeps port 0x61 in the kernel."""
        config = ffi.new("struct kvm_pit_config *")
        config.flags = flags
        self.ioctl("KVM_CREATE_PIT2", api.KVM_CREATE_PIT2, config)

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE: set the level of an interrupt line."""
        argument = self._irq_levels.get((gsi, level))
        if argument is None:
            argument = ffi.new("struct kvm_irq_level *")
            argument.irq = gsi
            argument.level = level
            self._irq_levels[gsi, level] = argument
        self.ioctl("KVM_IRQ_LINE", api.KVM_IRQ_LINE, argument)

    def pulser(self, gsi: int) -> Callable[[], None]:
        """Return a function that raises and lowers a line: two KVM_IRQ_LINE, spelled out.

        Each interrupt of a virtio device calls it.
        """
        request = api.KVM_IRQ_LINE
        up = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": 1})
        down = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": 0})

        def pulse() -> None:
            fd = self.fd  # -1 once it is closed: its number may be somebody else's then
            if _ioctl(fd, request, up) < 0 or _ioctl(fd, request, down) < 0:
                raise HostError.from_errno("KVM_IRQ_LINE", ffi.errno)

        return pulse

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resample_fd: int = 0) -> None:
        """KVM_IRQFD: each write to the eventfd `fd` pulses line `gsi`."""
        argument = ffi.new("struct kvm_irqfd *")
        argument.fd = fd
        argument.gsi = gsi
        argument.flags = flags
        argument.resamplefd = resample_fd
        self.ioctl("KVM_IRQFD", api.KVM_IRQFD, argument)

    def ioeventfd(
        self, fd: int, address: int, width: int, datamatch: int | None = None, flags: int = 0
    ) -> None:
        """KVM_IOEVENTFD: a guest's write of `width` bytes signals `fd` instead of exiting.

        Args:
            address: a guest-physical address, or a port with KVM_IOEVENTFD_FLAG_PIO.
            datamatch: signal only for this value; None for any.
            flags: KVM_IOEVENTFD_FLAG_DEASSIGN with the same arguments removes it.
        """
        argument = ffi.new("struct kvm_ioeventfd *")
        argument.fd = fd
        argument.addr = address
        argument.len = width
        if datamatch is not None:
            argument.datamatch = datamatch
            flags |= api.KVM_IOEVENTFD_FLAG_DATAMATCH
        argument.flags = flags
        self.ioctl("KVM_IOEVENTFD", api.KVM_IOEVENTFD, argument)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on this VM: some answers depend on it."""
        return self.ioctl("KVM_CHECK_EXTENSION", api.KVM_CHECK_EXTENSION, capability)

    def get_irqchip(self, chip_id: int) -> Any:
        """KVM_GET_IRQCHIP: `struct kvm_irqchip *` of one of KVM_IRQCHIP_*."""
        chip = ffi.new("struct kvm_irqchip *")
        chip.chip_id = chip_id
        self.ioctl("KVM_GET_IRQCHIP", api.KVM_GET_IRQCHIP, chip)
        return chip

    def set_irqchip(self, chip: Any) -> None:
        """KVM_SET_IRQCHIP."""
        self.ioctl("KVM_SET_IRQCHIP", api.KVM_SET_IRQCHIP, chip)

    def get_pit2(self) -> Any:
        """KVM_GET_PIT2: `struct kvm_pit_state2 *`."""
        return self.get("KVM_GET_PIT2", api.KVM_GET_PIT2, "struct kvm_pit_state2 *")

    def set_pit2(self, pit: Any) -> None:
        """KVM_SET_PIT2; its timers begin to run."""
        self.ioctl("KVM_SET_PIT2", api.KVM_SET_PIT2, pit)

    def register_coalesced_mmio(self, address: int, length: int, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes here are queued in a ring and do not exit."""
        self.ioctl(
            "KVM_REGISTER_COALESCED_MMIO",
            api.KVM_REGISTER_COALESCED_MMIO,
            ffi.new("struct kvm_coalesced_mmio_zone *", (address, length, pio)),
        )

    def unregister_coalesced_mmio(self, address: int, length: int, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: undo a registration."""
        self.ioctl(
            "KVM_UNREGISTER_COALESCED_MMIO",
            api.KVM_UNREGISTER_COALESCED_MMIO,
            ffi.new("struct kvm_coalesced_mmio_zone *", (address, length, pio)),
        )

    def get_clock(self) -> Any:
        """KVM_GET_CLOCK: `struct kvm_clock_data *`, nanoseconds of kvmclock."""
        return self.get("KVM_GET_CLOCK", api.KVM_GET_CLOCK, "struct kvm_clock_data *")

    def set_clock(self, clock: Any) -> None:
        """KVM_SET_CLOCK."""
        self.ioctl("KVM_SET_CLOCK", api.KVM_SET_CLOCK, clock)


def host_address(memory: mmap.mmap) -> int:
    """Return the host virtual address of a map's first byte."""
    with ffi.from_buffer(memory) as buffer:
        return int(ffi.cast("uintptr_t", buffer))
