"""The registers of a virtio device as values: what its driver wrote, and what it reads.

Most belong to initialisation: features are negotiated, then queues configured, each at its step of
Status and at no other. What a read would return also lies in a page, where there is one, that the
guest reads without an exit.
"""

from __future__ import annotations

from collections.abc import Sequence

from voidbox.errors import ConfigError, GuestError
from voidbox.virtio.device import (
    TRANSPORT_FEATURES,
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VirtioDevice,
)
from voidbox.virtio.mmio_regs import (
    ALL_ONES,
    CHANGING_REGISTERS,
    CONFIG_BYTES_MAX,
    CONSTANT_REGISTERS,
    QUEUE_ADDRESS_REGISTERS,
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_SHM_SEL,
    VIRTIO_MMIO_STATUS,
    MmioState,
    QueueRegisters,
)
from voidbox.virtio.queue import QueueState, Virtqueue

# The steps of Status, and the only ways from one to the next.
ACKNOWLEDGED = VIRTIO_CONFIG_S_ACKNOWLEDGE
NEGOTIATING = ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER
CONFIGURING = NEGOTIATING | VIRTIO_CONFIG_S_FEATURES_OK
RUNNING = CONFIGURING | VIRTIO_CONFIG_S_DRIVER_OK
NEXT_STATUS = {
    0: ACKNOWLEDGED,
    ACKNOWLEDGED: NEGOTIATING,
    NEGOTIATING: CONFIGURING,
    CONFIGURING: RUNNING,
}


