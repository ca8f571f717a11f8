"""How a driver starts a virtio-mmio device (section 3.1.1), for benchmarks without a guest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.mmio_regs import (
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS,
)

_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK = 1, 2, 4, 8


class Rings(NamedTuple):
    """Where the parts of a queue are, and how many descriptors it has."""

    size: int
    desc_gpa: int
    avail_gpa: int
    used_gpa: int


def start(transport: MmioTransport, features: int, queues: Iterable[Rings]) -> None:
    """Negotiate features, and say where the queues are."""
    write = transport.write
    status = 0
    for bit in (_ACKNOWLEDGE, _DRIVER):
        status |= bit
        write(VIRTIO_MMIO_STATUS, 4, status)
    for half in (0, 1):
        write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 4, half)
        write(VIRTIO_MMIO_DRIVER_FEATURES, 4, features >> 32 * half & 0xFFFF_FFFF)
    write(VIRTIO_MMIO_STATUS, 4, status | _FEATURES_OK)
    for queue_idx, rings in enumerate(queues):
        write(VIRTIO_MMIO_QUEUE_SEL, 4, queue_idx)
        write(VIRTIO_MMIO_QUEUE_NUM, 4, rings.size)
        write(VIRTIO_MMIO_QUEUE_DESC_LOW, 4, rings.desc_gpa)
        write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 4, rings.avail_gpa)
        write(VIRTIO_MMIO_QUEUE_USED_LOW, 4, rings.used_gpa)
        write(VIRTIO_MMIO_QUEUE_READY, 4, 1)
    write(VIRTIO_MMIO_STATUS, 4, status | _FEATURES_OK | _DRIVER_OK)
