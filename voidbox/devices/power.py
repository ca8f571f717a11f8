"""How a guest ends: ACPI sleep and reset registers, pvpanic; and how it says that it has begun."""

from __future__ import annotations

import time
from collections.abc import Callable

# ACPI 6.4 §4.8.3.7 (sleep control and status), §4.8.3.6 (reset), placed by the FADT.
ACPI_PM_PORT = 0x600
ACPI_PM_PORTS = 3
SLEEP_CONTROL_OFFSET = 0
SLEEP_STATUS_OFFSET = 1
RESET_OFFSET = 2
RESET_VALUE = 1
SLP_TYP_S5 = 5
_SLP_TYP_SHIFT = 2
_SLP_EN = 1 << 5

# QEMU docs/specs/pvpanic.rst
PVPANIC_PORT = 0x505
PVPANIC_PORTS = 1
PVPANIC_PANICKED = 1 << 0
PVPANIC_CRASH_LOADED = 1 << 1

# One byte, 123, written by the guest's init when it is up: the boot timer.
BOOT_TIMER_PORT = 0x3F0
BOOT_TIMER_PORTS = 1
BOOT_TIMER_VALUE = 123


class AcpiPower:
    """The hardware-reduced ACPI registers: `poweroff` and `reboot`. Callbacks on the vCPU."""

    def __init__(self, on_power_off: Callable[[], None], on_reset: Callable[[], None]) -> None:
        self._on_power_off = on_power_off
        self._on_reset = on_reset

    def read(self, offset: int, width: int) -> int:
        """All bits clear: no wake-up is pending."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Enter S5, or reset; other sleep states are not offered by the DSDT."""
        if offset == SLEEP_CONTROL_OFFSET:
            if value & _SLP_EN and value >> _SLP_TYP_SHIFT & 7 == SLP_TYP_S5:
                self._on_power_off()
        elif offset == RESET_OFFSET and value & 0xFF == RESET_VALUE:
            self._on_reset()


class PvPanic:
    """The paravirtual panic notifier, for kernels that drive it. Callback on the vCPU."""

    def __init__(self, on_panic: Callable[[], None]) -> None:
        self._on_panic = on_panic

    def read(self, offset: int, width: int) -> int:
        """The events that are understood."""
        return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED

    def write(self, offset: int, width: int, value: int) -> None:
        """Take an event; a loaded crash kernel goes on to run, so only a plain panic ends."""
        if value & PVPANIC_PANICKED:
            self._on_panic()


class BootTimer:
    """Records when the guest's init first wrote 123 to the boot-timer port.

    Attributes:
        reached_ns: time.monotonic_ns() of the write, or None.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self.reached_ns: int | None = None

    def read(self, offset: int, width: int) -> int:
        """Nothing to read: as an absent port."""
        return (1 << (8 * width)) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """Note the time of the first right value; later ones change nothing."""
        if value & 0xFF == BOOT_TIMER_VALUE and self.reached_ns is None:
            self.reached_ns = self._now_ns()
