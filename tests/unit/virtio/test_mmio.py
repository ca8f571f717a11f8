"""The virtio-mmio register machine, driven as Linux drives it and as nobody should."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.virtio.driver import Arena, FakeLoop, IrqLine, MmioDriver
from voidbox.errors import ConfigError, GuestError, HostError
from voidbox.memory import GuestMemory
from voidbox.virtio import device as device_module
from voidbox.virtio import mmio_regs as reg
from voidbox.virtio.device import (
    TRANSPORT_FEATURES,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    Transport,
    config_value,
)
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.queue import Virtqueue

MAC_FEATURE = 1 << 5
DEVICE_ID = 42


class Echo:
    """Two queues; what is readable on the first comes back on it. Records its life."""

    device_id = DEVICE_ID
    device_features = MAC_FEATURE
    queue_max_sizes: Sequence[int] = (8, 4)

    def __init__(self) -> None:
        self.config = bytes(range(1, 9))
        self.written: list[tuple[int, int, int]] = []
        self.notified: list[int] = []
        self.transport: Transport | None = None
        self.queues: Sequence[Virtqueue] = ()
        self.features = 0
        self.activations = self.resets = self.paused = 0
        self.is_busy = False
        self.threads: set[int] = set()

    def read_config(self, offset: int, width: int) -> int:
        return config_value(self.config, offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        if value == 0xBAD:
            raise GuestError("a bad configuration")
        self.written.append((offset, width, value))

    def activate(
        self, transport: Transport, driver_features: int, queues: Sequence[Virtqueue]
    ) -> None:
        self.threads.add(threading.get_ident())
        self.activations += 1
        self.transport, self.features, self.queues = transport, driver_features, queues

    def queue_notify(self, queue_idx: int) -> None:
        self.threads.add(threading.get_ident())
        self.notified.append(queue_idx)
        queue = self.queues[queue_idx]
        while (chain := queue.next_chain()) is not None:
            done = 0
            for source, target in zip(chain.readable, chain.writable, strict=False):
                target[: len(source)] = source
                done += len(source)
            queue.add_used(chain.head_idx, done)
        assert self.transport is not None
        if queue.publish():
            self.transport.interrupt_queues()
        queue.enable_notification()

    def pause(self) -> None:
        self.paused += 1
        if self.is_busy:
            raise HostError("busy")

    def resume(self) -> None:
        self.paused -= 1

    def reset(self) -> None:
        self.threads.add(threading.get_ident())
        self.resets += 1
        self.transport, self.queues = None, ()


class PagedRegisters:
    """Registers that are read from the page, and by an exit too: both must agree."""

    def __init__(self, transport: MmioTransport, page: bytearray) -> None:
        self._transport = transport
        self._page = page

    def read(self, offset: int, width: int) -> int:
        value = self._transport.read(offset, width)
        if offset >= reg.VIRTIO_MMIO_CONFIG or (width, offset % 4) == (4, 0):
            in_page = int.from_bytes(self._page[offset : offset + width], "little")
            assert in_page == value, f"register {offset:#x}"
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        self._transport.write(offset, width, value)


class Bench:
    """A device, its transport, a driver and a loop turned by hand."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.device = Echo()
        self.loop = FakeLoop()
        self.line = IrqLine()
        self.page = bytearray(reg.MMIO_REGION_BYTES)
        self.queued_writes: deque[tuple[int, int, int]] = deque()
        self.transport = MmioTransport(
            self.device,
            memory,
            self.line.pulse,
            self.loop.call_soon,
            memoryview(self.page),
            self.perform_writes,
        )
        self.registers = PagedRegisters(self.transport, self.page)
        self.driver = MmioDriver(self.registers, memory, self.line)

    def perform_writes(self) -> None:
        while self.queued_writes:
            self.transport.write(*self.queued_writes.popleft())

    def boot(self, **kwargs: int) -> Bench:
        self.driver.probe(**kwargs)
        self.loop.run()
        self.device.notified.clear()
        return self

    @property
    def refused(self) -> int:
        return self.transport.statistics().refused_accesses

    def echo(self, data: bytes = b"ping") -> bytes:
        self.driver.queues[0].add([data], [64])
        self.driver.kick(0)
        self.loop.run()
        [done] = self.driver.queues[0].completed()
        return done.data


