"""The virtio-mmio transport, register layout version 2 (VirtIO 1.2 §4.2).

A driver brings a device up by writing one more bit to Status each time; anything else is refused,
and what a step opens is closed again by the next:

    0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK      0 written at any time: reset
                          │            │             │
                   DriverFeatures   Queue*     QueueNotify, interrupts

Reads may never come here: what they would return also lies in a page that the machine can map into
the guest, read-only. InterruptAck may come late: the machine can have KVM queue such writes. Then
an interrupt costs the guest no exit; else it is two.

Who runs where. Registers are touched by vCPU threads. The device runs on the loop thread alone:
DRIVER_OK schedules its activation there, and a reset waits for the loop, because a driver reuses
the rings' memory right after it wrote 0. Interrupts may be asked for by any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from voidbox.errors import ConfigError, GuestError, HostError
from voidbox.memory import GuestMemory
from voidbox.virtio.device import (
    TRANSPORT_FEATURES,
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
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
    VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_SHM_SEL,
    VIRTIO_MMIO_STATUS,
    MmioState,
    MmioStatistics,
    QueueRegisters,
)
from voidbox.virtio.queue import QueueState, Virtqueue

log = logging.getLogger(__name__)

# How long a vCPU that resets the device waits for the loop. Beyond it, Status stays non-zero until
# the loop gets there, and §2.4 has drivers wait for that 0; Linux over MMIO does not wait.
RESET_WAIT_S = 5.0

_ACKNOWLEDGED = VIRTIO_CONFIG_S_ACKNOWLEDGE
_NEGOTIATING = _ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER
_CONFIGURING = _NEGOTIATING | VIRTIO_CONFIG_S_FEATURES_OK
_RUNNING = _CONFIGURING | VIRTIO_CONFIG_S_DRIVER_OK
_NEXT_STATUS = {
    0: _ACKNOWLEDGED,
    _ACKNOWLEDGED: _NEGOTIATING,
    _NEGOTIATING: _CONFIGURING,
    _CONFIGURING: _RUNNING,
}


class MmioTransport:
    """The registers of one virtio device: a BusDevice to the bus, a Transport to the device.

    Args:
        device: the device behind the registers.
        memory: the guest's RAM, where the rings are.
        pulse_irq: asserts and deasserts the device's interrupt line. Any thread.
        loop_call_soon: has the loop thread call a function, in the order of the calls. Any thread.
        page: MMIO_REGION_BYTES, kept as the guest reads the registers.
        perform_writes: performs the guest's writes that are still queued. Any thread.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        pulse_irq: Callable[[], None],
        loop_call_soon: Callable[[Callable[[], None]], None],
        page: memoryview | None = None,
        perform_writes: Callable[[], None] = lambda: None,
    ) -> None:
        self._device = device
        self._words = page.cast("I") if page is not None else None
        if self._words is not None:
            for offset, value in CONSTANT_REGISTERS.items():
                self._words[offset // 4] = value
            self._words[VIRTIO_MMIO_DEVICE_ID // 4] = device.device_id
        self._perform_writes = perform_writes
        self._memory = memory
        self._pulse_irq = pulse_irq
        self._call_soon = loop_call_soon
        self._offered = device.device_features | TRANSPORT_FEATURES

        # The one lock. It guards the fields down to the next comment and is innermost: with it
        # held nothing is called but the device's read_config and interrupt_config's `change`.
        self._lock = threading.Lock()
        self._config_generation = 0
        self._clear_registers()
        self._resetting = False  # from the driver's write of 0 until the device has stopped
        self._running = False  # the device is live and neither side gave up
        self._kicked: set[int] = set()  # queues whose notify() is on its way to the loop
        self._reset_reason = ""
        self._interrupts = self._resets = self._refused = 0

        # The loop thread's own.
        self._loop_thread_id: int | None = None
        self._active = False  # device.activate() was called, and reset() since then was not
        self._is_paused = False
        self._waiting: dict[Callable[[], None], None] = {}  # work that came while it was paused
        self._virtqueues: list[Virtqueue] = []
        self._restored: tuple[QueueState, ...] = ()
        self._notifications = 0
        self._kicks = [partial(device.queue_notify, n) for n in range(len(device.queue_max_sizes))]

    def _clear_registers(self) -> None:
        self._status = 0
        self._device_features_sel = self._driver_features_sel = 0
        self._driver_features = 0
        self._queue_sel = 0
        self._interrupt_status = 0
        self._queues = [QueueRegisters() for _ in self._device.queue_max_sizes]
        self._publish()
        self._publish_config()

    # The page. The lock is held.

    def _publish(self) -> None:
        """Bring the registers that change up to date."""
        if self._words is not None:
            for offset in CHANGING_REGISTERS:
                self._words[offset // 4] = self._read_register(offset) or 0

    def _publish_config(self) -> None:
        if self._words is not None:
            for offset in range(0, CONFIG_BYTES_MAX, 4):
                word = self._device.read_config(offset, 4) & ALL_ONES
                self._words[(VIRTIO_MMIO_CONFIG + offset) // 4] = word

    def _set_interrupt_status(self, value: int) -> None:
        self._interrupt_status = value
        if self._words is not None:
            self._words[VIRTIO_MMIO_INTERRUPT_STATUS // 4] = value

    # Registers. Thread: vcpu.

    def read(self, offset: int, width: int) -> int:
        """Read a register or the configuration space; what is not there reads as zero."""
        if offset >= VIRTIO_MMIO_CONFIG:
            with self._lock:
                value = self._device.read_config(offset - VIRTIO_MMIO_CONFIG, width)
            return value & ((1 << 8 * width) - 1)
        if offset == VIRTIO_MMIO_INTERRUPT_STATUS and width == 4:  # the one that is read often
            return self._interrupt_status
        register = self._read_register(offset) if width == 4 else None
        if register is None:
            self._count_refused()
            return 0
        return register

    def _read_register(self, offset: int) -> int | None:
        """Read a control register; None if there is no such register to read."""
        if offset in CONSTANT_REGISTERS:
            return CONSTANT_REGISTERS[offset]
        if offset == VIRTIO_MMIO_STATUS:
            return self._status
        if offset == VIRTIO_MMIO_CONFIG_GENERATION:
            return self._config_generation
        if offset == VIRTIO_MMIO_INTERRUPT_STATUS:
            return self._interrupt_status
        if offset == VIRTIO_MMIO_DEVICE_ID:
            return self._device.device_id
        if offset == VIRTIO_MMIO_DEVICE_FEATURES:
            selected = self._device_features_sel
            return (self._offered >> 32 * selected) & ALL_ONES if selected < 2 else 0
        if offset in (VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY):
            selected = self._queue_sel
            if selected >= len(self._queues):
                return 0
            if offset == VIRTIO_MMIO_QUEUE_NUM_MAX:
                return self._device.queue_max_sizes[selected]
            return int(self._queues[selected].ready)
        return None

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register or the configuration space; what may not be written is ignored."""
        if offset >= VIRTIO_MMIO_CONFIG:
            accepted = self._write_config(offset - VIRTIO_MMIO_CONFIG, width, value)
        elif width != 4:
            accepted = False
        elif offset == VIRTIO_MMIO_INTERRUPT_ACK:
            with self._lock:
                self._set_interrupt_status(self._interrupt_status & ~value)
            accepted = True
        elif offset == VIRTIO_MMIO_QUEUE_NOTIFY:
            accepted = self._write_queue_notify(value)
        elif offset == VIRTIO_MMIO_STATUS:
            accepted = self._write_status(value)
        else:
            with self._lock:
                accepted = self._write_setup(offset, value & ALL_ONES)
                self._publish()
        if not accepted:
            self._count_refused()

    def _count_refused(self) -> None:
        with self._lock:
            self._refused += 1

    def _write_config(self, offset: int, width: int, value: int) -> bool:
        given_up = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED
        if not self._status & VIRTIO_CONFIG_S_DRIVER or self._status & given_up:
            return False
        try:
            self._device.write_config(offset, width, value)
        except GuestError as error:
            self.needs_reset(str(error))
        with self._lock:
            self._publish_config()
        return True

    def _write_queue_notify(self, queue_idx: int) -> bool:
        """Take a kick that no ioeventfd took. One per queue waits in the loop, however many come.

        A guest can write faster than the loop works, and must not make its queue of calls grow.
        """
        with self._lock:
            if queue_idx >= len(self._queues) or not self._running:
                return False
            if queue_idx in self._kicked:
                return True
            self._kicked.add(queue_idx)

        def deliver() -> None:
            with self._lock:
                self._kicked.discard(queue_idx)
            self.notify(queue_idx)

        self._call_soon(deliver)
        return True

    def _write_setup(self, offset: int, value: int) -> bool:
        """Write what belongs to initialisation. The lock is held."""
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
        elif self._queue_sel < len(self._queues):
            return self._write_queue(offset, value)
        else:
            return False
        return True

    def _write_driver_features(self, value: int) -> bool:
        if self._status != _NEGOTIATING:
            return False
        if self._driver_features_sel > 1:
            return value == 0  # bits above 63 do not exist; a driver may say so
        shift = 32 * self._driver_features_sel
        kept = self._driver_features & ~(ALL_ONES << shift)
        self._driver_features = kept | value << shift
        return True

    def _write_queue(self, offset: int, value: int) -> bool:
        """Write a register of the selected queue; only while queues are being configured."""
        queue = self._queues[self._queue_sel]
        if offset == VIRTIO_MMIO_QUEUE_READY:
            # Linux writes 0 here also after a reset, when it holds already.
            if self._status != _CONFIGURING:
                return value == 0 and not queue.ready
            queue = queue._replace(ready=value == 1)
        elif self._status != _CONFIGURING or queue.ready:
            return False
        elif offset == VIRTIO_MMIO_QUEUE_NUM:
            queue = queue._replace(size=value)
        elif offset in QUEUE_ADDRESS_REGISTERS:
            field, shift = QUEUE_ADDRESS_REGISTERS[offset]
            kept = getattr(queue, field) & ~(ALL_ONES << shift)
            queue = queue._replace(**{field: kept | value << shift})
        else:
            return False
        self._queues[self._queue_sel] = queue
        return True

    # Device status.

    def _write_status(self, value: int) -> bool:
        if value == 0:
            self._reset()
            return True
        with self._lock:
            if self._resetting:
                return False
            if value & VIRTIO_CONFIG_S_FAILED:
                self._status |= VIRTIO_CONFIG_S_FAILED
                self._running = False
                self._publish()
                return True
            if value == self._status:
                return True
            if value != _NEXT_STATUS.get(self._status):
                return False
            # Refused features: the bit stays clear, which the driver reads back (§3.1.1).
            if value == _CONFIGURING and not self._features_acceptable():
                return False
            self._status = value
            self._publish()
        if value == _RUNNING:
            self._call_soon(self._activate)
        return True

    def _features_acceptable(self) -> bool:
        accepted = self._driver_features
        return bool(accepted & VIRTIO_F_VERSION_1) and not accepted & ~self._offered

    def _activate(self) -> None:
        """Build the queues and start the device. Thread: loop."""
        self._loop_thread_id = threading.get_ident()
        with self._lock:
            # The driver may have reset the device, or given up, since it wrote DRIVER_OK.
            if self._status != _RUNNING or self._resetting or self._active:
                return
            self._running = self._active = True

        def start() -> None:
            is_restored = bool(self._restored)
            states = self._restored or self._fresh_queue_states()
            self._restored = ()
            self._virtqueues = [Virtqueue.from_state(s, memory=self._memory) for s in states]
            self._device.activate(self, self._driver_features, self._virtqueues)
            if is_restored:
                # One may have been owed for buffers that the driver can see already: nothing that
                # the device does from here on would tell it of them.
                self.interrupt_queues()

        self.run(start)
        self._notify_all()

    def _fresh_queue_states(self) -> tuple[QueueState, ...]:
        """The queues as the driver configured them, at index 0."""
        for idx, (queue, max_size) in enumerate(
            zip(self._queues, self._device.queue_max_sizes, strict=True)
        ):
            if not queue.ready or queue.size > max_size:
                raise GuestError(f"queue {idx} is not ready or larger than {max_size}: {queue}")
        return tuple(
            QueueState(
                size=queue.size,
                desc_gpa=queue.desc_gpa,
                driver_gpa=queue.driver_gpa,
                device_gpa=queue.device_gpa,
                event_idx=bool(self._driver_features & VIRTIO_RING_F_EVENT_IDX),
                indirect=bool(self._driver_features & VIRTIO_RING_F_INDIRECT_DESC),
                next_avail_idx=0,
                next_used_idx=0,
                published_idx=0,
            )
            for queue in self._queues
        )

    def _reset(self) -> None:
        """The driver wrote 0. Returns once the device no longer uses the rings."""
        with self._lock:
            if self._resetting:
                return
            if not self._status & VIRTIO_CONFIG_S_DRIVER_OK:
                self._clear_registers()
                return
            self._resetting = True
            self._running = False
        if threading.get_ident() == self._loop_thread_id:
            self._stop()
            return
        stopped = threading.Event()

        def stop() -> None:
            try:
                self._stop()
            finally:
                stopped.set()

        self._call_soon(stop)
        if not stopped.wait(RESET_WAIT_S):
            log.error("the event loop did not reset a device within %s s", RESET_WAIT_S)

    def _stop(self) -> None:
        """Take the queues from the device, then let Status read 0. Thread: loop."""
        try:
            if self._active:
                self._active = False
                self._device.reset()
        finally:
            for queue in self._virtqueues:
                queue.close()
            self._virtqueues = []
            self._restored = ()
            with self._lock:
                self._clear_registers()
                self._resets += 1
                self._resetting = False

    def close(self) -> None:
        """Stop the device for good and let go of guest memory. Idempotent.

        Thread: loop, or any once the loop and the vCPUs are stopped.
        """
        with self._lock:
            self._running = False
            self._resetting = True
        self._is_paused = False
        self._waiting.clear()
        self._stop()

    # Kicks and device work. Thread: loop.

    def notify(self, queue_idx: int, _ready: int = 0) -> None:
        """The driver kicked a queue: what the queue's ioeventfd calls."""
        if queue_idx < len(self._virtqueues) and not self._is_paused:
            self._notifications += 1
            self.run(self._kicks[queue_idx])

    def run(self, work: Callable[[], None]) -> None:
        """Run device work, if the device is live: the one place where a GuestError ends."""
        if not self._running:
            return
        if self._is_paused:
            self._waiting[work] = None
            return
        try:
            work()
        except GuestError as error:
            self.needs_reset(str(error))

    def defer(self, work: Callable[[], None]) -> None:
        """Have the loop run(work) later: before a later activation, as calls keep their order."""
        self._call_soon(lambda: self.run(work))

    def pause(self) -> None:
        """Leave the rings and guest memory alone until resume(), with nothing under way.

        What comes meanwhile waits: each piece of work once, and kicks not at all, for every queue
        is looked at afterwards. Idempotent. Thread: loop.

        Raises:
            HostError: something under way does not end; the device goes on.
        """
        if self._is_paused:
            return
        if self._active and self._running:
            try:
                self._device.pause()
            except BaseException:
                self._device.resume()
                raise
        self._is_paused = True

    def resume(self) -> None:
        """Go on after pause(). Idempotent. Thread: loop."""
        if not self._is_paused:
            return
        self._is_paused = False
        if self._active:
            self._device.resume()
        waiting, self._waiting = list(self._waiting), {}
        for work in waiting:
            self.run(work)
        self._notify_all()

    def _notify_all(self) -> None:
        for queue_idx in range(len(self._virtqueues)):
            self.notify(queue_idx)

    # Interrupts. Thread: any.

    def interrupt_queues(self) -> None:
        """Set InterruptStatus bit 0, then pulse the line."""
        self._interrupt(VIRTIO_MMIO_INT_VRING)

    def interrupt_config(self, change: Callable[[], None] | None = None) -> None:
        """Change the configuration space and its generation; tell the driver if there is one."""
        with self._lock:
            if change is not None:
                change()
            self._config_generation = (self._config_generation + 1) & ALL_ONES
            self._publish()
            self._publish_config()
        self._interrupt(VIRTIO_MMIO_INT_CONFIG)

    def _interrupt(self, bit: int) -> None:
        # An acknowledgement of interrupts before this one must not take this one's bit away.
        self._perform_writes()
        # The register before the line: the guest's handler reads it to learn whose interrupt this
        # is, and one that finds 0 there takes it for somebody else's.
        with self._lock:
            if not self._running:
                return
            if not self._interrupt_status & bit:
                self._set_interrupt_status(self._interrupt_status | bit)
            self._interrupts += 1
        self._pulse_irq()

    def needs_reset(self, reason: str) -> None:
        """Stop the device, set DEVICE_NEEDS_RESET and tell the driver (§2.1.2)."""
        self._perform_writes()
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._status |= VIRTIO_CONFIG_S_NEEDS_RESET
            self._reset_reason = reason
            self._interrupt_status |= VIRTIO_MMIO_INT_CONFIG
            self._interrupts += 1
            self._publish()
        log.warning("virtio device %d needs a reset: %s", self._device.device_id, reason)
        self._pulse_irq()

    # Snapshots and statistics.

    def statistics(self) -> MmioStatistics:
        """Return the counters. Thread: any."""
        with self._lock:
            return MmioStatistics(
                notifications=self._notifications,
                interrupts=self._interrupts,
                resets=self._resets,
                refused_accesses=self._refused,
                reset_reason=self._reset_reason,
            )

    def state(self) -> MmioState:
        """Snapshot registers and queues; vCPUs and device are paused. Thread: loop.

        Raises:
            HostError: the device holds chains that it took.
        """
        for idx, queue in enumerate(self._virtqueues):
            if not queue.is_idle:
                raise HostError(
                    f"virtio device {self._device.device_id} is at work on queue {idx}: try again"
                )
        with self._lock:
            return MmioState(
                device_id=self._device.device_id,
                status=self._status,
                device_features_sel=self._device_features_sel,
                driver_features_sel=self._driver_features_sel,
                driver_features=self._driver_features,
                queue_sel=self._queue_sel,
                interrupt_status=self._interrupt_status,
                config_generation=self._config_generation,
                queues=tuple(self._queues),
                virtqueues=tuple(queue.state() for queue in self._virtqueues),
            )

    @classmethod
    def from_state(
        cls,
        state: MmioState,
        *,
        device: VirtioDevice,
        memory: GuestMemory,
        pulse_irq: Callable[[], None],
        loop_call_soon: Callable[[Callable[[], None]], None],
        page: memoryview | None = None,
        perform_writes: Callable[[], None] = lambda: None,
    ) -> MmioTransport:
        """Continue over restored memory; a live device is activated and kicked on the loop.

        Raises:
            ConfigError: the snapshot is of another device, or one that offered more.
        """
        if (state.device_id, len(state.queues)) != (device.device_id, len(device.queue_max_sizes)):
            raise ConfigError(
                f"the snapshot holds virtio device {state.device_id} with {len(state.queues)} "
                f"queues where the machine has {device.device_id}: restore it with the same devices"
            )
        transport = cls(device, memory, pulse_irq, loop_call_soon, page, perform_writes)
        transport._check_state(state)
        transport._status = state.status
        transport._device_features_sel = state.device_features_sel
        transport._driver_features_sel = state.driver_features_sel
        transport._driver_features = state.driver_features
        transport._queue_sel = state.queue_sel
        transport._interrupt_status = state.interrupt_status
        transport._config_generation = state.config_generation
        transport._queues = list(state.queues)
        transport._restored = state.virtqueues
        transport._publish()
        if state.status == _RUNNING:
            loop_call_soon(transport._activate)
        elif state.interrupt_status:
            # It may be that the interrupt controller was saved before the pulse; one more is
            # harmless.
            loop_call_soon(pulse_irq)
        return transport

    def _check_state(self, state: MmioState) -> None:
        """Refuse what this voidbox could not have come to.

        Raises:
            ConfigError: a feature was dropped since, or a queue is larger than it can be.
        """
        what = f"the snapshot's virtio device {state.device_id}"
        missing = state.driver_features & ~self._offered
        if missing and state.status & VIRTIO_CONFIG_S_FEATURES_OK:
            raise ConfigError(
                f"{what} uses features {missing:#x}, which this voidbox does not offer: restore it "
                "with the one that made it"
            )
        for queue, most in zip(state.queues, self._device.queue_max_sizes, strict=True):
            if queue.ready and queue.size > most:
                raise ConfigError(f"{what} has a queue of {queue.size}, where {most} is the most")
        if len(state.virtqueues) not in (0, len(state.queues)):
            raise ConfigError(f"{what} has {len(state.virtqueues)} queues of {len(state.queues)}")
