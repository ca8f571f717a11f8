"""The keyboard controller, as far as a guest without a keyboard needs it: the CPU reset line."""

from __future__ import annotations

from collections.abc import Callable

I8042_PORT = 0x60
I8042_PORTS = 5
_COMMAND_OFFSET = 4  # port 0x64
_PULSE_RESET = 0xFE


class I8042:
    """Ports 0x60 to 0x64. Idle and empty, but command 0xFE resets the machine.

    Args:
        on_reset: called on the vCPU thread.
    """

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset

    def read(self, offset: int, width: int) -> int:
        """Status and data are 0: nothing received, and the input buffer is free."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Obey the reset command; there is nothing else to command."""
        if offset == _COMMAND_OFFSET and value & 0xFF == _PULSE_RESET:
            self._on_reset()