@pytest.fixture
def bench(memory: GuestMemory) -> Iterator[Bench]:
    bench = Bench(memory)
    yield bench
    bench.transport.close()


# Identity and features


def test_constants_match_the_kernels_headers() -> None:
    """Every VIRTIO_MMIO_* and VIRTIO_CONFIG_S_* of ours is the kernel's."""
    defines: dict[str, int] = {}
    for header in ("virtio_mmio.h", "virtio_config.h", "virtio_ring.h", "virtio_ids.h"):
        path = Path("/usr/include/linux") / header
        if not path.exists():
            pytest.skip("needs the kernel's user headers: apt install linux-libc-dev")
        for line in path.read_text().splitlines():
            words = line.split(None, 3)
            if len(words) > 2 and words[0] == "#define" and words[2][:1].isdigit():
                defines[words[1]] = int(words[2].split("/")[0], 0)
    ours = {
        name: value
        for module in (reg, device_module)
        for name, value in vars(module).items()
        if name.startswith("VIRTIO_") and isinstance(value, int)
    }
    bits = {"VIRTIO_RING_F_INDIRECT_DESC", "VIRTIO_RING_F_EVENT_IDX", "VIRTIO_F_VERSION_1"}
    checked = 0
    for name, value in ours.items():
        if name in defines:
            assert value == (1 << defines[name] if name in bits else defines[name]), name
            checked += 1
    assert checked >= 40


def test_identity(bench: Bench) -> None:
    assert bench.driver.readl(reg.VIRTIO_MMIO_MAGIC_VALUE) == 0x74726976
    assert bench.driver.readl(reg.VIRTIO_MMIO_VERSION) == 2
    assert bench.driver.readl(reg.VIRTIO_MMIO_DEVICE_ID) == DEVICE_ID
    assert bench.driver.readl(reg.VIRTIO_MMIO_VENDOR_ID) == reg.VENDOR_ID


def test_shared_memory_and_queue_reset_are_absent(bench: Bench) -> None:
    bench.driver.writel(reg.VIRTIO_MMIO_SHM_SEL, 0)
    for offset in (0xB0, 0xB4, 0xB8, 0xBC):
        assert bench.driver.readl(offset) == 0xFFFFFFFF
    assert bench.driver.readl(reg.VIRTIO_MMIO_QUEUE_RESET) == 0
    assert bench.refused == 0


def test_version_1_is_always_offered(bench: Bench) -> None:
    assert bench.driver.device_features() == MAC_FEATURE | TRANSPORT_FEATURES
    assert TRANSPORT_FEATURES & VIRTIO_F_VERSION_1


@pytest.mark.parametrize("selector", [2, 3, 0xFFFFFFFF])
def test_feature_pages_past_the_second_are_empty(bench: Bench, selector: int) -> None:
    bench.driver.writel(reg.VIRTIO_MMIO_DEVICE_FEATURES_SEL, selector)
    assert bench.driver.readl(reg.VIRTIO_MMIO_DEVICE_FEATURES) == 0
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 1)
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 3)
    bench.driver.set_features(VIRTIO_F_VERSION_1)
    bench.driver.writel(reg.VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector)
    bench.driver.writel(reg.VIRTIO_MMIO_DRIVER_FEATURES, 0)
    assert bench.refused == 0
    bench.driver.writel(reg.VIRTIO_MMIO_DRIVER_FEATURES, 1)
    assert bench.refused == 1
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0xB)
    assert bench.driver.status == 0xB


@pytest.mark.parametrize(
    "features",
    [0, MAC_FEATURE, TRANSPORT_FEATURES & ~VIRTIO_F_VERSION_1, VIRTIO_F_VERSION_1 | 1 << 6,
     VIRTIO_F_VERSION_1 | 1 << 34, VIRTIO_F_VERSION_1 | 1 << 63],
    ids=hex,
)  # fmt: skip
def test_features_ok_is_refused(bench: Bench, features: int) -> None:
    """Without VERSION_1, or with a bit that was not offered, the bit does not read back."""
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 1)
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 3)
    bench.driver.set_features(features)
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0xB)
    assert bench.driver.status == 3
    bench.driver.set_features(VIRTIO_F_VERSION_1)  # and may be tried again
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0xB)
    assert bench.driver.status == 0xB


