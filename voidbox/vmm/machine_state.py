"""What machine.bin says of a machine, and what of it is told by looking at its disks and memory."""

from __future__ import annotations

import os

from voidbox.devices.rtc import RtcState
from voidbox.devices.serial import SerialState
from voidbox.kvm.state import VmState
from voidbox.kvm.vm import host_address
from voidbox.memory import GuestMemory
from voidbox.named_tuple import NamedTuple
from voidbox.net.addresses import NetworkConfig
from voidbox.net.flow_state import FlowState
from voidbox.snapshot.checks import Host
from voidbox.snapshot.folder import disk_file
from voidbox.snapshot.memory import Part
from voidbox.virtio.balloon import BalloonState
from voidbox.virtio.mmio_regs import MmioState
from voidbox.vmm.config import DiskConfig

# One more whenever registers, slots, features or ACPI tables change: a guest keeps what it found.
DEVICE_MODEL = 3


class DiskState(NamedTuple):
    """A disk in a snapshot.

    Attributes:
        base_digest: of the ends of what is only read; empty for an image that is written itself.
        file: its copy beside machine.bin, or empty.
        stays: size and mtime_ns of the file that was left where it is; or None.
    """

    size_bytes: int
    is_read_only: bool
    is_overlay: bool
    base_digest: bytes
    file: str
    stays: tuple[int, int] | None


class VsockState(NamedTuple):
    """The socket device's backend; see Muxer.next_port."""

    next_port: int


class NetState(NamedTuple):
    """The network behind the device: the addresses that the guest has, and its connections."""

    addresses: NetworkConfig
    flows: tuple[FlowState, ...]


class MachineState(NamedTuple):
    """All of machine.bin.

    Attributes:
        device_model: DEVICE_MODEL of the voidbox that made it.
        voidbox: its version, for people.
        made_ns: time.time_ns() of the pause.
        memory: (gpa, bytes) of each region, in the memory file's order.
        slots: of the virtio devices, in the machine's order.
    """

    device_model: int
    voidbox: str
    made_ns: int
    host: Host
    memory: tuple[tuple[int, int], ...]
    kvm: VmState
    console: SerialState
    serial_line: SerialState | None
    rtc: RtcState
    pci_address: int
    slots: tuple[MmioState, ...]
    disks: tuple[DiskState, ...]
    vsock: VsockState | None
    net: NetState | None
    balloon: BalloonState | None


def disk_state(config: DiskConfig, index: int, stays: bool) -> DiskState:
    """Return what a snapshot says of a disk; `index` names its copy.

    Args:
        stays: what the guest writes is not copied, but compared with `stamp` at the restore.
    Raises:
        ConfigError: it cannot be read.
    """
    from voidbox.block.image import open_image  # a machine without disks starts sooner
    from voidbox.block.overlay_format import identify

    is_written = not config.is_read_only
    is_overlay = config.overlay is not None
    is_copied = is_written and not stays and written_file(config) is not None
    digest = b""
    size = os.path.getsize(config.path)
    if is_overlay or not is_written:
        image = open_image(config.path, is_read_only=True)
        try:
            digest, size = identify(image).digest, image.size_bytes
        finally:
            os.close(image.fd)
    return DiskState(
        size_bytes=size,
        is_read_only=config.is_read_only,
        is_overlay=is_overlay,
        base_digest=digest,
        file=disk_file(index) if is_copied else "",
        stays=(0, 0) if is_written and stays else None,
    )


def written_file(config: DiskConfig) -> str | None:
    """Return the file of the machine's own that the guest writes; None if it has no such."""
    return config.overlay or (config.path if config.is_own else None)


def stamp(config: DiskConfig) -> tuple[int, int]:
    """Return size and mtime of what the guest writes."""
    status = os.stat(config.overlay or config.path)
    return status.st_size, status.st_mtime_ns


def memory_parts(memory: GuestMemory) -> list[Part]:
    """Return the regions as the memory file has them: back to back."""
    parts = []
    offset = 0
    for region in memory:
        base_fd = -1 if region.is_shared else region.fd
        address = host_address(region.map)
        parts.append(Part(region.view, address, offset, base_fd, region.file_offset))
        offset += region.size_bytes
    return parts
