"""The parts of a machine, made in the order that KVM wants, and released in reverse."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from voidbox.boot import cpu, layout, loader, newc
from voidbox.event_loop import EventLoop
from voidbox.kvm.kvm import Kvm
from voidbox.memory import GuestMemory
from voidbox.vmm import requirements, vcpus
from voidbox.vmm.board import Board
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.hardware import Hardware
from voidbox.vmm.outcome import EndReason, Outcome
from voidbox.vmm.peripherals import Peripherals
from voidbox.vmm.throttle import Throttle
from voidbox.vmm.vcpu_thread import VcpuThread
from voidbox.vmm.vcpus import Vcpus

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    from voidbox.vmm.disk import Disk
    from voidbox.vmm.restore import Restore

_GENERATION_ID_BYTES = 16


class Assembly:
    """What a machine is made of; nothing of it runs. Thread: the caller's.

    Raises:
        ConfigError: the configuration or one of its files cannot be used.
        HostError: KVM is missing, forbidden or lacks something.
    """

    def __init__(self, config: MachineConfig, kvm_path: str, restore: Restore | None) -> None:
        config.validate()
        self.config = config
        self._restore = restore
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        self._end_lock = threading.Lock()  # covers _outcome's first setting and the kicks
        self._line_lock = threading.Lock()  # held by a snapshot that looks at the interrupt lines
        self._vcpus = Vcpus()
        self._throttle = Throttle(self._vcpus)
        self._started_ns: int | None = None
        self._resources = contextlib.ExitStack()
        try:
            self._build(kvm_path)
        except BaseException:
            self._resources.close()
            raise

    def _build(self, kvm_path: str) -> None:
        """Make everything; ExitStack releases it in reverse."""
        resources = self._resources
        disks = self._open_disks()
        kvm = resources.enter_context(contextlib.closing(Kvm(kvm_path)))
        requirements.check(kvm, self.config.cpus)
        self.memory = resources.enter_context(self._make_memory())
        if self._restore is not None:
            resources.callback(self._restore.close)
        self._hardware = Hardware(kvm, self.memory, self.config.cpus, resources)
        self.loop = EventLoop(on_error=self._on_loop_error)
        resources.callback(self.loop.close)
        self._board = Board(self._hardware, self.loop, self.config.serial_line, self._on_guest_end)
        resources.callback(self._board.close)
        self.console = self._board.console
        self._peripherals = Peripherals(
            self.config, disks, self._hardware, self._board, self.loop, self._restore, resources,
            self._on_loop_error,
        )  # fmt: skip
        resources.callback(self.loop.stop)  # before anything that it serves goes away
        if self._restore is not None:
            self._board.restore(self._restore.state)
            self._restore.check_host(kvm, self._hardware.vcpus[0])
        else:
            self._load()
        board = self._board
        self._vcpus = Vcpus(
            VcpuThread(vcpu, board.ports, board.mmio, board.coalesced, self._end)
            for vcpu in self._hardware.vcpus
        )
        self._throttle = Throttle(self._vcpus)

    def _open_disks(self) -> list[Disk]:
        """Open what the disks are kept in. They are closed when nothing uses them any more."""
        disks: list[Disk] = []
        if self.config.disks:
            from voidbox.vmm.disk import Disk

            for index, config in enumerate(self.config.disks):
                disks.append(Disk(config, f"disk{index}"))
                self._resources.callback(disks[-1].close)
        return disks

    def _make_memory(self) -> GuestMemory:
        if self._restore is not None:
            return self._restore.make_memory()
        return GuestMemory(self.config.memory_bytes)

    def _load(self) -> None:
        """Put the kernel and all that it is told into memory, and the first vCPU before it."""
        config, virtio = self.config, self._peripherals.slots.acpi_devices
        entry = loader.load(
            self.memory,
            config.kernel,
            config.initramfs,
            config.kernel_cmdline,
            self._board.acpi_tables(config.cpus, virtio),
            config.self_extract,
            newc.archive(config.extra_files) if config.extra_files else b"",
        )
        cpu.write_tables(self.memory, entry)
        self.write_generation_id()
        vcpus.set_up(self._hardware.kvm, self._hardware.vcpus, entry)

    def write_generation_id(self) -> None:
        """Give this copy of the machine an id of its own. Before the first KVM_RUN."""
        self.memory.write(layout.VMGENID_GPA, os.urandom(_GENERATION_ID_BYTES))

    # The end, as any of the parts may tell it.

    def _on_guest_end(self, reason: EndReason) -> None:
        self._end(Outcome(reason))

    def _on_loop_error(self, error: BaseException) -> None:
        self._end(Outcome(EndReason.ERROR, str(error) or repr(error), error=error))

    def _end(self, outcome: Outcome) -> None:
        """Take the first outcome and end every vCPU. Thread: any; never blocks."""
        with self._end_lock:
            if self._outcome is not None:
                return
            self._outcome = outcome
            self._vcpus.kick()  # under the lock, so that close() cannot free a vCPU meanwhile
        self._ended.set()
        self.loop.call_soon(self._hang_up)

    def _hang_up(self) -> None:
        """Let the programs at the other ends know that nobody will answer. Thread: loop."""
        self._vcpus.join()  # kicked: they end at once, and touch no device afterwards
        self._board.close()
        self._peripherals.hang_up()
