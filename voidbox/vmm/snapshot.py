"""Snapshots of machines: what is collected, in which order, and what a restore is checked for.

    pause ─► devices stand still ─► loop parked ─┬► state of devices and KVM ─┐
                                                 └► fork of the helper        ├► resume
    helper writes memory ◄── disks are copied, each held until it is ◄────────┘
    machine.bin ─► all on the disk ─► renamed

Until the rename there is no snapshot, and whatever fails, the machine goes on as it was.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError, HostError
from voidbox.event_loop import EventLoop
from voidbox.kvm import state as kvm_state
from voidbox.named_tuple import NamedTuple
from voidbox.snapshot import files, folder
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot import memory as memory_file
from voidbox.snapshot.checks import Host
from voidbox.snapshot.helper import Helper
from voidbox.snapshot.plain import to_plain
from voidbox.storage import durable
from voidbox.version import __version__
from voidbox.vmm.board import Board
from voidbox.vmm.config import DiskConfig, MachineConfig
from voidbox.vmm.hardware import Hardware
from voidbox.vmm.machine_state import (
    DEVICE_MODEL,
    DiskState,
    MachineState,
    NetState,
    VsockState,
    disk_state,
    memory_parts,
    stamp,
    written_file,
)
from voidbox.vmm.peripherals import Peripherals

if TYPE_CHECKING:
    from voidbox.nat.backend import NatBackend

_PARK_S = 15.0


class SnapshotReport(NamedTuple):
    """What a snapshot took.

    Attributes:
        pause_ns: how long the machine stood still, or 0 if it did anyway.
        fork_ns: of that, the fork.
        total_ns: until the snapshot was there.
        memory_bytes: of data in the memory file; all else is holes.
        disk_bytes: copied, where the file system does not share blocks.
    """

    pause_ns: int
    fork_ns: int
    total_ns: int
    memory_bytes: int
    disk_bytes: int


class Parts(NamedTuple):
    """What of a machine a snapshot is made of."""

    config: MachineConfig
    hardware: Hardware
    board: Board
    peripherals: Peripherals
    loop: EventLoop
    line_lock: threading.Lock


class Control(NamedTuple):
    """How a snapshot has the machine stand still and go on.

    Attributes:
        lock: held by whoever pauses or resumes; the same thread may take it again.
        is_paused, pause, resume: the machine's.
        resume_but_disks: lets go on what is not a disk.
        end: ends the machine.
    """

    lock: contextlib.AbstractContextManager[bool]
    is_paused: Callable[[], bool]
    pause: Callable[[], None]
    resume: Callable[[], None]
    resume_but_disks: Callable[[], None]
    end: Callable[[], None]


# Making one.


def take(
    parts: Parts,
    control: Control,
    path: str,
    *,
    stop: bool,
    disks_stay: bool,
    extra: Mapping[str, bytes],
    timeout_s: float,
    on_frozen: Callable[[], object],
) -> SnapshotReport:
    """Make a snapshot; see Machine.snapshot."""
    started_ns = time.perf_counter_ns()
    if disks_stay and not stop:
        raise ConfigError("disks can stay where they are only if the machine stops: copy them")
    _refuse_what_cannot_be_kept(parts.config, disks_stay)
    draft = folder.Draft(path)
    try:
        taking = _Taking(parts, control, draft, stop, disks_stay, timeout_s, on_frozen)
        report = taking.run(extra)
    except BaseException:
        draft.abort()
        raise
    return report._replace(total_ns=time.perf_counter_ns() - started_ns)


def _refuse_what_cannot_be_kept(config: MachineConfig, disks_stay: bool) -> None:
    if config.shares:
        raise ConfigError(
            f"the machine shares {config.shares[0].path} with its guest, whose open files cannot "
            "be kept: copy the folder into the guest instead of sharing it"
        )
    for disk in config.disks:
        if not (disk.is_read_only or written_file(disk) is not None or disks_stay):
            raise ConfigError(
                f"disk {disk.path} is written itself, and a copy of the machine would write it "
                "too: give it an overlay (,overlay=FILE), or suspend the machine"
            )


class _Taking:
    """One snapshot in the making. Thread: the caller's."""

    def __init__(
        self,
        parts: Parts,
        control: Control,
        draft: folder.Draft,
        stop: bool,
        disks_stay: bool,
        timeout_s: float,
        on_frozen: Callable[[], object],
    ) -> None:
        self._parts = parts
        self._on_frozen = on_frozen
        self._control = control
        self._draft = draft
        self._stop = stop
        self._disks_stay = disks_stay
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._pause_ns = self._paused_at_ns = 0
        self._was_paused = False
        self._helper: Helper | None = None

    def run(self, extra: Mapping[str, bytes]) -> SnapshotReport:
        """Make all files; a machine that is to end does so when they are there."""
        try:
            path = self._draft.file(memory_file.NAME)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if self._stop:
                    return self._suspend(fd, extra)
                state, disk_bytes, helper = self._fork(fd)
                self._on_frozen()
                memory_bytes = helper.wait(self._left_s())
            finally:
                os.close(fd)
                if self._helper is not None:
                    self._helper.close()
            self._finish(state, extra)
        except OSError as error:
            raise durable.failure("write", f"snapshot {self._draft.path}", error) from error
        return SnapshotReport(self._pause_ns, helper.fork_ns, 0, memory_bytes, disk_bytes)

    def _suspend(self, fd: int, extra: Mapping[str, bytes]) -> SnapshotReport:
        """Write everything while the machine stands still, and end it."""
        parts = self._parts
        with self._standing_still() as collected:
            memory_bytes = memory_file.write(
                fd, memory_parts(parts.hardware.memory), self._check_deadline
            )
            disk_bytes = self._copy_disks(collected.disks)
            disks = tuple(map(_stamped, collected.disks, parts.config.disks))
            self._finish(collected._replace(disks=disks), extra)
            self._control.end()
        return SnapshotReport(0, 0, 0, memory_bytes, disk_bytes)

    def _fork(self, fd: int) -> tuple[MachineState, int, Helper]:
        """Have a helper write the memory; returns when the machine goes on, its disks too."""
        with self._standing_still(
            lambda: Helper(fd, memory_parts(self._parts.hardware.memory))
        ) as state:
            helper = self._helper
            assert helper is not None
            if not self._was_paused:
                self._control.resume_but_disks()
                self._pause_ns = time.perf_counter_ns() - self._paused_at_ns
            return state, self._copy_disks(state.disks), helper

    @contextlib.contextmanager
    def _standing_still(self, fork: Callable[[], Helper] | None = None) -> Iterator[MachineState]:
        """Pause the machine and collect its state; it goes on after the block, come what may."""
        parts, control = self._parts, self._control
        # All that does not change is looked at while the machine still runs.
        disks, host, msrs = self._disks(), Host.here(), kvm_state.saved_msrs(parts.hardware.kvm)
        with control.lock:  # nobody else resumes it meanwhile
            self._was_paused = control.is_paused()
            self._paused_at_ns = time.perf_counter_ns()
            try:
                control.pause()
                with parked(parts.loop), parts.line_lock:
                    state = collect(parts, disks, host, msrs)
                    self._helper = fork() if fork is not None else None
                yield state
            finally:
                if not self._was_paused:
                    control.resume()

    def _finish(self, state: MachineState, extra: Mapping[str, bytes]) -> None:
        """Write what is left, and give the snapshot its name."""
        content = machine_bin.encode(to_plain(state))
        for name, data in ((machine_bin.NAME, content), *extra.items()):
            files.write(self._draft.file(name), data)
        self._draft.commit()

    def _left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _check_deadline(self) -> None:
        if not self._left_s():
            raise HostError(f"the snapshot was not made within {self._timeout_s:g} s")

    def _disks(self) -> tuple[DiskState, ...]:
        return tuple(
            disk_state(config, index, self._disks_stay)
            for index, config in enumerate(self._parts.config.disks)
        )

    def _copy_disks(self, disks: Sequence[DiskState]) -> int:
        """Copy the disks, which stand still; once they are flushed, their files hold all."""
        copied = 0
        for index, (state, config) in enumerate(zip(disks, self._parts.config.disks, strict=True)):
            if state.is_read_only:
                continue
            self._parts.peripherals.disks[index].flush()
            source = written_file(config)
            if state.file and source is not None:
                copied += files.clone(source, self._draft.file(state.file))
            self._check_deadline()
        return copied


