"""The virtio-mmio register map, version 2 (VirtIO 1.2 §4.2.2), and the plain state behind it."""

from __future__ import annotations

from typing import Annotated

from voidbox.named_tuple import NamedTuple
from voidbox.virtio.queue import QueueState

# linux/virtio_mmio.h
VIRTIO_MMIO_MAGIC_VALUE = 0x000
VIRTIO_MMIO_VERSION = 0x004
VIRTIO_MMIO_DEVICE_ID = 0x008
VIRTIO_MMIO_VENDOR_ID = 0x00C
VIRTIO_MMIO_DEVICE_FEATURES = 0x010
VIRTIO_MMIO_DEVICE_FEATURES_SEL = 0x014
VIRTIO_MMIO_DRIVER_FEATURES = 0x020
VIRTIO_MMIO_DRIVER_FEATURES_SEL = 0x024
VIRTIO_MMIO_QUEUE_SEL = 0x030
VIRTIO_MMIO_QUEUE_NUM_MAX = 0x034
VIRTIO_MMIO_QUEUE_NUM = 0x038
VIRTIO_MMIO_QUEUE_READY = 0x044
VIRTIO_MMIO_QUEUE_NOTIFY = 0x050
VIRTIO_MMIO_INTERRUPT_STATUS = 0x060
VIRTIO_MMIO_INTERRUPT_ACK = 0x064
VIRTIO_MMIO_STATUS = 0x070
VIRTIO_MMIO_QUEUE_DESC_LOW = 0x080
VIRTIO_MMIO_QUEUE_DESC_HIGH = 0x084
VIRTIO_MMIO_QUEUE_AVAIL_LOW = 0x090
VIRTIO_MMIO_QUEUE_AVAIL_HIGH = 0x094
VIRTIO_MMIO_QUEUE_USED_LOW = 0x0A0
VIRTIO_MMIO_QUEUE_USED_HIGH = 0x0A4
VIRTIO_MMIO_SHM_SEL = 0x0AC
VIRTIO_MMIO_SHM_LEN_LOW = 0x0B0
VIRTIO_MMIO_SHM_LEN_HIGH = 0x0B4
VIRTIO_MMIO_SHM_BASE_LOW = 0x0B8
VIRTIO_MMIO_SHM_BASE_HIGH = 0x0BC
VIRTIO_MMIO_QUEUE_RESET = 0x0C0  # §4.2.2; not yet in Debian 12's header
VIRTIO_MMIO_CONFIG_GENERATION = 0x0FC
VIRTIO_MMIO_CONFIG = 0x100

VIRTIO_MMIO_INT_VRING = 1
VIRTIO_MMIO_INT_CONFIG = 2

MMIO_REGION_BYTES = 0x1000
MAGIC = int.from_bytes(b"virt", "little")
VERSION = 2
VENDOR_ID = int.from_bytes(b"VOID", "little")

ALL_ONES = 0xFFFF_FFFF

CONSTANT_REGISTERS = {
    VIRTIO_MMIO_MAGIC_VALUE: MAGIC,
    VIRTIO_MMIO_VERSION: VERSION,
    VIRTIO_MMIO_VENDOR_ID: VENDOR_ID,
    # No shared memory regions: §4.2.2 has length and base of an absent one read as -1.
    VIRTIO_MMIO_SHM_LEN_LOW: ALL_ONES,
    VIRTIO_MMIO_SHM_LEN_HIGH: ALL_ONES,
    VIRTIO_MMIO_SHM_BASE_LOW: ALL_ONES,
    VIRTIO_MMIO_SHM_BASE_HIGH: ALL_ONES,
    # VIRTIO_F_RING_RESET is not offered, so no queue is ever being reset.
    VIRTIO_MMIO_QUEUE_RESET: 0,
}

CHANGING_REGISTERS = (  # of those that can be read
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_CONFIG_GENERATION,
)
# No device's configuration space is larger (net's has 24 bytes); what follows reads as 0.
CONFIG_BYTES_MAX = 64

# Address register → field of QueueRegisters, and the half it sets.
QUEUE_ADDRESS_REGISTERS = {
    VIRTIO_MMIO_QUEUE_DESC_LOW: ("desc_gpa", 0),
    VIRTIO_MMIO_QUEUE_DESC_HIGH: ("desc_gpa", 32),
    VIRTIO_MMIO_QUEUE_AVAIL_LOW: ("driver_gpa", 0),
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH: ("driver_gpa", 32),
    VIRTIO_MMIO_QUEUE_USED_LOW: ("device_gpa", 0),
    VIRTIO_MMIO_QUEUE_USED_HIGH: ("device_gpa", 32),
}


class QueueRegisters(NamedTuple):
    """What the driver wrote about one queue."""

    size: int = 0
    desc_gpa: int = 0
    driver_gpa: int = 0
    device_gpa: int = 0
    ready: bool = False


Register = Annotated[int, 32]  # bits; see snapshot.plain


class MmioState(NamedTuple):
    """The transport at rest, for a snapshot. `virtqueues` is empty unless the device is live."""

    device_id: Register
    status: Register
    device_features_sel: Register
    driver_features_sel: Register
    driver_features: int
    queue_sel: Register
    interrupt_status: Register
    config_generation: Register
    queues: tuple[QueueRegisters, ...]
    virtqueues: tuple[QueueState, ...]


class MmioStatistics(NamedTuple):
    """Counters since the transport was made."""

    notifications: int
    interrupts: int
    resets: int
    refused_accesses: int
    reset_reason: str
