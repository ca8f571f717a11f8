"""Where virtio-mmio devices are put: each gets a page of registers, a line, and its eventfds.

guest writes QueueNotify ─► ioeventfd ─► event loop ─► MmioTransport.notify ─► device
device ─► MmioTransport.interrupt_queues ─► INTERRUPT_STATUS ─► KVM_IRQ_LINE, up and down

Where KVM can do it, registers are read from a page of memory that the guest cannot write, and
InterruptAck ends in the kernel: a kick costs no exit, and an interrupt none either. The
acknowledgement of used buffers goes to an eventfd that nobody reads. The bit stays set then, which
says "look at the rings" once too often at most; what is after a change of the configuration, whose
bit has to go, is queued in the coalesced ring.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Collection, Mapping
from functools import partial

from voidbox.boot import acpi, layout
from voidbox.devices.bus import Bus
from voidbox.errors import ConfigError, HostError
from voidbox.event_loop import EventLoop
from voidbox.kvm import api
from voidbox.kvm.vm import Vm
from voidbox.memory import GuestMemory
from voidbox.virtio.device import VirtioDevice
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.mmio_regs import (
    VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    MmioState,
)
from voidbox.vmm.coalesced import CoalescedRing

_REGISTER_BYTES = 4


class VirtioSlots:
    """The machine's virtio devices. Thread: the caller's, before the start and after the end.

    `close()` must come after the loop's stop(), before its close(), and before guest memory is
    unmapped.

    Args:
        count: how many there will be, at most.
        coalesced: where KVM can queue writes.
        has_readonly_memory: KVM_CAP_READONLY_MEM.
    """

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        bus: Bus,
        loop: EventLoop,
        count: int,
        coalesced: CoalescedRing | None = None,
        has_readonly_memory: bool = False,
    ) -> None:
        self._vm = vm
        self._memory = memory
        self._bus = bus
        self._loop = loop
        self._coalesced = coalesced
        self._ack_fd = _eventfd()  # of all devices: it is only written to
        self._pages = self._map_pages(count) if has_readonly_memory else None
        self._transports: list[MmioTransport] = []
        self._loops: list[EventLoop] = []  # each transport's
        self._eventfds: list[tuple[EventLoop, int]] = []
        self.acpi_devices: list[acpi.MmioDevice] = []

    def add(
        self,
        device: VirtioDevice,
        kick_fds: Mapping[int, int] | None = None,
        loop: EventLoop | None = None,
        state: MmioState | None = None,
    ) -> MmioTransport:
        """Put `device` into the next slot.

        Args:
            loop: the device's own, to which all said of the machine's applies.
            kick_fds: eventfds, by queue, of someone else who serves that queue: the host's kernel.
            state: what a snapshot has of this slot; the device goes on when the loop starts.
        Raises:
            ConfigError: all slots are taken, or the state is not of this device.
        """
        index = len(self._transports)
        gsi = layout.MMIO_FIRST_GSI + index
        if gsi > layout.MMIO_LAST_GSI:
            most = layout.MMIO_LAST_GSI - layout.MMIO_FIRST_GSI + 1
            raise ConfigError(f"a machine has room for {most} virtio devices: ask for fewer")
        gpa = layout.MMIO_DEVICES_GPA + index * layout.MMIO_DEVICE_BYTES
        loop = loop or self._loop

        page = self._page(index)
        if state is None:
            transport = MmioTransport(
                device,
                self._memory,
                self._vm.pulser(gsi),
                loop.call_soon,
                page,
                self._perform_writes,
            )
        else:
            transport = MmioTransport.from_state(
                state,
                device=device,
                memory=self._memory,
                pulse_irq=self._vm.pulser(gsi),
                loop_call_soon=loop.call_soon,
                page=page,
                perform_writes=self._perform_writes,
            )
        self._transports.append(transport)
        self._loops.append(loop)
        if self._coalesced is not None:
            ack_gpa = gpa + VIRTIO_MMIO_INTERRUPT_ACK
            # In this order: KVM asks who came first.
            self._vm.ioeventfd(self._ack_fd, ack_gpa, _REGISTER_BYTES, VIRTIO_MMIO_INT_VRING)
            self._vm.register_coalesced_mmio(ack_gpa, _REGISTER_BYTES)
        self._bus.attach(gpa, layout.MMIO_DEVICE_BYTES, transport)
        self.acpi_devices.append(acpi.MmioDevice(gpa, layout.MMIO_DEVICE_BYTES, gsi))
        for queue_idx in range(len(device.queue_max_sizes)):
            fd = (kick_fds or {}).get(queue_idx, -1)
            if fd < 0:
                fd = self._watched_eventfd(loop, transport, queue_idx)
            self._vm.ioeventfd(fd, gpa + VIRTIO_MMIO_QUEUE_NOTIFY, _REGISTER_BYTES, queue_idx)
        return transport

    def _map_pages(self, count: int) -> mmap.mmap:
        """Have the guest read the registers of all slots from memory; writes still exit.

        All at once: each change of a VM's memory waits for KVM's readers.
        """
        pages = mmap.mmap(-1, count * layout.MMIO_DEVICE_BYTES)
        slot = len(self._memory.regions)
        gpa = layout.MMIO_DEVICES_GPA
        self._vm.set_user_memory_region(slot, gpa, pages, api.KVM_MEM_READONLY)
        return pages  # it stays mapped there for as long as the VM lives

    def _page(self, index: int) -> memoryview | None:
        start = index * layout.MMIO_DEVICE_BYTES
        if self._pages is None or start >= len(self._pages):
            return None  # then each read exits
        return memoryview(self._pages)[start : start + layout.MMIO_DEVICE_BYTES]

    def _perform_writes(self) -> None:
        if self._coalesced is not None and self._coalesced.has_entries():
            self._coalesced.drain()

    def _watched_eventfd(self, loop: EventLoop, transport: MmioTransport, queue_idx: int) -> int:
        fd = _eventfd()
        self._eventfds.append((loop, fd))
        # Each kick is an edge, so that nobody has to read the eventfd.
        kicked = partial(transport.notify, queue_idx)
        loop.watch(fd, select.EPOLLIN | select.EPOLLET, kicked)
        return fd

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self._transports)

    def pause(self, timeout_s: float) -> None:
        """Have every device leave the rings and guest memory alone. Thread: any but a loop.

        Raises:
            HostError: one is busy, or its loop; all go on.
        """
        try:
            for loop in dict.fromkeys(self._loops):
                loop.call(partial(self._pause_those_of, loop), timeout_s)
        except BaseException:
            self.resume()
            raise

    def _pause_those_of(self, loop: EventLoop) -> None:
        for each, transport in zip(self._loops, self._transports, strict=True):
            if each is loop:
                transport.pause()

    def resume(self, but: Collection[EventLoop] = ()) -> None:
        """Have the devices go on, but for those of some loops. Idempotent. Thread: any."""
        for loop, transport in zip(self._loops, self._transports, strict=True):
            if loop not in but:
                loop.call_soon(transport.resume)

    def states(self) -> tuple[MmioState, ...]:
        """Return what a snapshot needs of each slot, in order. All are paused. Thread: any.

        Raises:
            HostError: a device is at work all the same.
        """
        return tuple(transport.state() for transport in self._transports)

    def close(self) -> None:
        """Let go of the queues and close the eventfds. Idempotent."""
        self._loops.clear()
        while self._transports:
            self._transports.pop().close()
        while self._eventfds:
            loop, fd = self._eventfds.pop()
            loop.unwatch(fd)
            os.close(fd)
        if self._ack_fd >= 0:
            os.close(self._ack_fd)
            self._ack_fd = -1


def _eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise HostError.from_errno("eventfd", error.errno or 0) from error