def test_features_are_frozen_outside_negotiation(bench: Bench) -> None:
    bench.driver.set_features(VIRTIO_F_VERSION_1)
    assert bench.refused == 2
    assert bench.driver.negotiate()
    bench.driver.set_features(0)
    assert bench.refused == 4
    assert bench.transport.state().driver_features == MAC_FEATURE | TRANSPORT_FEATURES


def test_device_learns_the_negotiated_features(bench: Bench) -> None:
    bench.boot(features=VIRTIO_F_VERSION_1 | MAC_FEATURE)
    assert bench.device.features == VIRTIO_F_VERSION_1 | MAC_FEATURE
    assert not bench.device.queues[0].event_idx
    assert not bench.device.queues[0].indirect


# The status machine


@given(
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 8, 0xB, 0xF, 0x40, 0x4F, 0x83, 0x100]), max_size=12)
)
def test_status_takes_only_the_exact_steps(values: list[int]) -> None:
    steps = {0: 1, 1: 3, 3: 0xB, 0xB: 0xF}
    with GuestMemory(1 << 16) as memory:
        bench = Bench(memory)
        status = 0
        for value in values:
            if status == 3 and value == 0xB:
                bench.driver.set_features(VIRTIO_F_VERSION_1)
            bench.driver.writel(reg.VIRTIO_MMIO_STATUS, value)
            if value == 0:
                status = 0
            elif value & VIRTIO_CONFIG_S_FAILED:
                status |= VIRTIO_CONFIG_S_FAILED
            elif steps.get(status) == value:
                status = value
            assert bench.driver.status == status


def test_failed_stops_the_device_until_reset(bench: Bench) -> None:
    bench.boot()
    bench.driver.add_status(VIRTIO_CONFIG_S_FAILED)
    assert bench.driver.status == 0x8F
    bench.driver.queues[0].add([b"x"], [1])
    bench.transport.notify(0)
    assert bench.device.notified == []
    bench.boot()
    assert bench.echo() == b"ping"


# Queues


def test_linux_brings_the_device_up(bench: Bench) -> None:
    bench.driver.probe()
    assert bench.driver.status == 0xF
    assert bench.device.activations == 0  # not on the vCPU's thread
    bench.loop.run()
    assert bench.device.activations == 1
    assert [queue.size for queue in bench.device.queues] == [8, 4]
    assert bench.device.notified == [0, 1]  # the driver may have kicked before
    assert bench.echo() == b"ping"
    assert (bench.driver.vring_interrupts, bench.driver.spurious_interrupts) == (1, 0)
    assert bench.refused == 0


def test_kick_before_activation_is_not_lost(bench: Bench) -> None:
    bench.driver.probe()
    bench.driver.queues[0].add([b"early"], [64])
    assert bench.driver.kick(0)
    bench.transport.notify(0)  # the ioeventfd's, likewise too early
    bench.loop.run()
    assert [done.data for done in bench.driver.queues[0].completed()] == [b"early"]


def test_queue_number_limits(bench: Bench) -> None:
    assert bench.driver.queue_count() == 2
    for selector in (2, 0xFFFFFFFF):
        bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_SEL, selector)
        assert bench.driver.readl(reg.VIRTIO_MMIO_QUEUE_NUM_MAX) == 0
        assert bench.driver.readl(reg.VIRTIO_MMIO_QUEUE_READY) == 0
        bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NUM, 8)
    assert bench.refused == 2


QUEUE_WRITES = (0x038, 0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4)


def test_queue_registers_are_writable_only_while_configuring(bench: Bench) -> None:
    fresh = bench.transport.state().queues
    for offset in (*QUEUE_WRITES, reg.VIRTIO_MMIO_QUEUE_READY):
        bench.driver.writel(offset, 1)
    assert (bench.transport.state().queues, bench.refused) == (fresh, 8)
    bench.boot()
    live = bench.transport.state().queues
    for offset in (*QUEUE_WRITES, reg.VIRTIO_MMIO_QUEUE_READY):
        bench.driver.writel(offset, 0)
    assert (bench.transport.state().queues, bench.refused) == (live, 16)


def test_a_ready_queue_is_frozen_until_unready(bench: Bench) -> None:
    assert bench.driver.negotiate()
    bench.driver.setup_queue(0)
    bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NUM, 2)
    assert bench.transport.state().queues[0].size == 8
    bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_READY, 0)
    bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NUM, 2)
    assert bench.transport.state().queues[0].size == 2


