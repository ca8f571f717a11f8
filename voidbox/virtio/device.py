"""What a virtio device and its transport promise each other, and the constants both use.

A device module (net, vsock, rng …) implements `VirtioDevice` and knows queues and requests; the
transport knows registers, feature negotiation, interrupts and the device status. The transport
calls everything but the configuration accessors on the loop thread, so a device needs no lock of
its own for its queues.

A device that takes chains follows one pattern, always with a budget, so that a
driver on another vCPU that keeps adding chains cannot hold the loop:

    queue.disable_notification()
    while budget and (chain := queue.next_chain()) is not None:
        queue.add_used(chain.head_idx, process(chain))
    if queue.publish():
        transport.interrupt_queues()
    if budget_is_spent or queue.enable_notification():
        transport.defer(the_same_again)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from voidbox.virtio.queue import Virtqueue

# linux/virtio_ids.h
VIRTIO_ID_NET = 1
VIRTIO_ID_BLOCK = 2
VIRTIO_ID_CONSOLE = 3
VIRTIO_ID_RNG = 4
VIRTIO_ID_BALLOON = 5
VIRTIO_ID_VSOCK = 19
VIRTIO_ID_FS = 26

# linux/virtio_config.h
VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
VIRTIO_CONFIG_S_DRIVER = 2
VIRTIO_CONFIG_S_DRIVER_OK = 4
VIRTIO_CONFIG_S_FEATURES_OK = 8
VIRTIO_CONFIG_S_NEEDS_RESET = 0x40
VIRTIO_CONFIG_S_FAILED = 0x80

# Feature bits, as masks. The transport offers these three for every device.
VIRTIO_RING_F_INDIRECT_DESC = 1 << 28
VIRTIO_RING_F_EVENT_IDX = 1 << 29
VIRTIO_F_VERSION_1 = 1 << 32
TRANSPORT_FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC


class Transport(Protocol):
    """What a device may ask of its transport. Thread: any, unless a method says otherwise."""

    def interrupt_queues(self) -> None:
        """Tell the driver that used buffers were published, as `Virtqueue.publish()` asked."""
        ...

    def interrupt_config(self, change: Callable[[], None] | None = None) -> None:
        """Tell the driver that the configuration space changed.

        Args:
            change: makes the change, atomically with the new ConfigGeneration, so that a driver
                that reads a wide field in halves notices. It must not call the transport.
        """
        ...

    def needs_reset(self, reason: str) -> None:
        """Stop the device until the driver resets it: the driver broke the specification."""
        ...

    def run(self, work: Callable[[], None]) -> None:
        """Run device work that no kick started: a socket became ready, a timer fired.

        Does nothing while the device is not live; a GuestError that leaves `work` becomes
        needs_reset(), as it does for `queue_notify`. Thread: loop.
        """
        ...

    def defer(self, work: Callable[[], None]) -> None:
        """Have the loop `run(work)` after what is now waiting: the rest of a bounded pass."""
        ...


class VirtioDevice(Protocol):
    """One virtio device, whatever its transport."""

    @property
    def device_id(self) -> int:
        """VIRTIO_ID_*."""
        ...

    @property
    def device_features(self) -> int:
        """The device's own feature bits as a mask; the transport adds TRANSPORT_FEATURES."""
        ...

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """One power of two for each queue. The driver has to set up every queue."""
        ...

    def read_config(self, offset: int, width: int) -> int:
        """Read the device's configuration space; see `config_value()`. Thread: vcpu.

        Called with the transport's lock held: it must neither block nor call the transport.
        """
        ...

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Write the configuration space; a device without writable fields ignores it.

        Thread: vcpu.
        """
        ...

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        """The driver is ready (DRIVER_OK): start to use the queues. Thread: loop.

        After it every queue is notified once, for the driver may have kicked already.
        """
        ...

    def queue_notify(self, queue_idx: int) -> None:
        """The driver kicked a queue, or may have. Thread: loop."""
        ...

    def pause(self) -> None:
        """Finish what is under way: no chain is taken that was not returned, no interrupt owed.

        Until resume(), or a reset, the device touches neither rings nor guest memory: the
        transport calls nothing, and what else the device has running it stops. Thread: loop.

        Raises:
            HostError: it cannot, now; resume() is called all the same.
        """
        ...

    def resume(self) -> None:
        """Go on after pause(); every queue is notified afterwards. Thread: loop."""
        ...

    def reset(self) -> None:
        """Forget transport and queues; activate() may come again. Thread: loop.

        The queues are closed afterwards, and the driver may reuse their memory at once.
        """
        ...


def config_value(config: bytes, offset: int, width: int) -> int:
    """Return a little-endian field of a configuration space; what lies past its end is zero."""
    return int.from_bytes(config[offset : offset + width], "little")
