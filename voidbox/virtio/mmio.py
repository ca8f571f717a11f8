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

from voidbox.errors import GuestError, HostError
from voidbox.memory import GuestMemory
from voidbox.virtio.device import (
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VirtioDevice,
)
from voidbox.virtio.mmio_regs import (
    ALL_ONES,
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_STATUS,
    MmioState,
    MmioStatistics,
)
from voidbox.virtio.queue import QueueState, Virtqueue
from voidbox.virtio.register_file import CONFIGURING, NEXT_STATUS, RUNNING, RegisterFile

log = logging.getLogger(__name__)

# How long a vCPU that resets the device waits for the loop. Beyond it, Status stays non-zero until
# the loop gets there, and §2.4 has drivers wait for that 0; Linux over MMIO does not wait.
RESET_WAIT_S = 5.0


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
        self._perform_writes = perform_writes
        self._memory = memory
        self._pulse_irq = pulse_irq
        self._call_soon = loop_call_soon

        # The one lock. It guards the fields down to the next comment and is innermost: with it
        # held nothing is called but the device's read_config and interrupt_config's `change`.
        self._lock = threading.Lock()
        self._regs = RegisterFile(device, page)
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
        self._kicks: list[Callable[[], None]] = []  # what a kick of each queue calls

    # Registers. Thread: vcpu.

    def read(self, offset: int, width: int) -> int:
        """Read a register or the configuration space; what is not there reads as zero."""
        if offset >= VIRTIO_MMIO_CONFIG:
            with self._lock:
                value = self._device.read_config(offset - VIRTIO_MMIO_CONFIG, width)
            return value & ((1 << 8 * width) - 1)
        if offset == VIRTIO_MMIO_INTERRUPT_STATUS and width == 4:  # the one that is read often
            return self._regs.interrupt_status
        register = self._regs.read(offset) if width == 4 else None
        if register is None:
            self._count_refused()
            return 0
        return register

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register or the configuration space; what may not be written is ignored."""
        if offset >= VIRTIO_MMIO_CONFIG:
            accepted = self._write_config(offset - VIRTIO_MMIO_CONFIG, width, value)
        elif width != 4:
            accepted = False
        elif offset == VIRTIO_MMIO_INTERRUPT_ACK:
            with self._lock:
                self._regs.set_interrupt_status(self._regs.interrupt_status & ~value)
            accepted = True
        elif offset == VIRTIO_MMIO_QUEUE_NOTIFY:
            accepted = self._write_queue_notify(value)
        elif offset == VIRTIO_MMIO_STATUS:
            accepted = self._write_status(value)
        else:
            with self._lock:
                accepted = self._regs.write(offset, value & ALL_ONES)
                self._regs.publish()
        if not accepted:
            self._count_refused()

    def _count_refused(self) -> None:
        with self._lock:
            self._refused += 1

    def _write_config(self, offset: int, width: int, value: int) -> bool:
        given_up = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED
        status = self._regs.status
        if not status & VIRTIO_CONFIG_S_DRIVER or status & given_up:
            return False
        try:
            self._device.write_config(offset, width, value)
        except GuestError as error:
            self.needs_reset(str(error))
        with self._lock:
            self._regs.publish_config()
        return True

    def _write_queue_notify(self, queue_idx: int) -> bool:
        """Take a kick that no ioeventfd took. One per queue waits in the loop, however many come.

        A guest can write faster than the loop works, and must not make its queue of calls grow.
        """
        with self._lock:
            if queue_idx >= len(self._regs.queues) or not self._running:
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

    # Device status.

    def _write_status(self, value: int) -> bool:
        if value == 0:
            self._reset()
            return True
        with self._lock:
            if self._resetting:
                return False
            regs = self._regs
            if value & VIRTIO_CONFIG_S_FAILED:
                regs.status |= VIRTIO_CONFIG_S_FAILED
                self._running = False
                regs.publish()
                return True
            if value == regs.status:
                return True
            if value != NEXT_STATUS.get(regs.status):
                return False
            # Refused features: the bit stays clear, which the driver reads back (§3.1.1).
            if value == CONFIGURING and not regs.are_features_acceptable:
                return False
            regs.status = value
            regs.publish()
        if value == RUNNING:
            self._call_soon(self._activate)
        return True

    def _activate(self) -> None:
        """Build the queues and start the device. Thread: loop."""
        self._loop_thread_id = threading.get_ident()
        with self._lock:
            # The driver may have reset the device, or given up, since it wrote DRIVER_OK.
            if self._regs.status != RUNNING or self._resetting or self._active:
                return
            self._running = self._active = True

        def start() -> None:
            is_restored = bool(self._restored)
            states = self._restored or self._regs.queue_states()
            self._restored = ()
            self._virtqueues = [Virtqueue.from_state(s, memory=self._memory) for s in states]
            self._device.activate(self, self._regs.driver_features, self._virtqueues)
            # Not before: a device may have put another function in its method's place.
            notify = self._device.queue_notify
            self._kicks = [partial(notify, idx) for idx in range(len(states))]
            if is_restored:
                # One may have been owed for buffers that the driver can see already: nothing that
                # the device does from here on would tell it of them.
                self.interrupt_queues()

        self.run(start)
        self._notify_all()

    def _reset(self) -> None:
        """The driver wrote 0. Returns once the device no longer uses the rings."""
        with self._lock:
            if self._resetting:
                return
            if not self._regs.status & VIRTIO_CONFIG_S_DRIVER_OK:
                self._regs.clear()
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
            self._kicks = []
            self._restored = ()
            with self._lock:
                self._regs.clear()
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
        if queue_idx < len(self._kicks) and not self._is_paused:
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
            self._regs.config_changed()
        self._interrupt(VIRTIO_MMIO_INT_CONFIG)

    def _interrupt(self, bit: int) -> None:
        # An acknowledgement of interrupts before this one must not take this one's bit away.
        self._perform_writes()
        # The register before the line: the guest's handler reads it to learn whose interrupt this
        # is, and one that finds 0 there takes it for somebody else's.
        with self._lock:
            if not self._running:
                return
            regs = self._regs
            if not regs.interrupt_status & bit:
                regs.set_interrupt_status(regs.interrupt_status | bit)
            self._interrupts += 1
        self._pulse_irq()

    def needs_reset(self, reason: str) -> None:
        """Stop the device, set DEVICE_NEEDS_RESET and tell the driver (§2.1.2)."""
        self._perform_writes()
        with self._lock:
            if not self._running:
                return
            self._running = False
            regs = self._regs
            regs.status |= VIRTIO_CONFIG_S_NEEDS_RESET
            self._reset_reason = reason
            regs.interrupt_status |= VIRTIO_MMIO_INT_CONFIG
            self._interrupts += 1
            regs.publish()
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
            return self._regs.state(self._virtqueues)

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
        transport = cls(device, memory, pulse_irq, loop_call_soon, page, perform_writes)
        transport._regs.restore(state)
        transport._restored = state.virtqueues
        if state.status == RUNNING:
            loop_call_soon(transport._activate)
        elif state.interrupt_status:
            # It may be that the interrupt controller was saved before the pulse; one more is
            # harmless.
            loop_call_soon(pulse_irq)
        return transport