def test_addresses_have_64_bits(bench: Bench) -> None:
    assert bench.driver.negotiate()
    for number, offset in enumerate(QUEUE_WRITES[1:], start=1):
        bench.driver.writel(offset, number * 0x11111111)
    queue = bench.transport.state().queues[0]
    assert (queue.desc_gpa, queue.driver_gpa, queue.device_gpa) == (
        0x22222222_11111111,
        0x44444444_33333333,
        0x66666666_55555555,
    )


def bad_size(driver: MmioDriver) -> None:
    driver.setup_queue(0, 6)
    driver.setup_queue(1)


def too_large(driver: MmioDriver) -> None:
    driver.setup_queue(0)
    driver.setup_queue(1, 8)


def one_missing(driver: MmioDriver) -> None:
    driver.setup_queue(0)


def outside_ram(driver: MmioDriver) -> None:
    driver.setup_queue(0)
    driver.setup_queue(1)
    driver.writel(reg.VIRTIO_MMIO_QUEUE_READY, 0)
    driver.writel(reg.VIRTIO_MMIO_QUEUE_USED_HIGH, 1)
    driver.writel(reg.VIRTIO_MMIO_QUEUE_READY, 1)


@pytest.mark.parametrize("setup", [bad_size, too_large, one_missing, outside_ram])
def test_bad_queues_at_driver_ok(bench: Bench, setup: Callable[[MmioDriver], None]) -> None:
    assert bench.driver.negotiate()
    setup(bench.driver)
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0xF)
    bench.loop.run()
    assert bench.driver.status == 0xF | VIRTIO_CONFIG_S_NEEDS_RESET
    assert bench.driver.config_interrupts == 1
    assert bench.device.activations == 0
    assert bench.transport.statistics().reset_reason
    bench.boot()
    assert bench.echo() == b"ping"


# Reset


def test_reset_forgets_everything(bench: Bench) -> None:
    fresh = bench.transport.state()
    bench.boot()
    bench.transport.interrupt_config()
    bench.driver.reset()
    assert bench.device.resets == 1
    # The driver selected a queue since, and a generation never goes back.
    expected = fresh._replace(queue_sel=1, config_generation=1)
    assert bench.transport.state() == expected
    for _ in range(3):  # unbind and bind
        bench.boot()
        assert bench.echo() == b"ping"
        bench.driver.reset()
    assert (bench.device.activations, bench.device.resets) == (4, 4)
    assert bench.refused == 0


def test_reset_before_the_loop_activated(bench: Bench) -> None:
    bench.boot()
    bench.driver.reset()
    bench.driver.probe()
    bench.driver.reset()  # the activation is still waiting in the loop
    bench.loop.run()
    assert (bench.device.activations, bench.driver.status) == (1, 0)
    bench.driver.probe()
    bench.driver.reset()
    bench.driver.probe()
    bench.loop.run()  # finds two activations for one live driver
    assert bench.device.activations == 2
    assert bench.echo() == b"ping"


def test_queues_are_closed_by_reset(bench: Bench) -> None:
    bench.boot()
    queue = bench.device.queues[0]
    bench.driver.reset()
    with pytest.raises(ValueError, match="released"):
        queue.next_chain()


def test_nothing_happens_after_reset(bench: Bench) -> None:
    bench.boot()
    transport = bench.device.transport
    assert transport is not None
    ran: list[str] = []
    transport.defer(lambda: ran.append("deferred"))
    bench.driver.reset()
    pulses = bench.line.pulses
    transport.interrupt_queues()
    transport.needs_reset("too late")
    transport.run(lambda: ran.append("run"))
    bench.transport.notify(0)
    bench.boot()  # the deferred work belongs to the former activation
    assert (ran, bench.line.pulses, bench.driver.status) == ([], pulses, 0xF)


def test_reset_waits_for_the_loop_thread(memory: GuestMemory) -> None:
    """A vCPU that wrote 0 goes on only once the device has let go of the rings."""
    device, line = Echo(), IrqLine()
    calls: list[Callable[[], None] | None] = []
    ready = threading.Condition()

    def call_soon(callback: Callable[[], None] | None) -> None:
        with ready:
            calls.append(callback)
            ready.notify()

    def loop() -> None:
        while True:
            with ready:
                ready.wait_for(lambda: calls)
                callback = calls.pop(0)
            if callback is None:
                return
            callback()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        driver = MmioDriver(MmioTransport(device, memory, line.pulse, call_soon), memory)
        for round_number in range(1, 20):
            driver.probe()
            driver.kick(0)
            driver.reset()
            assert device.resets == device.activations <= round_number
            assert device.queues == ()
            assert driver.status == 0
        assert device.threads <= {thread.ident}
    finally:
        call_soon(None)
        thread.join()


