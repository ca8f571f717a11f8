"""A machine out of a snapshot: what is looked at before, what is put where, and when.

    machine.bin checked ─► config compared ─► overlays copied ─► memory mapped or read ─► devices
    start: registers, timers, clocks into KVM ─► lines raised ─► loops ─► vCPUs

Time is set last: a restored machine may be kept ready for as long as one likes, and its guest goes
on from the moment that it was saved at.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence

from voidbox.boot import cpuid
from voidbox.errors import ConfigError, HostError
from voidbox.kvm import api
from voidbox.kvm import state as kvm_state
from voidbox.kvm.kvm import Kvm
from voidbox.kvm.vcpu import Vcpu
from voidbox.kvm.vm import Vm
from voidbox.memory import GuestMemory, layout
from voidbox.snapshot import checks, files, folder, working_set
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot import memory as memory_file
from voidbox.snapshot.checks import Host
from voidbox.snapshot.plain import from_plain
from voidbox.snapshot.working_set import Prefetch
from voidbox.storage import durable
from voidbox.virtio.device import VIRTIO_ID_VSOCK
from voidbox.virtio.mmio_regs import MmioState
from voidbox.vmm import vcpus
from voidbox.vmm.config import DiskConfig, MachineConfig
from voidbox.vmm.machine_state import (
    DEVICE_MODEL,
    DiskState,
    MachineState,
    disk_state,
    memory_parts,
    stamp,
    written_file,
)

log = logging.getLogger(__name__)

LAZY, EAGER = "lazy", "eager"


class Restore:
    """A snapshot that a machine is made of. Thread: the machine's caller's.

    Args:
        path: the snapshot's folder.
        config: of the machine; overlays of disks that the snapshot has copies of are made.
        memory: LAZY, to map the file: pages come as the guest touches them, and machines share
            those that they do not write. EAGER, to read it: the guest has huge pages, and nothing
            ties it to the file.

    Attributes:
        state: what machine.bin says.
    Raises:
        ConfigError: it is damaged, of another voidbox, or of another machine.
        HostError: a disk cannot be copied.
    """

    def __init__(self, path: str, config: MachineConfig, memory: str) -> None:
        if memory not in (LAZY, EAGER):
            raise ConfigError(f"memory {memory!r}: choose {LAZY} or {EAGER}")
        self.state = read_state(path)
        _check_config(self.state, config)
        self._folder = path
        self._is_lazy = memory == LAZY
        self._placed: list[str] = []
        self._prefetch: Prefetch | None = None
        self._thread: threading.Thread | None = None
        size_bytes = sum(length for _, length in self.state.memory)
        self._memory_fd = folder.open_memory(path, size_bytes)
        try:
            self._place_disks(config)
        except BaseException:
            self.abort()
            raise

    def _place_disks(self, config: MachineConfig) -> None:
        for index, (saved, disk) in enumerate(zip(self.state.disks, config.disks, strict=True)):
            target = written_file(disk)
            if saved.file and target is not None:
                if saved.file != folder.disk_file(index):
                    raise ConfigError(f"the snapshot is damaged: a disk is called {saved.file!r}")
                copy = os.path.join(self._folder, saved.file)
                os.close(machine_bin.open_own(copy))
                files.clone(copy, target)
                self._placed.append(target)
            _check_disk(saved, disk)

    def make_memory(self) -> GuestMemory:
        """Return the guest's memory; afterwards the file is the mapping's alone.

        Raises:
            HostError: it cannot be mapped, or read.
        """
        size_bytes = sum(length for _, length in self.state.memory)
        if self._is_lazy:
            memory = GuestMemory(size_bytes, file_fd=self._memory_fd)
            self._plan_prefetch(memory)
        else:
            memory = GuestMemory(size_bytes)
            try:
                memory_file.read(self._memory_fd, memory_parts(memory))
            except OSError as error:
                memory.close()
                raise durable.failure("read", f"snapshot {self._folder}", error) from error
        self._close_file()
        return memory

    def _plan_prefetch(self, memory: GuestMemory) -> None:
        known = working_set.load(self._folder)
        if known is not None:
            maps = [(region.file_offset, region.fd, region.map) for region in memory]
            self._prefetch = Prefetch(known, maps)

    def slot(self, index: int) -> MmioState:
        """Return the state of a slot.

        Raises:
            ConfigError: there is none: the snapshot's machine had fewer devices.
        """
        if index >= len(self.state.slots):
            raise ConfigError(
                f"the snapshot is of a machine with {len(self.state.slots)} virtio devices: "
                "ask for the same"
            )
        return self.state.slots[index]

    def check_host(self, kvm: Kvm, vcpu: Vcpu) -> None:
        """See that this host can go on with the machine.

        Raises:
            ConfigError: it cannot: another processor, a feature or a frequency that it lacks.
        """
        for line in checks.check_host(self.state.host, Host.here()):
            log.warning("%s", line)
        saved_vcpus = self.state.kvm.vcpus
        here = vcpus.cpuids(kvm, len(saved_vcpus))
        for saved, offered in zip(saved_vcpus, here, strict=True):
            given = [cpuid.CpuidEntry(*entry) for entry in kvm_state.cpuid_values(saved.cpuid)]
            checks.check_cpuid(given, offered)
            _check_tsc(vcpu.get_tsc_khz(), saved.tsc_khz, kvm)

    def start(self, vm: Vm, handles: Sequence[Vcpu]) -> None:
        """Set all that KVM keeps; time goes on from here. Before any vCPU runs.

        Raises:
            ConfigError: this host's KVM refuses a part of it.
            HostError: an ioctl failed.
        """
        kvm_state.write(vm, handles, self.state.kvm)
        if self._prefetch is not None:
            self._thread = threading.Thread(target=self._prefetch.run, name="voidbox-prefetch")
            try:
                self._thread.start()
            except RuntimeError:  # no thread to be had: the guest fetches its pages by itself
                self._thread = None

    def close(self) -> None:
        """End the fetching. Idempotent. Before the memory is unmapped."""
        if self._prefetch is not None:
            self._prefetch.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close_file()

    def _close_file(self) -> None:
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def abort(self) -> None:
        """The machine did not come to be: remove what was made for it."""
        self.close()
        for path in self._placed:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._placed.clear()


def read_state(path: str) -> MachineState:
    """Return what a snapshot's machine.bin says.

    Raises:
        ConfigError: it is damaged, or of another voidbox.
    """
    values = machine_bin.read(path)
    model = values.get("device_model")
    if model != DEVICE_MODEL:
        raise ConfigError(
            f"snapshot {path}: voidbox {values.get('voidbox')} made it, with devices of version "
            f"{model}; this voidbox has {DEVICE_MODEL}: restore it with the one that made it"
        )
    return from_plain(MachineState, values)


def record_working_set(path: str, memory: GuestMemory, bytes_max: int) -> int:
    """Write down what a restored guest has touched; see Machine.record_working_set."""
    if any(region.fd < 0 for region in memory):
        raise HostError("only a machine whose memory was restored lazily has a working set")
    try:
        found = working_set.observe(memory_parts(memory))
        if found.size_bytes <= bytes_max:
            working_set.save(path, found)
    except OSError as error:
        raise durable.failure("write", path, error) from error
    return found.size_bytes


def _check_config(state: MachineState, config: MachineConfig) -> None:
    """See that a machine of `config` is what was saved, as far as the guest can tell."""
    saved_bytes = sum(length for _, length in state.memory)
    has_vsock = any(slot.device_id == VIRTIO_ID_VSOCK for slot in state.slots)
    for what, saved, wanted in (
        ("MiB of memory", saved_bytes >> 20, config.memory_bytes >> 20),
        ("CPUs", len(state.kvm.vcpus), config.cpus),
        ("disks", len(state.disks), len(config.disks)),
        ("vsock devices", int(has_vsock), int(config.vsock is not None)),
        ("networks", int(state.net is not None), int(config.net is not None)),
        ("second serial ports", int(state.serial_line is not None), int(config.serial_line)),
        ("shared folders", 0, len(config.shares)),
        ("balloons", int(state.balloon is not None), int(config.balloon)),
    ):
        if saved != wanted:
            raise ConfigError(
                f"the snapshot is of a machine with {saved} {what}, not {wanted}: "
                "ask for the same, or boot a new machine"
            )
    if state.memory != tuple(layout(config.memory_bytes)):
        raise ConfigError("the snapshot's memory is laid out in another way: make it anew")
    if state.net is not None and config.net and state.net.addresses != config.net.network:
        raise ConfigError("the snapshot's guest has other network addresses: give it the same")


def _check_disk(state: DiskState, config: DiskConfig) -> None:
    what = f"disk {config.path}"
    now = disk_state(config, 0, stays=state.stays is not None)
    if now[:3] != state[:3]:
        raise ConfigError(
            f"{what}: the snapshot's has {state.size_bytes} bytes, is "
            f"{'only read' if state.is_read_only else 'written'} and has "
            f"{'an' if state.is_overlay else 'no'} overlay: give it the same"
        )
    if now.base_digest != state.base_digest:
        raise ConfigError(f"{what}: it is not the one that the snapshot's guest had, or changed")
    if state.stays is not None and stamp(config) != state.stays:
        raise ConfigError(f"{what}: it was changed since the machine was suspended: boot it anew")


def _check_tsc(khz: int, saved_khz: int, kvm: Kvm) -> None:
    is_same = kvm_state.is_same_frequency(khz, saved_khz)
    if not is_same and not kvm.check_extension(api.KVM_CAP_TSC_CONTROL):
        raise ConfigError(
            f"the snapshot's TSC runs at {saved_khz} kHz, this host's at {khz}, and it cannot "
            "scale: restore it on a host of the same kind"
        )
