"""The machine: a virtual computer, from its making to its end.

    Hardware     KVM's VM: interrupt controllers, memory, vCPUs
    Board        the devices at fixed ports, and the ACPI tables
    Peripherals  the virtio devices, each with its backend
    Vcpus        a thread each, which runs the guest until it touches a device
    EventLoop    the other thread, on which devices meet the host

caller ── start, wait, stop ──► Machine ──► vCPU threads ──► buses ──► devices
                                   └──────► event loop ◄── console, timers, eventfds
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from voidbox.boot import cpu, layout, loader, newc
from voidbox.errors import ConfigError, HostError
from voidbox.event_loop import EventLoop
from voidbox.kvm import KVM_DEVICE
from voidbox.kvm.kvm import Kvm
from voidbox.memory import GuestMemory
from voidbox.vmm import requirements, vcpus
from voidbox.vmm.board import Board
from voidbox.vmm.config import MEMORY_BYTES_MIN, MachineConfig
from voidbox.vmm.console import wait_flushed
from voidbox.vmm.hardware import Hardware
from voidbox.vmm.outcome import EndReason, Outcome
from voidbox.vmm.peripherals import Peripherals
from voidbox.vmm.throttle import Throttle, ThrottleStatistics
from voidbox.vmm.vcpu_thread import VcpuThread
from voidbox.vmm.vcpus import Vcpus

if TYPE_CHECKING:  # imported where they are used: a machine without them starts sooner
    import socket

    from voidbox.nat.backend import NatBackend
    from voidbox.virtio.balloon import BalloonStatistics
    from voidbox.virtio.block_config import BlockStatistics
    from voidbox.vmm.disk import Disk
    from voidbox.vmm.restore import Restore
    from voidbox.vmm.snapshot import SnapshotReport
    from voidbox.vsock.unix_listener import HandedListener, UnixListener

_FLUSH_S = 1.0
_GENERATION_ID_BYTES = 16
_PAUSE_S = 15.0  # for a device to finish what is under way, and for its loop to get there


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
        balloon: what the guest gave back, and said of its memory; None without a balloon.
    """

    exits: dict[str, int]
    port_exits: dict[int, int]
    boot_ns: int | None
    boot_timer_ns: int | None
    vcpu_ns: int
    disks: tuple[BlockStatistics, ...] = ()
    throttle: ThrottleStatistics = ThrottleStatistics(None, 0)
    balloon: BalloonStatistics | None = None