def test_reset_gives_up_waiting_for_a_stuck_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voidbox.virtio.mmio.RESET_WAIT_S", 0.01)
    bench.boot()
    vcpu = threading.Thread(target=bench.driver.writel, args=(reg.VIRTIO_MMIO_STATUS, 0))
    vcpu.start()
    vcpu.join()
    assert "did not reset" in caplog.text
    assert bench.driver.status == 0xF  # the driver can see that it is not over
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0)  # and asking again changes nothing
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0x8F)
    bench.transport.notify(0)
    assert (bench.device.notified, bench.driver.status) == ([], 0xF)
    bench.loop.run()
    assert (bench.device.resets, bench.driver.status) == (1, 0)


# Kicks


def test_a_storm_of_kicks_waits_as_one_call(bench: Bench) -> None:
    bench.boot()
    for _ in range(1000):
        bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 0)
        bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 1)
    assert len(bench.loop.pending) == 2
    bench.loop.run()
    assert bench.device.notified == [0, 1]
    bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 0)
    bench.loop.run()
    assert bench.device.notified == [0, 1, 0]


def test_kicks_of_absent_queues_or_at_the_wrong_time_are_refused(bench: Bench) -> None:
    bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NOTIFY, 0)
    bench.boot()
    for queue_idx in (2, 0xFFFFFFFF):
        bench.driver.writel(reg.VIRTIO_MMIO_QUEUE_NOTIFY, queue_idx)
        bench.transport.notify(queue_idx)
    bench.loop.run()
    assert (bench.device.notified, bench.refused) == ([], 3)


def test_broken_ring_needs_a_reset_and_no_more(bench: Bench) -> None:
    bench.boot()
    bench.driver.queues[0].offer(100)
    bench.driver.kick(0)
    bench.loop.run()  # no GuestError leaves the loop
    assert bench.driver.status == 0xF | VIRTIO_CONFIG_S_NEEDS_RESET
    assert (bench.driver.config_interrupts, bench.driver.vring_interrupts) == (1, 0)
    assert "head 100" in bench.transport.statistics().reset_reason
    bench.transport.notify(1)
    bench.transport.notify(0)
    assert bench.device.notified == [0]
    assert bench.driver.config_interrupts == 1
    bench.driver.writel(reg.VIRTIO_MMIO_STATUS, 0xF)  # nothing but a reset leads out of it
    assert bench.driver.status == 0x4F
    bench.boot()
    assert bench.echo() == b"ping"


def test_guest_error_in_work_of_the_devices_own(bench: Bench) -> None:
    bench.boot()

    def work() -> None:
        raise GuestError("found while the backend was ready")

    bench.transport.run(work)
    assert bench.driver.status & VIRTIO_CONFIG_S_NEEDS_RESET
    bench.transport.run(lambda: pytest.fail("ran after the failure"))


def test_other_errors_are_bugs_and_are_not_hidden(bench: Bench) -> None:
    bench.boot()
    with pytest.raises(ZeroDivisionError):
        bench.transport.run(lambda: print(1 // 0))


# Interrupts


def test_status_is_set_before_the_line_is_pulsed(bench: Bench) -> None:
    bench.boot()
    seen: list[int] = []
    bench.line.on_pulse = lambda: seen.append(bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS))
    bench.transport.interrupt_queues()
    bench.transport.interrupt_config()
    bench.transport.needs_reset("test")
    assert seen == [1, 3, 3]


def test_acknowledge_clears_the_given_bits(bench: Bench) -> None:
    bench.boot()
    bench.line.on_pulse = None
    bench.transport.interrupt_queues()
    bench.transport.interrupt_config()
    for ack, left in ((2, 1), (2, 1), (0, 1), (0xFFFFFFFE, 1), (1, 0)):
        bench.driver.writel(reg.VIRTIO_MMIO_INTERRUPT_ACK, ack)
        assert bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == left


def test_no_interrupt_before_driver_ok(bench: Bench) -> None:
    assert bench.driver.negotiate()
    bench.transport.interrupt_queues()
    bench.transport.interrupt_config()
    assert bench.line.pulses == 0
    assert bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == 0


def test_a_late_acknowledgement_takes_no_newer_interrupt_away(bench: Bench) -> None:
    """The guest's handler has read 1 and written 1, but KVM has queued the write."""
    bench.boot()
    bench.line.on_pulse = None
    bench.transport.interrupt_queues()
    assert bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == 1
    bench.queued_writes.append((reg.VIRTIO_MMIO_INTERRUPT_ACK, 4, 1))
    bench.transport.interrupt_queues()
    bench.perform_writes()  # at the guest's next exit
    assert bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == 1
    bench.queued_writes.append((reg.VIRTIO_MMIO_INTERRUPT_ACK, 4, 3))
    bench.transport.needs_reset("a test")
    bench.perform_writes()
    assert bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) == 2