class RegisterFile:
    """Thread: any, with its owner's lock held, where nothing else is said.

    Args:
        device: the device behind the registers.
        page: MMIO_REGION_BYTES, kept as the guest reads the registers; or None.

    Attributes:
        offered: the features, the transport's with them.
        status: Status; changed by the owner.
        driver_features: what the driver has accepted.
        interrupt_status: InterruptStatus. Read by any thread, lock or not.
        queues: what the driver wrote about each.
    """

    def __init__(self, device: VirtioDevice, page: memoryview | None) -> None:
        self._device = device
        self._words = page.cast("I") if page is not None else None
        if self._words is not None:
            for offset, value in CONSTANT_REGISTERS.items():
                self._words[offset // 4] = value
            self._words[VIRTIO_MMIO_DEVICE_ID // 4] = device.device_id
        self.offered = device.device_features | TRANSPORT_FEATURES
        self._config_generation = 0
        self.clear()

    def clear(self) -> None:
        """As at the start, and after each reset."""
        self.status = 0
        self._device_features_sel = self._driver_features_sel = 0
        self.driver_features = 0
        self._queue_sel = 0
        self.interrupt_status = 0
        self.queues = [QueueRegisters() for _ in self._device.queue_max_sizes]
        self.publish()
        self.publish_config()

    def publish(self) -> None:
        """Bring the registers that change up to date, where the guest reads them in the page."""
        if self._words is not None:
            for offset in CHANGING_REGISTERS:
                self._words[offset // 4] = self.read(offset) or 0

    def publish_config(self) -> None:
        """Bring the configuration space up to date."""
        if self._words is not None:
            for offset in range(0, CONFIG_BYTES_MAX, 4):
                word = self._device.read_config(offset, 4) & ALL_ONES
                self._words[(VIRTIO_MMIO_CONFIG + offset) // 4] = word

    def set_interrupt_status(self, value: int) -> None:
        """Set InterruptStatus."""
        self.interrupt_status = value
        if self._words is not None:
            self._words[VIRTIO_MMIO_INTERRUPT_STATUS // 4] = value

    def read(self, offset: int) -> int | None:
        """Read a control register; None if there is no such register to read."""
        if offset in CONSTANT_REGISTERS:
            return CONSTANT_REGISTERS[offset]
        if offset == VIRTIO_MMIO_STATUS:
            return self.status
        if offset == VIRTIO_MMIO_CONFIG_GENERATION:
            return self._config_generation
        if offset == VIRTIO_MMIO_INTERRUPT_STATUS:
            return self.interrupt_status
        if offset == VIRTIO_MMIO_DEVICE_ID:
            return self._device.device_id
        if offset == VIRTIO_MMIO_DEVICE_FEATURES:
            selected = self._device_features_sel
            return (self.offered >> 32 * selected) & ALL_ONES if selected < 2 else 0
        if offset in (VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY):
            selected = self._queue_sel
            if selected >= len(self.queues):
                return 0
            if offset == VIRTIO_MMIO_QUEUE_NUM_MAX:
                return self._device.queue_max_sizes[selected]
            return int(self.queues[selected].ready)
        return None

    def write(self, offset: int, value: int) -> bool:
        """Write what belongs to initialisation; False if it may not be written, now or ever."""
        if offset == VIRTIO_MMIO_DEVICE_FEATURES_SEL:
            self._device_features_sel = value
        elif offset == VIRTIO_MMIO_DRIVER_FEATURES_SEL:
            self._driver_features_sel = value
        elif offset == VIRTIO_MMIO_QUEUE_SEL:
            self._queue_sel = value
        elif offset == VIRTIO_MMIO_SHM_SEL:
            pass  # every region reads as absent
        elif offset == VIRTIO_MMIO_DRIVER_FEATURES:
            return self._write_driver_features(value)
        elif self._queue_sel < len(self.queues):
            return self._write_queue(offset, value)
        else:
            return False
        return True

    def _write_driver_features(self, value: int) -> bool:
        if self.status != NEGOTIATING:
            return False
        if self._driver_features_sel > 1:
            return value == 0  # bits above 63 do not exist; a driver may say so
        shift = 32 * self._driver_features_sel
        kept = self.driver_features & ~(ALL_ONES << shift)
        self.driver_features = kept | value << shift
        return True

    def _write_queue(self, offset: int, value: int) -> bool:
        """Write a register of the selected queue; only while queues are being configured."""
        queue = self.queues[self._queue_sel]
        if offset == VIRTIO_MMIO_QUEUE_READY:
            # Linux writes 0 here also after a reset, when it holds already.
            if self.status != CONFIGURING:
                return value == 0 and not queue.ready
            queue = queue._replace(ready=value == 1)
        elif self.status != CONFIGURING or queue.ready:
            return False
        elif offset == VIRTIO_MMIO_QUEUE_NUM:
            queue = queue._replace(size=value)
        elif offset in QUEUE_ADDRESS_REGISTERS:
            field, shift = QUEUE_ADDRESS_REGISTERS[offset]
            kept = getattr(queue, field) & ~(ALL_ONES << shift)
            queue = queue._replace(**{field: kept | value << shift})
        else:
            return False
        self.queues[self._queue_sel] = queue
        return True

    @property
    def are_features_acceptable(self) -> bool:
        """Whether the device can work with what the driver has accepted."""
        accepted = self.driver_features
        return bool(accepted & VIRTIO_F_VERSION_1) and not accepted & ~self.offered

    def queue_states(self) -> tuple[QueueState, ...]:
        """Return the queues as the driver configured them, at index 0.

        Raises:
            GuestError: one is not ready, or too large.
        """
        for idx, (queue, max_size) in enumerate(
            zip(self.queues, self._device.queue_max_sizes, strict=True)
        ):
            if not queue.ready or queue.size > max_size:
                raise GuestError(f"queue {idx} is not ready or larger than {max_size}: {queue}")
        return tuple(
            QueueState(
                size=queue.size,
                desc_gpa=queue.desc_gpa,
                driver_gpa=queue.driver_gpa,
                device_gpa=queue.device_gpa,
                event_idx=bool(self.driver_features & VIRTIO_RING_F_EVENT_IDX),
                indirect=bool(self.driver_features & VIRTIO_RING_F_INDIRECT_DESC),
                next_avail_idx=0,
                next_used_idx=0,
                published_idx=0,
            )
            for queue in self.queues
        )

    def config_changed(self) -> None:
        """The configuration space has changed."""
        self._config_generation = (self._config_generation + 1) & ALL_ONES
        self.publish()
        self.publish_config()

    # Snapshots.

    def state(self, virtqueues: Sequence[Virtqueue]) -> MmioState:
        """Return all of it, and the queues."""
        return MmioState(
            device_id=self._device.device_id,
            status=self.status,
            device_features_sel=self._device_features_sel,
            driver_features_sel=self._driver_features_sel,
            driver_features=self.driver_features,
            queue_sel=self._queue_sel,
            interrupt_status=self.interrupt_status,
            config_generation=self._config_generation,
            queues=tuple(self.queues),
            virtqueues=tuple(queue.state() for queue in virtqueues),
        )

    def restore(self, state: MmioState) -> None:
        """Go on as state() was.

        Raises:
            ConfigError: it is of another device, or one that offered more.
        """
        self._check_state(state)
        self.status = state.status
        self._device_features_sel = state.device_features_sel
        self._driver_features_sel = state.driver_features_sel
        self.driver_features = state.driver_features
        self._queue_sel = state.queue_sel
        self.interrupt_status = state.interrupt_status
        self._config_generation = state.config_generation
        self.queues = list(state.queues)
        self.publish()

    def _check_state(self, state: MmioState) -> None:
        """Refuse what this voidbox could not have come to.

        Raises:
            ConfigError: another device, a feature dropped since, or a queue larger than it can be.
        """
        device = self._device
        if (state.device_id, len(state.queues)) != (device.device_id, len(device.queue_max_sizes)):
            raise ConfigError(
                f"the snapshot holds virtio device {state.device_id} with {len(state.queues)} "
                f"queues where the machine has {device.device_id}: restore it with the same devices"
            )
        what = f"the snapshot's virtio device {state.device_id}"
        missing = state.driver_features & ~self.offered
        if missing and state.status & VIRTIO_CONFIG_S_FEATURES_OK:
            raise ConfigError(
                f"{what} uses features {missing:#x}, which this voidbox does not offer: restore it "
                "with the one that made it"
            )
        for queue, most in zip(state.queues, device.queue_max_sizes, strict=True):
            if queue.ready and queue.size > most:
                raise ConfigError(f"{what} has a queue of {queue.size}, where {most} is the most")
        if len(state.virtqueues) not in (0, len(state.queues)):
            raise ConfigError(f"{what} has {len(state.virtqueues)} queues of {len(state.queues)}")