class Machine:
    """One virtual machine. Thread: the caller's, any one at a time, where nothing else is said.

    Attributes:
        console: its first serial port.

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
        self._ended = threading.Event()
        self._end_lock = threading.Lock()  # covers _outcome's first setting and the kicks
        self._outcome: Outcome | None = None
        self._vcpus = Vcpus()
        self._throttle = Throttle(self._vcpus)
        self._started_ns: int | None = None
        self._pause_lock = threading.RLock()  # whoever has the machine stand still, or go on
        self._line_lock = threading.Lock()  # held by a snapshot that looks at the interrupt lines
        self._snapshot_lock = threading.Lock()  # one snapshot at a time
        self._resources = contextlib.ExitStack()
        try:
            self._build(kvm_path)
        except BaseException:
            self._resources.close()
            raise

    # Its making.

    def _build(self, kvm_path: str) -> None:
        """Make everything, in the order that KVM wants; ExitStack releases it in reverse."""
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

    # Its life.

    def start(self) -> None:
        """Start the event loops and the vCPUs. Once.

        Raises:
            ConfigError: this host cannot go on with the snapshot that the machine is of.
            HostError: the host gives no thread.
        """
        if self._restore is not None:
            self._restore.start(self._hardware.vm, self._hardware.vcpus)
            self.write_generation_id()
            self.announce_generation()
            self._board.raise_lines()
        try:
            for loop in (self.loop, *self._peripherals.loops):
                loop.start()
            self._started_ns = time.monotonic_ns()
            self._vcpus.start()
        except RuntimeError as error:
            raise HostError(f"the host gives no thread ({error}): end other processes") from error
        self.loop.call_soon(self._board.drain_regularly)

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
        return outcome.explained_by(self.console.text())

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
                self._board.drain()
                self._peripherals.slots.pause(_PAUSE_S)
            except BaseException:
                if not was_paused:
                    self.resume()
                raise

    def resume(self) -> None:
        """Let all go on after pause(). Thread: any but a loop. Idempotent."""
        with self._pause_lock:
            self._peripherals.slots.resume()
            self._vcpus.resume()

    @property
    def is_paused(self) -> bool:
        """Whether pause() came last. Thread: any."""
        return self._vcpus.is_paused

    def _resume_but_disks(self) -> None:
        self._peripherals.resume_but_disks()
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

        parts = snapshot.Parts(
            self.config, self._hardware, self._board, self._peripherals, self.loop, self._line_lock
        )
        control = snapshot.Control(
            lock=self._pause_lock,
            is_paused=lambda: self.is_paused,
            pause=self._pause_living,
            resume=self.resume,
            resume_but_disks=self._resume_but_disks,
            end=self.stop,
        )
        if not self._snapshot_lock.acquire(blocking=False):
            raise HostError("a snapshot of this machine is being made: wait for it")
        try:
            return snapshot.take(
                parts,
                control,
                folder,
                stop=stop,
                disks_stay=disks == "stay",
                extra=extra or {},
                timeout_s=timeout_s,
                on_frozen=on_frozen,
            )
        finally:
            self._snapshot_lock.release()

    def _pause_living(self) -> None:
        """Pause; a machine that has not begun, or has ended, is none to be saved."""
        if self._started_ns is None:
            raise HostError("the machine was not started: there is nothing to save")
        self.pause()
        with self._end_lock:
            if self._outcome is not None:
                raise HostError(f"the machine has ended ({self._outcome.reason.value})")

    def record_working_set(self, path: str, bytes_max: int) -> int:
        """Write down what the guest has touched since its restore, for later restores to fetch.

        Args:
            path: "working-set" in the snapshot's folder; one that is there stays. Thread: any.
            bytes_max: of more nothing is written down.
        Returns:
            How many bytes it has touched.
        Raises:
            HostError: it cannot be written; or the machine was not restored lazily.
        """
        from voidbox.vmm.restore import record_working_set

        return record_working_set(path, self.memory, bytes_max)

    def write_generation_id(self) -> None:
        """Give this copy of the machine an id of its own. Before the first KVM_RUN."""
        self.memory.write(layout.VMGENID_GPA, os.urandom(_GENERATION_ID_BYTES))

    def announce_generation(self) -> None:
        """Have the guest's kernel look at the id, if it has a driver for it. Thread: any."""
        self._pulse(layout.VMGENID_GSI)

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

    def set_memory_target(self, size_bytes: int) -> None:
        """Have the guest make do with so much memory; it gives the rest back as far as it can.

        It takes a while, and what the guest needs stays its own: a guest that runs out of memory
        takes it back. See statistics().

        Raises:
            ConfigError: the machine has no balloon, or less memory.
        """
        balloon = self._peripherals.balloon
        if balloon is None:
            raise ConfigError("the machine has no balloon: its memory is all its guest's")
        if not MEMORY_BYTES_MIN <= size_bytes <= self.config.memory_bytes:
            raise ConfigError(
                f"{size_bytes >> 20} MiB of memory: choose {MEMORY_BYTES_MIN >> 20}M to "
                f"{self.config.memory_bytes >> 20}M, which the machine has"
            )
        self.loop.call_soon(partial(balloon.set_target, self.config.memory_bytes - size_bytes))

    def set_disk_rates(self, bytes_s: int | None, requests_s: int | None) -> None:
        """Limit what the guest may do with each disk a second; None for no limit."""
        for disk in self._peripherals.disks:
            disk.set_rates(bytes_s, requests_s)

    # What the host asks of the guest, and how its programs reach it. Thread: any.

    def press_power_button(self) -> None:
        """Ask the guest to shut down, as its ACPI power button does.

        What comes of it is the guest's choice: a kernel without ACPI, or a guest in which nobody
        listens for the button, does nothing.
        """
        with self._line_lock:
            self._pulse(layout.POWER_BUTTON_GSI)

    def _pulse(self, gsi: int) -> None:
        with self._end_lock:
            if self._outcome is None:  # afterwards the VM may be gone
                self._hardware.pulse(gsi)

    @property
    def network(self) -> NatBackend | None:
        """The network behind the device, or None; on the loop's thread only."""
        return self._peripherals.network

    def adopt_vsock(self, sock: socket.socket, port: int) -> None:
        """Connect a stream socket to a port of the guest, past the host kernel.

        Its other end reads "OK <host port>\\n" once the guest has accepted, or the end if not.

        Raises:
            OSError: the machine has no vsock of its own.
        """
        if self._peripherals.unix_backend is None:
            sock.close()
            raise OSError(errno.ENODEV, "the machine has no such vsock")
        self.loop.call_soon(partial(self._peripherals.unix_backend.adopt, sock, port))

    def publish_vsock(self, listener: UnixListener | HandedListener) -> None:
        """Have host programs reach the guest through a socket, from now on.

        For a machine whose vsock was made without a path: a restored one lets nobody in before it
        is a machine of its own. The listener is the machine's.
        """
        backend = self._peripherals.unix_backend
        if backend is None:
            listener.close()
        else:
            self.loop.call_soon(lambda: backend.publish(listener))

    def connect_serial(self) -> socket.socket | None:
        """Return a stream to the second serial port, which ends the one before.

        None if the machine was made without such a port.
        """
        port = self._board.serial_port
        return port.connect() if port is not None else None

    def adopt_serial(self, sock: socket.socket) -> None:
        """Connect a program's socket to the second serial port, in place of the one before.

        It is closed if the machine was made without such a port.
        """
        if self._board.serial_port is not None:
            self._board.serial_port.adopt(sock)
        else:
            sock.close()

    def statistics(self) -> MachineStatistics:
        """Return the counts up to now."""
        reached_ns = self._board.boot_timer.reached_ns
        has_booted = reached_ns is not None and self._started_ns is not None
        boot_ns = reached_ns - self._started_ns if has_booted else None  # type: ignore[operator]
        return MachineStatistics(
            self._vcpus.exits(),
            self._vcpus.port_exits(),
            boot_ns,
            reached_ns,
            self._vcpus.cpu_ns(),
            tuple(disk.device.statistics() for disk in self._peripherals.disks),
            self._throttle.statistics(),
            self._balloon_statistics(),
        )

    def _balloon_statistics(self) -> BalloonStatistics | None:
        balloon = self._peripherals.balloon
        if balloon is None:
            return None
        self.loop.call_soon(balloon.ask_statistics)  # for who looks again
        return balloon.statistics()

    # Its end.

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