def test_no_interrupt_is_lost_between_threads(bench: Bench) -> None:
    """Bits set by one thread while another acknowledges: each set bit is seen once at least."""
    bench.boot()
    bench.line.on_pulse = None
    rounds, seen_config = 3000, 0
    stop = threading.Event()

    def acknowledge_queues() -> None:
        while not stop.is_set():
            bench.driver.writel(reg.VIRTIO_MMIO_INTERRUPT_ACK, 1)

    vcpu = threading.Thread(target=acknowledge_queues)
    vcpu.start()
    try:
        for _ in range(rounds):
            bench.transport.interrupt_queues()
            bench.transport.interrupt_config()
            seen_config += bench.driver.readl(reg.VIRTIO_MMIO_INTERRUPT_STATUS) >> 1
            bench.driver.writel(reg.VIRTIO_MMIO_INTERRUPT_ACK, 2)
    finally:
        stop.set()
        vcpu.join()
    assert seen_config == rounds


# Widths and the configuration space


@pytest.mark.parametrize("width", [1, 2, 8])
def test_control_registers_take_four_bytes_only(bench: Bench, width: int) -> None:
    for offset in range(0, 0x100, 4):
        assert bench.transport.read(offset, width) == 0
        bench.transport.write(offset, width, 1)
    assert (bench.driver.status, bench.refused) == (0, 128)


def test_misaligned_and_unknown_registers(bench: Bench) -> None:
    known = {getattr(reg, name) for name in dir(reg) if name.startswith("VIRTIO_MMIO_")}
    known -= {reg.VIRTIO_MMIO_INT_VRING, reg.VIRTIO_MMIO_INT_CONFIG}
    unknown = [offset for offset in range(0x100) if offset not in known]
    assert {0x002, 0x028, 0x03C, 0x040} <= set(unknown)  # the last three: legacy only
    for offset in unknown:
        assert bench.driver.readl(offset) == 0
        bench.driver.writel(offset, 1)
    assert bench.refused == 2 * len(unknown)
    assert bench.driver.readl(reg.VIRTIO_MMIO_QUEUE_NOTIFY) == 0  # write-only
    bench.driver.writel(reg.VIRTIO_MMIO_MAGIC_VALUE, 0)  # read-only
    assert bench.refused == 2 * len(unknown) + 2


@pytest.mark.parametrize(
    ("offset", "width", "value"),
    [
        (0, 1, 0x01),
        (1, 2, 0x0302),
        (0, 4, 0x04030201),
        (0, 8, 0x0807060504030201),
        (6, 4, 0x0807),
        (7, 8, 0x08),
        (8, 4, 0),
        (0xEFF, 8, 0),
    ],
)
def test_config_space_takes_any_width(bench: Bench, offset: int, width: int, value: int) -> None:
    assert bench.transport.read(0x100 + offset, width) == value


def test_config_writes_need_a_driver(bench: Bench) -> None:
    bench.transport.write(0x104, 2, 7)
    assert (bench.device.written, bench.refused) == ([], 1)
    bench.boot()
    bench.transport.write(0x104, 2, 7)
    assert bench.device.written == [(4, 2, 7)]
    bench.transport.write(0x104, 2, 0xBAD)  # a GuestError, on a vCPU's thread
    assert bench.driver.status == 0x4F
    bench.transport.write(0x104, 2, 8)
    assert bench.device.written == [(4, 2, 7)]