def _stamped(state: DiskState, config: DiskConfig) -> DiskState:
    return state._replace(stays=stamp(config)) if state.stays is not None else state


def collect(
    parts: Parts, disks: tuple[DiskState, ...], host: Host, msrs: Sequence[int]
) -> MachineState:
    """Return the state of a paused machine whose loop is parked.

    Raises:
        ConfigError: the guest does what cannot be kept.
        HostError: a device is at work all the same, or KVM failed.
    """
    hardware, board, peripherals = parts.hardware, parts.board, parts.peripherals
    backend, serial_line = peripherals.unix_backend, board.serial_line
    # Devices first: what they still owe the guest is in the interrupt controllers then.
    slots = peripherals.slots.states()
    return MachineState(
        device_model=DEVICE_MODEL,
        voidbox=__version__,
        made_ns=time.time_ns(),
        host=host,
        memory=tuple((region.gpa, region.size_bytes) for region in hardware.memory),
        console=board.uart.state(),
        serial_line=serial_line.state() if serial_line is not None else None,
        rtc=board.rtc.state(),
        pci_address=board.pci.state(),
        slots=slots,
        disks=disks,
        vsock=VsockState(backend.next_port) if backend is not None else None,
        net=_net_state(parts.config, peripherals.network),
        balloon=peripherals.balloon.state() if peripherals.balloon is not None else None,
        kvm=kvm_state.read(hardware.vm, hardware.vcpus, msrs),
    )


def _net_state(config: MachineConfig, network: NatBackend | None) -> NetState | None:
    if config.net is None or network is None:
        return None
    return NetState(config.net.network, network.flow_states())


@contextlib.contextmanager
def parked(loop: EventLoop) -> Iterator[None]:
    """Keep a loop from doing anything in the block. Thread: any but the loop.

    Raises:
        HostError: it did not come to a halt.
    """
    is_there, is_over = threading.Event(), threading.Event()

    def park() -> None:
        is_there.set()
        is_over.wait()

    loop.call_soon(park)
    try:
        if not is_there.wait(_PARK_S):
            raise HostError(f"the machine's loop did not come to a halt in {_PARK_S:g} s")
        yield
    finally:
        is_over.set()
