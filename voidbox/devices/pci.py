"""A PCI bus with nothing on it but its host bridge.

PCI Local Bus 3.0 §3.2.2.3.2, configuration mechanism #1. Linux asks for a host bridge before it
believes in PCI at all, and complains on the console where it finds none; every other device reads
as all ones, absent.
"""

from __future__ import annotations

PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_PORTS = 8

_DATA_OFFSET = 4
_ENABLE = 1 << 31
_REGISTER_MASK = 0xFC
# Intel 82441FX, the bridge that virtual machines have always had; class 06 00: host bridge.
_HOST_BRIDGE = {0x00: 0x1237_8086, 0x08: 0x0600_0000}
_ABSENT = 0xFFFF_FFFF


class PciHostBridge:
    """CONFIG_ADDRESS at 0xcf8, CONFIG_DATA at 0xcfc. Writes to the bridge change nothing."""

    def __init__(self) -> None:
        self._address = 0

    def state(self) -> int:
        """Return CONFIG_ADDRESS; the vCPUs are paused."""
        return self._address

    def restore(self, address: int) -> None:
        """Continue with a CONFIG_ADDRESS. Before the machine's start."""
        self._address = address & _ones(4)

    def read(self, offset: int, width: int) -> int:
        """Read the address back, or a register of the addressed function."""
        if offset < _DATA_OFFSET:
            return self._address if (offset, width) == (0, 4) else _ones(width)
        if not self._address & _ENABLE:
            return _ones(width)
        value = _ABSENT
        if self._address & ~(_ENABLE | _REGISTER_MASK) == 0:  # bus 0, device 0, function 0
            value = _HOST_BRIDGE.get(self._address & _REGISTER_MASK, 0)
        return value >> 8 * (offset - _DATA_OFFSET) & _ones(width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Set the address; only a 4-byte write does."""
        if (offset, width) == (0, 4):
            self._address = value


def _ones(width: int) -> int:
    return (1 << 8 * width) - 1