def test_config_change_is_one_with_its_generation(bench: Bench) -> None:
    """A driver that reads a wide field in parts never takes half of the old for the new."""
    bench.boot()
    real_read, left = bench.device.read_config, [2]

    def read_and_change(offset: int, width: int) -> int:
        value = real_read(offset, width)
        if offset == 3 and left[0]:
            left[0] -= 1
            changes.append(bytes([9 - left[0]] * 8))
        return value

    changes: list[bytes] = []

    def read(offset: int, width: int) -> int:
        value = bench.transport.read(offset, width)
        while changes:  # another thread's change, in the middle of the driver's reads
            bench.transport.interrupt_config(lambda: setattr(bench.device, "config", changes.pop()))
        return value

    bench.device.read_config = read_and_change  # type: ignore[method-assign]
    registers = type("Registers", (), {"read": staticmethod(read), "write": bench.transport.write})
    torn = MmioDriver(registers(), bench.memory).config(0, 8)
    assert torn == bytes([9] * 8)
    assert bench.driver.config_interrupts == 2


# Random access


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.sampled_from(range(0, 0x104, 4)), st.integers(0, 0xFFF)),
            st.sampled_from([4, 4, 4, 1, 2, 8]),
            st.one_of(
                st.sampled_from([0, 1, 3, 0xB, 0xF, 2, 8, 0x4000]), st.integers(0, 2**64 - 1)
            ),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_no_access_raises(accesses: list[tuple[bool, int, int, int]], live: bool) -> None:
    with GuestMemory(1 << 16) as memory:
        bench = Bench(memory)
        bench.driver.arena = Arena(0x1000, 1 << 16)
        if live:
            bench.boot()
        for is_write, offset, width, value in accesses:
            if is_write:
                bench.transport.write(offset, width, value % (1 << 8 * width))
            else:
                assert 0 <= bench.registers.read(offset, width) < 1 << 8 * width
            bench.loop.run()
        assert bench.driver.status in {0, 1, 3, 0xB, 0xF, 0x4F} | {
            0x80 | status for status in (0, 1, 3, 0xB, 0xF, 0x4F)
        }
        bench.driver.reset()


# Snapshots


def test_snapshot_of_a_live_device(bench: Bench) -> None:
    bench.boot()
    for number in range(70):
        assert bench.echo(b"%d" % number) == b"%d" % number
    bench.driver.queues[0].add([b"unkicked"], [64])  # a kick that fell between
    bench.line.on_pulse = None
    bench.transport.interrupt_config()
    state = bench.transport.state()
    device, loop, line = Echo(), FakeLoop(), IrqLine()
    transport = MmioTransport.from_state(
        state,
        device=device,
        memory=bench.memory,
        pulse_irq=line.pulse,
        loop_call_soon=loop.call_soon,
    )
    bench.driver.registers = transport
    assert transport.state() != state  # queues come with the activation
    loop.run()
    assert device.features == MAC_FEATURE | TRANSPORT_FEATURES
    assert [done.data for done in bench.driver.queues[0].completed()] == [b"unkicked"]
    assert line.pulses == 2  # the pending interrupt again, and the used buffer
    bench.driver.interrupt()
    assert bench.driver.config_interrupts == 1
    bench.driver.reset()
    bench.driver.probe()
    loop.run()
    assert device.activations == 2
    transport.close()
    transport.close()
    assert (device.resets, device.queues) == (2, ())


@pytest.mark.parametrize("status", [0, 1, 3, 0xB])
def test_snapshot_in_the_middle_of_initialisation(bench: Bench, status: int) -> None:
    for value in (1, 3, 0xB):
        if value <= status:
            if value == 0xB:
                bench.driver.set_features(VIRTIO_F_VERSION_1)
            bench.driver.writel(reg.VIRTIO_MMIO_STATUS, value)
    state = bench.transport.state()
    transport = MmioTransport.from_state(
        state,
        device=Echo(),
        memory=bench.memory,
        pulse_irq=bench.line.pulse,
        loop_call_soon=bench.loop.call_soon,
    )
    assert transport.state() == state
    bench.loop.run()
    assert transport.state() == state


