"""The bus: which device answers at an address. One instance for ports, one for MMIO.

Devices see offsets into their own range, never absolute addresses, so that they can be placed
anywhere and tested without a bus.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol


class BusDevice(Protocol):
    """What a device offers to the bus. Thread: any vCPU."""

    def read(self, offset: int, width: int) -> int:
        """Return the little-endian value of `width` bytes (1, 2, 4 or 8) at `offset`."""

    def write(self, offset: int, width: int, value: int) -> None:
        """Take the little-endian value of `width` bytes (1, 2, 4 or 8) at `offset`."""


class Bus:
    """Ranges of addresses and the devices behind them.

    Devices are attached while the machine is built; afterwards the bus only reads its tables, so
    vCPU threads need no lock.
    """

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._ranges: list[tuple[int, int, BusDevice]] = []

    def attach(self, base: int, length: int, device: BusDevice) -> None:
        """Put `device` at [base, base + length).

        Raises:
            ValueError: the range overlaps another device's.
        """
        position = bisect_right(self._bases, base)
        before = self._ranges[position - 1] if position else None
        after = self._ranges[position] if position < len(self._ranges) else None
        if (before and before[1] > base) or (after and after[0] < base + length):
            raise ValueError(f"the bus range at {base:#x} is taken")
        self._bases.insert(position, base)
        self._ranges.insert(position, (base, base + length, device))

    def read(self, address: int, width: int) -> int:
        """Read from the device at `address`; all ones where nothing answers, as on a real bus."""
        position = bisect_right(self._bases, address) - 1
        if position >= 0:
            base, end, device = self._ranges[position]
            if address + width <= end:
                return device.read(address - base, width)
        return (1 << (8 * width)) - 1

    def write(self, address: int, width: int, value: int) -> None:
        """Write to the device at `address`; lost where nothing answers."""
        position = bisect_right(self._bases, address) - 1
        if position >= 0:
            base, end, device = self._ranges[position]
            if address + width <= end:
                device.write(address - base, width, value)
