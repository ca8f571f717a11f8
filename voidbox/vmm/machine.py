"""The machine: where KVM, memory, devices, threads and the console are wired together.

caller ── start, wait, stop ──► Machine ──► vCPU threads ──► buses ──► devices
                                   └──────► event loop ◄── console, timers, eventfds
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from voidbox.boot import acpi, cpu, layout, loader, newc
from voidbox.devices.bus import Bus
from voidbox.devices.i8042 import I8042, I8042_PORT, I8042_PORTS
from voidbox.devices.pci import PCI_CONFIG_PORT, PCI_CONFIG_PORTS, PciHostBridge
from voidbox.devices.power import (
    ACPI_PM_PORT,
    ACPI_PM_PORTS,
    BOOT_TIMER_PORT,
    BOOT_TIMER_PORTS,
    PVPANIC_PORT,
    PVPANIC_PORTS,
    RESET_OFFSET,
    RESET_VALUE,
    SLEEP_CONTROL_OFFSET,
    SLEEP_STATUS_OFFSET,
    SLP_TYP_S5,
    AcpiPower,
    BootTimer,
    PvPanic,
)
from voidbox.devices.rtc import RTC_PORT, RTC_PORTS, Rtc
from voidbox.devices.serial import (
    COM1_GSI,
    COM1_PORT,
    COM2_GSI,
    COM2_PORT,
    SERIAL_PORTS,
    UART_TX,
    Serial,
)
from voidbox.errors import HostError
from voidbox.event_loop import EventLoop
from voidbox.kvm import api
from voidbox.kvm.kvm import KVM_DEVICE, Kvm
from voidbox.kvm.vcpu import Vcpu
from voidbox.kvm.vm import Vm, host_address
from voidbox.memory import GuestMemory
from voidbox.virtio.rng import VirtioRng
from voidbox.vmm import requirements, vcpus
from voidbox.vmm.coalesced import CoalescedRing
from voidbox.vmm.config import MachineConfig, ShareConfig, VsockConfig
from voidbox.vmm.console import Console, wait_flushed
from voidbox.vmm.outcome import EndReason, Outcome
from voidbox.vmm.throttle import Throttle, ThrottleStatistics
from voidbox.vmm.vcpu_thread import VcpuThread
from voidbox.vmm.vcpus import Vcpus
from voidbox.vmm.virtio_slots import VirtioSlots

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    import socket

    from voidbox.nat.backend import NatBackend, NatConfig
    from voidbox.virtio.block_config import BlockStatistics
    from voidbox.virtio.device import VirtioDevice
    from voidbox.vmm.disk import Disk
    from voidbox.vmm.restore import Restore
    from voidbox.vmm.serial_port import SerialPort
    from voidbox.vmm.snapshot import Parts, SnapshotReport
    from voidbox.vsock.unix import UnixBackend
    from voidbox.vsock.unix_listener import HandedListener, UnixListener

log = logging.getLogger(__name__)

# Port writes that need no answer and are always followed by an access that exits, which drains
# them: (port, width in bytes). Linux polls LSR or IIR after every burst to the UART.
_COALESCED_PORTS = ((COM1_PORT + UART_TX, 1), (RTC_PORT, 1), (0x80, 1), (0xCF8, 4))
_PANIC_MARK = "Kernel panic - not syncing"
_FLUSH_S = 1.0
_GENERATION_ID_BYTES = 16
_DRAIN_S = 0.1  # the longest that a coalesced write waits
_PAUSE_S = 15.0  # for a device to finish what is under way, and for its loop to get there

_POWER_REGISTERS = acpi.PowerRegisters(
    sleep_control_port=ACPI_PM_PORT + SLEEP_CONTROL_OFFSET,
    sleep_status_port=ACPI_PM_PORT + SLEEP_STATUS_OFFSET,
    reset_port=ACPI_PM_PORT + RESET_OFFSET,
    reset_value=RESET_VALUE,
    slp_typ_s5=SLP_TYP_S5,
)
_PORT_DEVICES = (
    acpi.PortDevice("COM1", "PNP0501", COM1_PORT, SERIAL_PORTS, COM1_GSI),
    acpi.PortDevice("RTC", "PNP0B00", RTC_PORT, RTC_PORTS),
    acpi.PortDevice("PEVT", "QEMU0001", PVPANIC_PORT, PVPANIC_PORTS),
)


_SERIAL_LINE = acpi.PortDevice("COM2", "PNP0501", COM2_PORT, SERIAL_PORTS, COM2_GSI)


class MachineStatistics(NamedTuple):
    """Counts since the start.

    Attributes:
        exits: KVM_EXIT_* name to how often.
        port_exits: port to how often, of the KVM_EXIT_IO among them.
        boot_ns: from the first KVM_RUN to the guest's boot-timer write, or None.
        boot_timer_ns: time.monotonic_ns() of that write, or None.
        vcpu_ns: the host's CPU time of all vCPUs, which it counts in hundredths of a second.
        disks: what each disk did, in the guest's order.
        throttle: the limit of the vCPUs' CPU time.
    """

    exits: dict[str, int]
    port_exits: dict[int, int]
    boot_ns: int | None
    boot_timer_ns: int | None
    vcpu_ns: int
    disks: tuple[BlockStatistics, ...] = ()
    throttle: ThrottleStatistics = ThrottleStatistics(None, 0)


class Machine:
    """One virtual machine. Thread: the caller's, any one at a time, where nothing else is said.

    Attributes:
        network: the network behind the device, or None; on the loop's thread only.

    `with Machine(config) as machine: machine.start(); outcome = machine.wait()`

    Raises:
        ConfigError: the configuration or one of its files cannot be used.
        HostError: KVM is missing, forbidden or lacks something.
    """

    def __init__(
        self, config: MachineConfig, kvm_path: str = KVM_DEVICE, restore: Restore | None = None
    ) -> None:
        config.validate()
        self.config = config
        self._restore = restore
        self.boot_timer = BootTimer()
        self._ended = threading.Event()
        self._end_lock = threading.Lock()  # covers _outcome's first setting and the kicks
        self._outcome: Outcome | None = None
        self._vcpus = Vcpus()
        self._throttle = Throttle(self._vcpus)
        self._started_ns: int | None = None
        self._ports = Bus()
        self._mmio = Bus()
        self._hang_ups: list[Callable[[], None]] = []  # end the connections of programs
        self._unix_backend: UnixBackend | None = None
        self._serial_port: SerialPort | None = None
        self.network: NatBackend | None = None
        self._disks: list[Disk] = []
        self._share_loops: list[EventLoop] = []
        self._pause_lock = threading.RLock()  # whoever has the machine stand still, or go on
        self._line_lock = threading.Lock()  # held by a snapshot that looks at the interrupt lines
        self._snapshot_lock = threading.Lock()  # one snapshot at a time
        self._resources = contextlib.ExitStack()
        try:
            self._build(kvm_path)
        except BaseException:
            self._resources.close()
            raise

    def _build(self, kvm_path: str) -> None:
        """Make everything, in the order that KVM wants; ExitStack releases it in reverse."""
        own = self._resources.enter_context
        self._open_disks()
        kvm = own(contextlib.closing(Kvm(kvm_path)))
        requirements.check(kvm, self.config.cpus)
        self._kvm = kvm
        self.memory = own(self._make_memory())
        if self._restore is not None:
            self._resources.callback(self._restore.close)
        self._vm = own(contextlib.closing(kvm.create_vm()))
        self._vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        self._vm.set_tss_addr(layout.KVM_TSS_GPA)
        self._vm.create_irqchip()
        self._vm.create_pit2(api.KVM_PIT_SPEAKER_DUMMY)
        for slot, region in enumerate(self.memory):
            self._vm.set_user_memory_region(slot, region.gpa, region.map)
        handles = [
            own(contextlib.closing(self._vm.create_vcpu(index)))
            for index in range(self.config.cpus)
        ]
        self.loop = EventLoop(on_error=self._on_loop_error)
        self._resources.callback(self.loop.close)
        self._coalesced = self._coalesce(kvm, self._vm, handles[0])
        has_readonly_memory = bool(kvm.check_extension(api.KVM_CAP_READONLY_MEM))
        for disk in self._disks:
            disk.make_loop(self._on_loop_error)
        slots = VirtioSlots(
            self._vm, self.memory, self._mmio, self.loop, self._coalesced, has_readonly_memory
        )
        self._slots = own(contextlib.closing(slots))
        self._attach_devices()
        self._attach_virtio()
        self._resources.callback(self.loop.stop)  # before anything that it serves goes away
        self._handles = handles
        if self._restore is not None:
            self._restore.check_host(kvm, handles[0])
        else:
            self._load(kvm, handles)
        self._vcpus = Vcpus(
            VcpuThread(vcpu, self._ports, self._mmio, self._coalesced, self._end)
            for vcpu in handles
        )
        self._throttle = Throttle(self._vcpus)

    def _make_memory(self) -> GuestMemory:
        if self._restore is not None:
            return self._restore.make_memory()
        return GuestMemory(self.config.memory_bytes)

    def _load(self, kvm: Kvm, handles: list[Vcpu]) -> None:
        """Put the kernel and all that it is told into memory, and the first vCPU before it."""
        ports = _PORT_DEVICES + ((_SERIAL_LINE,) if self.config.serial_line else ())
        tables = acpi.build(self.config.cpus, _POWER_REGISTERS, ports, self._slots.acpi_devices)
        entry = loader.load(
            self.memory,
            self.config.kernel,
            self.config.initramfs,
            self.config.kernel_cmdline,
            tables,
            self.config.self_extract,
            newc.archive(self.config.extra_files) if self.config.extra_files else b"",
        )
        cpu.write_tables(self.memory, entry)
        self.write_generation_id()
        vcpus.set_up(kvm, handles, entry)

    def _open_disks(self) -> None:
        """Open what the disks are kept in. They are closed when nothing uses them any more."""
        if self.config.disks:
            from voidbox.vmm.disk import Disk

            for index, config in enumerate(self.config.disks):
                disk = Disk(config, f"disk{index}")
                self._resources.callback(disk.close)
                self._disks.append(disk)

    def _add_virtio(
        self,
        device: VirtioDevice,
        kick_fds: Mapping[int, int] | None = None,
        loop: EventLoop | None = None,
    ) -> None:
        """Put a device into the next slot, with what a snapshot has of it."""
        state = self._restore.slot(len(self._slots)) if self._restore is not None else None
        self._slots.add(device, kick_fds, loop, state)

    def _attach_virtio(self) -> None:
        self._add_virtio(VirtioRng())
        for disk in self._disks:
            self._add_virtio(disk.device, loop=disk.loop)
            self._resources.callback(disk.loop.stop)
        if self.config.vsock is not None:
            self._attach_vsock(self.config.vsock)
        if self.config.net is not None:
            self._attach_network(self.config.net)
        for share in self.config.shares:
            self._attach_share(share)

    def _attach_network(self, config: NatConfig) -> None:
        from voidbox.nat.backend import NatBackend
        from voidbox.virtio.net import VirtioNet

        self.network = NatBackend(config, self.loop, self._on_network_log)
        self._resources.callback(self.network.close)
        self._hang_ups.append(self.network.reset)
        if self._restore is not None and self._restore.state.net is not None:
            self.network.reset_flows(self._restore.state.net.flows)
        self._add_virtio(
            VirtioNet(self.network, config.network.guest_mac, call_later=self.loop.call_later)
        )

    def _on_network_log(self, line: str) -> None:
        log.info("%s", line)

    def _attach_share(self, share: ShareConfig) -> None:
        from voidbox.fuse.server import Server
        from voidbox.virtio.fs import VirtioFs

        device = VirtioFs(Server(share.path, share.is_read_only, share.cache), share.tag)
        self._resources.callback(device.close)
        # Its own, as a disk's: a reset waits for the host's file system.
        loop = EventLoop(self._on_loop_error, name=f"voidbox-{share.tag}")
        self._share_loops.append(loop)
        self._resources.callback(loop.close)  # before the device's, after which nothing is reset
        self._add_virtio(device, dict.fromkeys((0, 1), device.kick_fd), loop)

    def _attach_vsock(self, config: VsockConfig) -> None:
        from voidbox.virtio.vsock import PacketQueues, VirtioVsock

        cid = config.cid
        if config.is_vhost:
            from voidbox.vsock.vhost import VhostVsock

            plane = VhostVsock(cid, self.memory, lambda region: host_address(region.map))
            self._resources.callback(plane.close)
            self._hang_ups.append(plane.hang_up)
            device = VirtioVsock(cid, plane)
            self._add_virtio(device, dict(enumerate(plane.kick_fds)))
        else:
            from voidbox.vsock.unix import UnixBackend

            saved = self._restore.state.vsock if self._restore is not None else None
            next_port = saved.next_port if saved is not None else 0
            self._unix_backend = UnixBackend(config.path, cid, self.loop, next_port, config.dial)
            self._resources.callback(self._unix_backend.close)
            self._hang_ups.append(self._unix_backend.reset)
            device = VirtioVsock(cid, PacketQueues(self._unix_backend, self.loop.call_later))
            self._add_virtio(device)
        if self._restore is not None:
            device.transport_reset()

    def _attach_devices(self) -> None:
        self._serial = serial = Serial(partial(self._vm.irq_line, COM1_GSI))
        self._serial_line: Serial | None = None
        self._rtc, self._pci = Rtc(), PciHostBridge()
        if self._restore is not None:
            serial.restore(self._restore.state.console)
            self._rtc.restore(self._restore.state.rtc)
            self._pci.restore(self._restore.state.pci_address)
        self.console = Console(self.loop, serial)
        power = AcpiPower(
            on_power_off=lambda: self._end(Outcome(EndReason.POWER_OFF)),
            on_reset=lambda: self._end(Outcome(EndReason.RESET)),
        )
        panic = PvPanic(lambda: self._end(Outcome(EndReason.PANIC)))
        self._ports.attach(COM1_PORT, SERIAL_PORTS, serial)
        if self.config.serial_line:
            self._attach_serial_line()
        self._ports.attach(
            I8042_PORT, I8042_PORTS, I8042(lambda: self._end(Outcome(EndReason.RESET)))
        )
        self._ports.attach(PCI_CONFIG_PORT, PCI_CONFIG_PORTS, self._pci)
        self._ports.attach(RTC_PORT, RTC_PORTS, self._rtc)
        self._ports.attach(ACPI_PM_PORT, ACPI_PM_PORTS, power)
        self._ports.attach(PVPANIC_PORT, PVPANIC_PORTS, panic)
        self._ports.attach(BOOT_TIMER_PORT, BOOT_TIMER_PORTS, self.boot_timer)

    def _attach_serial_line(self) -> None:
        from voidbox.vmm.serial_port import SerialPort

        self._serial_line = serial = Serial(partial(self._vm.irq_line, COM2_GSI))
        if self._restore is not None and self._restore.state.serial_line is not None:
            serial.restore(self._restore.state.serial_line)
        self._ports.attach(COM2_PORT, SERIAL_PORTS, serial)
        self._serial_port = SerialPort(self.loop, serial)
        self._resources.callback(self._serial_port.close)
        self._hang_ups.append(self._serial_port.close)

    def _coalesce(self, kvm: Kvm, vm: Vm, vcpu: Vcpu) -> CoalescedRing | None:
        page_offset = kvm.check_extension(api.KVM_CAP_COALESCED_MMIO)
        if not page_offset or not kvm.check_extension(api.KVM_CAP_COALESCED_PIO):
            return None
        serial_line = [(COM2_PORT + UART_TX, 1)] if self.config.serial_line else []
        for port, width in (*_COALESCED_PORTS, *serial_line):
            vm.register_coalesced_mmio(port, width, pio=True)
        return CoalescedRing(vcpu.coalesced_ring(page_offset), self._ports, self._mmio)

    def start(self) -> None:
        """Start the event loop and the vCPUs. Once.

        Raises:
            ConfigError: this host cannot go on with the snapshot that the machine is of.
            HostError: the host gives no thread.
        """
        if self._restore is not None:
            self._restore.start(self._vm, self._handles)
            self.write_generation_id()
            self.announce_generation()
            for serial in filter(None, (self._serial, self._serial_line)):
                serial.raise_line()  # a new interrupt controller's lines are all low
        try:
            self.loop.start()
            for loop in (*(disk.loop for disk in self._disks), *self._share_loops):
                loop.start()
            self._started_ns = time.monotonic_ns()
            self._vcpus.start()
        except RuntimeError as error:
            raise HostError(f"the host gives no thread ({error}): end other processes") from error
        if self._coalesced is not None:
            self.loop.call_soon(self._drain_later)

    def _drain_later(self) -> None:
        """Perform queued writes of a guest that has made no exit since, such as one that halts."""
        if self._coalesced is not None and self._coalesced.has_entries():
            self._coalesced.drain()
        self.loop.call_later(_DRAIN_S, self._drain_later)

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for the machine's end; None if `timeout_s` seconds pass before.

        Every vCPU thread has ended when an outcome is returned, and its console tail is complete.
        Thread: any but the loop, several at once.
        """
        if timeout_s is not None:
            timeout_s = min(timeout_s, threading.TIMEOUT_MAX)
        if not self._ended.wait(timeout_s):
            return None
        self._vcpus.join()
        # The tail needs the last output; an output that blocks must not hold back the outcome.
        wait_flushed(self.loop, self.console, _FLUSH_S)
        assert self._outcome is not None
        outcome = self._outcome._replace(console_tail=self.console.tail())
        return _explain(outcome, self.console.text())

    def stop(self) -> None:
        """End the machine at once, as if its power were cut. Thread: any. Never blocks."""
        self._end(Outcome(EndReason.STOPPED))

    def pause(self) -> None:
        """Halt the vCPUs and the devices. Thread: any but a loop. Idempotent.

        When it returns, none runs, and nothing changes guest memory until resume(). What devices
        have for the guest waits for it. Its clocks go on, as when a laptop is busy elsewhere. A
        machine that has ended ignores it.

        Raises:
            HostError: a disk or a shared folder does not finish what it is at; all goes on.
        """
        with self._pause_lock:
            was_paused = self.is_paused
            self._vcpus.pause()
            if self._started_ns is None:
                return
            try:
                if self._coalesced is not None:
                    self._coalesced.drain()
                self._slots.pause(_PAUSE_S)
            except BaseException:
                if not was_paused:
                    self.resume()
                raise

    def resume(self) -> None:
        """Let all go on after pause(). Thread: any but a loop. Idempotent."""
        with self._pause_lock:
            self._slots.resume()
            self._vcpus.resume()

    # Snapshots.

    @classmethod
    def from_snapshot(
        cls,
        folder: str,
        config: MachineConfig,
        *,
        memory: Literal["lazy", "eager"] = "lazy",
        kvm_path: str = KVM_DEVICE,
    ) -> Machine:
        """Make a machine that goes on where a snapshot's was; time does from start() on.

        The guest finds that its connections are over, and all else as it was. Everything that the
        host has of it is this machine's own: sockets, ports, overlays.

        Args:
            folder: the snapshot's.
            config: the machine's, with as much memory, as many CPUs and the same devices as the
                snapshot's. Kernel, initramfs and command line are not looked at. An overlay of a
                disk that the snapshot has a copy of must not be there: it is made of the copy.
            memory: see Restore.
        Raises:
            ConfigError: the snapshot cannot be restored here, or not with this `config`.
            HostError: KVM is missing, forbidden or lacks something.
        """
        from voidbox.vmm.restore import Restore

        config.validate()
        restore = Restore(folder, config, memory)
        try:
            return cls(config, kvm_path, restore)
        except BaseException:
            restore.abort()
            raise

    def snapshot(
        self,
        folder: str,
        *,
        stop: bool = False,
        disks: Literal["copy", "stay"] = "copy",
        extra: Mapping[str, bytes] | None = None,
        timeout_s: float = 300.0,
        on_frozen: Callable[[], object] = lambda: None,
    ) -> SnapshotReport:
        """Save the machine, its memory and its disks as they are now. Thread: any but a loop.

        It stands still for some milliseconds, while its state is read and a helper forked off,
        which then writes the memory as it was; or, with `stop`, for as long as all takes, and ends
        when it is done. Whatever fails, it goes on as before.

        Args:
            folder: is made, whole or not at all; until then `folder`.part is there.
            disks: "stay", with `stop`: they are not copied, but must be as they are now when the
                snapshot is restored, with the same files.
            extra: more files for the folder.
            on_frozen: called once all that is saved is held, and the machine goes on; it must not
                raise. Not with `stop`.
        Raises:
            ConfigError: the folder is there; or the machine has what cannot be kept: a shared
                folder, a disk without an overlay, a guest with virtual machines of its own.
            HostError: another snapshot is being made, the machine has ended, a device is busy, the
                files cannot be written, time ran out.
        """
        from voidbox.vmm import snapshot

        if not self._snapshot_lock.acquire(blocking=False):
            raise HostError("a snapshot of this machine is being made: wait for it")
        try:
            return snapshot.take(
                self._snapshot_parts(),
                snapshot.Control(
                    self._pause_lock,
                    lambda: self.is_paused,
                    self._pause_living,
                    self.resume,
                    self._resume_but_disks,
                    self.stop,
                ),
                folder,
                stop=stop,
                disks_stay=disks == "stay",
                extra=extra or {},
                timeout_s=timeout_s,
                on_frozen=on_frozen,
            )
        finally:
            self._snapshot_lock.release()

    def _snapshot_parts(self) -> Parts:
        from voidbox.vmm import snapshot

        return snapshot.Parts(
            self.config,
            self._kvm,
            self._vm,
            self._handles,
            self.memory,
            self.loop,
            self._line_lock,
            self._slots,
            self._serial,
            self._serial_line,
            self._rtc,
            self._pci,
            self._unix_backend,
            self.network,
            lambda index: self._disks[index].flush(),
        )

    def _pause_living(self) -> None:
        """Pause; a machine that has not begun, or has ended, is none to be saved."""
        if self._started_ns is None:
            raise HostError("the machine was not started: there is nothing to save")
        self.pause()
        with self._end_lock:
            if self._outcome is not None:
                raise HostError(f"the machine has ended ({self._outcome.reason.value})")

    def _resume_but_disks(self) -> None:
        self._slots.resume(but=[disk.loop for disk in self._disks])
        self._vcpus.resume()

    def record_working_set(self, path: str) -> None:
        """Write down what the guest has touched since its restore, for later restores to fetch.

        Args:
            path: "working-set" in the snapshot's folder; one that is there stays. Thread: any.
        Raises:
            HostError: it cannot be written; or the machine was not restored lazily.
        """
        from voidbox.vmm.restore import record_working_set

        record_working_set(path, self.memory)

    # Limits. Thread: any.

    def set_cpu_limit(self, cpus: float | None) -> None:
        """Let the vCPUs together use so many CPUs of the host's, such as 0.5; None: all they can.

        Raises:
            HostError: the host gives no thread.
        """
        try:
            self._throttle.set(cpus)
        except RuntimeError as error:
            raise HostError(f"the host gives no thread ({error}): end other processes") from error

    def set_disk_rates(self, bytes_s: int | None, requests_s: int | None) -> None:
        """Limit what the guest may do with each disk a second; None for no limit."""
        for disk in self._disks:
            disk.set_rates(bytes_s, requests_s)

    @property
    def is_paused(self) -> bool:
        """Whether pause() came last. Thread: any."""
        return self._vcpus.is_paused

    def press_power_button(self) -> None:
        """Ask the guest to shut down, as its ACPI power button does. Thread: any.

        What comes of it is the guest's choice: a kernel without ACPI, or a guest in which nobody
        listens for the button, does nothing.
        """
        with self._line_lock, self._end_lock:
            if self._outcome is None:  # afterwards the VM may be gone
                self._vm.irq_line(layout.POWER_BUTTON_GSI, True)
                self._vm.irq_line(layout.POWER_BUTTON_GSI, False)

    def write_generation_id(self) -> None:
        """Give this copy of the machine an id of its own. Before the first KVM_RUN."""
        self.memory.write(layout.VMGENID_GPA, os.urandom(_GENERATION_ID_BYTES))

    def announce_generation(self) -> None:
        """Have the guest's kernel look at the id, if it has a driver for it. Thread: any."""
        with self._end_lock:
            if self._outcome is None:
                self._vm.irq_line(layout.VMGENID_GSI, True)
                self._vm.irq_line(layout.VMGENID_GSI, False)

    def adopt_vsock(self, sock: socket.socket, port: int) -> None:
        """Connect a stream socket to a port of the guest, past the host kernel. Thread: any.

        Its other end reads "OK <host port>\\n" once the guest has accepted, or the end if not.

        Raises:
            OSError: the machine has no vsock of its own.
        """
        if self._unix_backend is None:
            sock.close()
            raise OSError(errno.ENODEV, "the machine has no such vsock")
        self.loop.call_soon(partial(self._unix_backend.adopt, sock, port))

    def publish_vsock(self, listener: UnixListener | HandedListener) -> None:
        """Have host programs reach the guest through a socket, from now on. Thread: any.

        For a machine whose vsock was made without a path: a restored one lets nobody in before it
        is a machine of its own. The listener is the machine's.
        """
        backend = self._unix_backend
        if backend is None:
            listener.close()
        else:
            self.loop.call_soon(lambda: backend.publish(listener))

    def connect_serial(self) -> socket.socket | None:
        """Return a stream to the second serial port, which ends the one before. Thread: any.

        None if the machine was made without such a port.
        """
        return self._serial_port.connect() if self._serial_port is not None else None

    def adopt_serial(self, sock: socket.socket) -> None:
        """Connect a program's socket to the second serial port, in place of the one before.

        Thread: any. It is closed if the machine was made without such a port.
        """
        if self._serial_port is not None:
            self._serial_port.adopt(sock)
        else:
            sock.close()

    def statistics(self) -> MachineStatistics:
        """Return the counts up to now. Thread: any."""
        reached_ns = self.boot_timer.reached_ns
        has_booted = reached_ns is not None and self._started_ns is not None
        boot_ns = reached_ns - self._started_ns if has_booted else None  # type: ignore[operator]
        return MachineStatistics(
            self._vcpus.exits(),
            self._vcpus.port_exits(),
            boot_ns,
            reached_ns,
            self._vcpus.cpu_ns(),
            tuple(disk.device.statistics() for disk in self._disks),
            self._throttle.statistics(),
        )

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
        for hang_up in self._hang_ups:
            hang_up()

    def _on_loop_error(self, error: BaseException) -> None:
        self._end(Outcome(EndReason.ERROR, str(error) or repr(error), error=error))

    def close(self) -> None:
        """Stop, wait for every thread, and free everything. Idempotent."""
        self.stop()
        self._throttle.close()
        self._vcpus.join()
        with self._end_lock:  # another thread's stop() may still be kicking
            pass
        self._resources.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _explain(outcome: Outcome, console_text: str) -> Outcome:
    """Call a reset or a crash that the console announced as a panic by that name.

    Kernels without a pvpanic driver can only say it there. A guest that prints the words and
    resets is believed: it fools nobody but its own user.
    """
    if outcome.reason in (EndReason.RESET, EndReason.CRASH, EndReason.PANIC):
        for line in console_text.splitlines():
            if _PANIC_MARK in line:
                text = line[line.index(_PANIC_MARK) + len(_PANIC_MARK) :].strip(": ")
                return outcome._replace(reason=EndReason.PANIC, detail=text)
    return outcome