def test_snapshot_of_another_device_is_refused(bench: Bench) -> None:
    other = Echo()
    other.queue_max_sizes = (8,)
    with pytest.raises(ConfigError, match="same devices"):
        MmioTransport.from_state(
            bench.transport.state(),
            device=other,
            memory=bench.memory,
            pulse_irq=bench.line.pulse,
            loop_call_soon=bench.loop.call_soon,
        )


def restore(bench: Bench, state: reg.MmioState, device: Echo | None = None) -> MmioTransport:
    return MmioTransport.from_state(
        state,
        device=device or Echo(),
        memory=bench.memory,
        pulse_irq=bench.line.pulse,
        loop_call_soon=bench.loop.call_soon,
    )


def test_a_restored_device_raises_the_interrupt_that_it_may_have_owed(bench: Bench) -> None:
    """Used buffers that were published without one: nothing that follows would tell of them."""
    bench.boot()
    assert bench.echo() == b"ping"
    bench.driver.interrupt()
    state = bench.transport.state()
    assert state.interrupt_status == 0
    before = bench.line.pulses
    transport = restore(bench, state)
    bench.loop.run()
    assert bench.line.pulses == before + 1
    assert transport.state().interrupt_status == reg.VIRTIO_MMIO_INT_VRING
    transport.close()


def test_a_feature_that_is_no_longer_offered_is_refused(bench: Bench) -> None:
    bench.boot()
    device = Echo()
    device.device_features = 0
    with pytest.raises(ConfigError, match="does not offer"):
        restore(bench, bench.transport.state(), device)


def test_queues_that_cannot_be_are_refused(bench: Bench) -> None:
    bench.boot()
    state = bench.transport.state()
    large = state.queues[0]._replace(size=4096)
    with pytest.raises(ConfigError, match="4096"):
        restore(bench, state._replace(queues=(large, *state.queues[1:])))
    with pytest.raises(ConfigError, match="queues"):
        restore(bench, state._replace(virtqueues=state.virtqueues[:1] * 3))


def test_addresses_outside_of_memory_need_a_reset_and_no_more(bench: Bench) -> None:
    bench.boot()
    state = bench.transport.state()
    wild = state.virtqueues[0]._replace(desc_gpa=1 << 50)
    transport = restore(bench, state._replace(virtqueues=(wild, *state.virtqueues[1:])))
    bench.loop.run()
    assert transport.state().status & VIRTIO_CONFIG_S_NEEDS_RESET
    transport.close()


def test_chains_that_a_device_holds_are_no_snapshot(bench: Bench) -> None:
    bench.boot()
    bench.driver.queues[0].add([b"x"], [64])
    assert bench.device.queues[0].next_chain() is not None
    with pytest.raises(HostError, match="at work on queue 0"):
        bench.transport.state()


# Pausing


def test_a_paused_device_touches_nothing(bench: Bench) -> None:
    bench.boot()
    assert bench.echo() == b"ping"
    bench.transport.pause()
    bench.transport.pause()
    assert bench.device.paused == 1
    before = bytes(bench.memory.view(0, bench.memory.size_bytes))
    done: list[str] = []

    def work() -> None:
        done.append("work")

    bench.driver.queues[0].add([b"later"], [64])
    offered = bytes(bench.memory.view(0, bench.memory.size_bytes))
    assert offered != before
    bench.transport.notify(0)
    for _ in range(1000):
        bench.transport.run(work)
        bench.transport.defer(work)
    bench.loop.run()
    assert bytes(bench.memory.view(0, bench.memory.size_bytes)) == offered
    assert len(bench.transport._waiting) == 1, "what waits grows"
    bench.transport.resume()
    bench.transport.resume()
    assert (done, bench.device.paused) == (["work"], 0)
    assert [each.data for each in bench.driver.queues[0].completed()] == [b"later"]


def test_a_device_that_is_busy_goes_on(bench: Bench) -> None:
    bench.boot()
    bench.device.is_busy = True
    with pytest.raises(HostError, match="busy"):
        bench.transport.pause()
    assert bench.device.paused == 0
    assert bench.echo() == b"ping"


def test_a_paused_device_is_reset_and_closed(bench: Bench) -> None:
    bench.boot()
    bench.transport.pause()
    bench.driver.reset()
    bench.driver.probe()
    bench.loop.run()
    assert bench.device.activations == 1, "it began while it was paused"
    bench.transport.resume()
    assert bench.device.activations == 2
    assert bench.echo() == b"ping"
    bench.transport.pause()
    bench.transport.close()
