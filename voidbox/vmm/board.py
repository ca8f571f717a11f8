"""The board: the devices at fixed ports that every machine has, and how ACPI tells of them.

UART of the console, perhaps a second one, clock, PCI host bridge, keyboard controller, power
registers, pvpanic, boot timer: each is put on the bus of ports, which vCPU threads call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from voidbox.boot import acpi
from voidbox.devices.bus import Bus
from voidbox.devices.i8042 import I8042, I8042_PORT, I8042_PORTS
from voidbox.devices.pci import PCI_CONFIG_PORT, PCI_CONFIG_PORTS, PciHostBridge
from voidbox.devices.power import (
    ACPI_PM_PORT,
    ACPI_PM_PORTS,
    BOOT_TIMER_PORT,
    BOOT_TIMER_PORTS,
    PVPANIC_PORT,
    PVPANIC_PORTS,
    RESET_OFFSET,
    RESET_VALUE,
    SLEEP_CONTROL_OFFSET,
    SLEEP_STATUS_OFFSET,
    SLP_TYP_S5,
    AcpiPower,
    BootTimer,
    PvPanic,
)
from voidbox.devices.rtc import RTC_PORT, RTC_PORTS, Rtc
from voidbox.devices.serial import (
    COM1_GSI,
    COM1_PORT,
    COM2_GSI,
    COM2_PORT,
    SERIAL_PORTS,
    UART_TX,
    Serial,
)
from voidbox.event_loop import EventLoop
from voidbox.vmm.console import Console
from voidbox.vmm.hardware import Hardware
from voidbox.vmm.outcome import EndReason

if TYPE_CHECKING:  # few machines have one
    from voidbox.vmm.machine_state import MachineState
    from voidbox.vmm.serial_port import SerialPort

# Port writes that need no answer and are always followed by an access that exits, which drains
# them: (port, width in bytes). Linux polls LSR or IIR after every burst to the UART.
_COALESCED_PORTS = ((COM1_PORT + UART_TX, 1), (RTC_PORT, 1), (0x80, 1), (0xCF8, 4))
_COALESCED_SERIAL_LINE = (COM2_PORT + UART_TX, 1)
_DRAIN_S, _DRAIN_S_MAX = 0.1, 2.0  # how long a coalesced write waits; while there are none

_POWER_REGISTERS = acpi.PowerRegisters(
    sleep_control_port=ACPI_PM_PORT + SLEEP_CONTROL_OFFSET,
    sleep_status_port=ACPI_PM_PORT + SLEEP_STATUS_OFFSET,
    reset_port=ACPI_PM_PORT + RESET_OFFSET,
    reset_value=RESET_VALUE,
    slp_typ_s5=SLP_TYP_S5,
)
_PORT_DEVICES = (
    acpi.PortDevice("COM1", "PNP0501", COM1_PORT, SERIAL_PORTS, COM1_GSI),
    acpi.PortDevice("RTC", "PNP0B00", RTC_PORT, RTC_PORTS),
    acpi.PortDevice("PEVT", "QEMU0001", PVPANIC_PORT, PVPANIC_PORTS),
)
_SERIAL_LINE = acpi.PortDevice("COM2", "PNP0501", COM2_PORT, SERIAL_PORTS, COM2_GSI)


class Board:
    """The devices at fixed ports. Thread: the caller's, before the vCPUs start.

    Args:
        has_serial_line: with a second UART, for programs.
        on_end: the guest has powered off, reset or panicked. Called by vCPU threads.

    Attributes:
        ports, mmio: what a vCPU's accesses go to; frozen once it runs.
        coalesced: the writes that KVM queues, or None.
        console: the first UART, as a stream.
        serial_port: the second one, as a stream; None without it.
    """

    def __init__(
        self,
        hardware: Hardware,
        loop: EventLoop,
        has_serial_line: bool,
        on_end: Callable[[EndReason], None],
    ) -> None:
        self._loop = loop
        self.ports, self.mmio = Bus(), Bus()
        serial_line = (_COALESCED_SERIAL_LINE,) if has_serial_line else ()
        self.coalesced = hardware.coalesce((*_COALESCED_PORTS, *serial_line), self.ports, self.mmio)
        self.uart = Serial(partial(hardware.vm.irq_line, COM1_GSI))
        self.serial_line: Serial | None = None
        self.serial_port: SerialPort | None = None
        self.rtc, self.pci, self.boot_timer = Rtc(), PciHostBridge(), BootTimer()
        self.console = Console(loop, self.uart)
        power = AcpiPower(
            on_power_off=lambda: on_end(EndReason.POWER_OFF),
            on_reset=lambda: on_end(EndReason.RESET),
        )
        for port, count, device in (
            (COM1_PORT, SERIAL_PORTS, self.uart),
            (I8042_PORT, I8042_PORTS, I8042(lambda: on_end(EndReason.RESET))),
            (PCI_CONFIG_PORT, PCI_CONFIG_PORTS, self.pci),
            (RTC_PORT, RTC_PORTS, self.rtc),
            (ACPI_PM_PORT, ACPI_PM_PORTS, power),
            (PVPANIC_PORT, PVPANIC_PORTS, PvPanic(lambda: on_end(EndReason.PANIC))),
            (BOOT_TIMER_PORT, BOOT_TIMER_PORTS, self.boot_timer),
        ):
            self.ports.attach(port, count, device)
        if has_serial_line:
            self._attach_serial_line(hardware)

    def _attach_serial_line(self, hardware: Hardware) -> None:
        from voidbox.vmm.serial_port import SerialPort

        self.serial_line = Serial(partial(hardware.vm.irq_line, COM2_GSI))
        self.ports.attach(COM2_PORT, SERIAL_PORTS, self.serial_line)
        self.serial_port = SerialPort(self._loop, self.serial_line)

    def acpi_tables(self, cpus: int, virtio: Sequence[acpi.MmioDevice]) -> bytes:
        """Return what tells the guest of all this, and of its virtio devices."""
        ports = _PORT_DEVICES + ((_SERIAL_LINE,) if self.serial_line is not None else ())
        return acpi.build(cpus, _POWER_REGISTERS, ports, virtio)

    def restore(self, state: MachineState) -> None:
        """Have the registers be what a snapshot says."""
        self.uart.restore(state.console)
        if self.serial_line is not None and state.serial_line is not None:
            self.serial_line.restore(state.serial_line)
        self.rtc.restore(state.rtc)
        self.pci.restore(state.pci_address)

    def raise_lines(self) -> None:
        """Raise those lines that are high: a new interrupt controller's are all low."""
        for serial in (self.uart, self.serial_line):
            if serial is not None:
                serial.raise_line()

    def drain(self) -> None:
        """Perform the writes that KVM has queued. Thread: any."""
        if self.coalesced is not None and self.coalesced.has_entries():
            self.coalesced.drain()

    def drain_regularly(self, pause_s: float = _DRAIN_S) -> None:
        """Perform those of a guest that makes no exit, such as one that halts. Thread: loop.

        Seldom, while there are none: drivers follow such writes with an access that exits.
        """
        if self.coalesced is not None:
            has_entries = self.coalesced.has_entries()
            pause_s = _DRAIN_S if has_entries else min(2 * pause_s, _DRAIN_S_MAX)
            self.drain()
            self._loop.call_later(pause_s, partial(self.drain_regularly, pause_s))

    def close(self) -> None:
        """End the program's stream. Idempotent."""
        if self.serial_port is not None:
            self.serial_port.close()
