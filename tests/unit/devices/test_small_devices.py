"""The bus, the clock, PCI's host bridge, power, and the boot timer."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.devices.bus import Bus
from voidbox.devices.i8042 import I8042
from voidbox.devices.pci import PciHostBridge
from voidbox.devices.power import AcpiPower, BootTimer, PvPanic
from voidbox.devices.rtc import Rtc


class Recorder:
    """A device that remembers what it was asked."""

    def __init__(self, value: int = 0x42) -> None:
        self.value = value
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, width: int) -> int:
        self.calls.append((offset, width))
        return self.value

    def write(self, offset: int, width: int, value: int) -> None:
        self.calls.append((offset, width, value))


def test_the_bus_gives_offsets_and_answers_for_nobody_with_ones() -> None:
    bus, low, high = Bus(), Recorder(1), Recorder(2)
    bus.attach(0x100, 8, high)
    bus.attach(0x10, 4, low)
    assert bus.read(0x12, 2) == 1
    assert bus.read(0x107, 1) == 2
    bus.write(0x100, 4, 99)
    assert low.calls == [(2, 2)]
    assert high.calls == [(7, 1), (0, 4, 99)]
    for address, width in ((0, 1), (0xF, 1), (0x13, 2), (0x14, 1), (0x107, 2), (0x108, 4)):
        assert bus.read(address, width) == (1 << 8 * width) - 1
        bus.write(address, width, 0)
    assert len(low.calls) == 1


@pytest.mark.parametrize("base", [0xF9, 0x100, 0x104, 0x107])
def test_overlaps_on_the_bus_are_refused(base: int) -> None:
    bus = Bus()
    bus.attach(0x100, 8, Recorder())
    bus.attach(0x108, 8, Recorder())
    with pytest.raises(ValueError, match="taken"):
        bus.attach(base, 8, Recorder())


def rtc_time(rtc: Rtc) -> int:
    """Read the clock as Linux does, in BCD; returns seconds since the epoch."""

    def field(index: int) -> int:
        rtc.write(0, 1, index)
        value = rtc.read(1, 1)
        return (value >> 4) * 10 + (value & 0xF)

    year = field(0x32) * 100 + field(9)
    return calendar.timegm((year, field(8), field(7), field(4), field(2), field(0)))


@given(st.integers(0, 4_000_000_000))
def test_the_clock_tells_the_hosts_time(now_s: int) -> None:
    assert rtc_time(Rtc(lambda: now_s)) == now_s


def test_the_clocks_registers() -> None:
    rtc = Rtc(lambda: 1_700_000_059.9)
    rtc.write(0, 1, 0x80 | 0x0A)  # bit 7 masks NMIs
    assert rtc.read(1, 1) & 0x80 == 0, "no update in progress"
    rtc.write(0, 1, 0x0D)
    assert rtc.read(1, 1) == 0x80
    rtc.write(0, 1, 0x0B)
    rtc.write(1, 1, 0x04)
    assert rtc.read(1, 1) == 0x06, "binary, 24 hours"
    rtc.write(0, 1, 0)
    assert rtc.read(1, 1) == 1_700_000_059 % 60
    rtc.write(1, 1, 33)
    assert rtc.read(1, 1) == 1_700_000_059 % 60, "the host keeps the time"


def pci_read(bus: PciHostBridge, address: int, offset: int = 0, width: int = 4) -> int:
    bus.write(0, 4, address)
    return bus.read(4 + offset, width)


def test_pci_has_a_host_bridge_and_nothing_else() -> None:
    bus = PciHostBridge()
    bus.write(0, 4, 0x8000_0000)
    assert bus.read(0, 4) == 0x8000_0000
    assert pci_read(bus, 0x8000_0000) == 0x1237_8086
    assert pci_read(bus, 0x8000_0008, offset=2, width=2) == 0x0600
    for device in range(1, 32):
        assert pci_read(bus, 0x8000_0000 | device << 11) == 0xFFFF_FFFF
    assert pci_read(bus, 0x8000_0100) == 0xFFFF_FFFF, "no other function"
    assert pci_read(bus, 0x8001_0000) == 0xFFFF_FFFF, "no other bus"
    assert pci_read(bus, 0) == 0xFFFF_FFFF, "not enabled"
    bus.write(0, 1, 0x55)
    assert bus.read(0, 4) == 0


def test_power_and_reset() -> None:
    events: list[str] = []
    power = AcpiPower(lambda: events.append("off"), lambda: events.append("reset"))
    power.write(0, 1, 5 << 2)  # SLP_TYP without SLP_EN
    power.write(0, 1, 1 << 5)  # S0
    power.write(2, 1, 0)
    assert events == []
    power.write(0, 1, 5 << 2 | 1 << 5)
    power.write(2, 1, 1)
    assert events == ["off", "reset"]
    assert power.read(1, 1) == 0


def test_keyboard_controller() -> None:
    events: list[str] = []
    controller = I8042(lambda: events.append("reset"))
    assert controller.read(4, 1) == 0, "neither full nor busy"
    controller.write(4, 1, 0xD1)
    controller.write(0, 1, 0xFE)
    assert events == []
    controller.write(4, 1, 0xFE)
    assert events == ["reset"]


def test_panic_notifier() -> None:
    events: list[str] = []
    device = PvPanic(lambda: events.append("panic"))
    assert device.read(0, 1) == 3
    device.write(0, 1, 2)
    assert events == []
    device.write(0, 1, 1)
    assert events == ["panic"]


def test_boot_timer_takes_the_first_right_value() -> None:
    times = iter([10, 20])
    timer = BootTimer(lambda: next(times))
    timer.write(0, 1, 122)
    assert timer.reached_ns is None
    timer.write(0, 1, 123)
    timer.write(0, 1, 123)
    assert timer.reached_ns == 10
    assert timer.read(0, 2) == 0xFFFF
