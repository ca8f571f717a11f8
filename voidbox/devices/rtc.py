"""The MC146818 real-time clock: the host's UTC time, read-only, without alarms."""

from __future__ import annotations

import time
from collections.abc import Callable

from voidbox.named_tuple import NamedTuple

RTC_PORT = 0x70
RTC_PORTS = 2

RTC_SECONDS = 0x00
RTC_MINUTES = 0x02
RTC_HOURS = 0x04
RTC_DAY_OF_WEEK = 0x06
RTC_DAY_OF_MONTH = 0x07
RTC_MONTH = 0x08
RTC_YEAR = 0x09
RTC_REG_A = 0x0A
RTC_REG_B = 0x0B
RTC_REG_D = 0x0D
RTC_CENTURY = 0x32

_REF_CLOCK_32KHZ_1024HZ = 0x26  # and UIP clear: a read never meets an update
_RTC_24H = 0x02
_RTC_DM_BINARY = 0x04
_RTC_VRT = 0x80  # valid RAM and time


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class RtcState(NamedTuple):
    """The clock's registers. The time is the host's, and right by itself."""

    selected: int
    control: int


class Rtc:
    """Index port 0x70, data port 0x71. Times are BCD unless the guest sets RTC_DM_BINARY.

    Setting the clock is accepted and ignored: the host keeps the time.

    Args:
        now_s: seconds since the epoch.
    """

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._index = 0
        self._control = _RTC_24H

    def state(self) -> RtcState:
        """Return the registers; the vCPUs are paused."""
        return RtcState(self._index, self._control)

    def restore(self, state: RtcState) -> None:
        """Continue from a state. Before the machine's start."""
        self._index = state.selected & 0x7F
        self._control = state.control & _RTC_DM_BINARY | _RTC_24H

    def read(self, offset: int, width: int) -> int:
        """Read the register that the index selects; the index itself cannot be read back."""
        if offset == 0:
            return 0xFF
        if self._index == RTC_REG_A:
            return _REF_CLOCK_32KHZ_1024HZ
        if self._index == RTC_REG_B:
            return self._control
        if self._index == RTC_REG_D:
            return _RTC_VRT
        return self._time_register()

    def _time_register(self) -> int:
        now = time.gmtime(self._now_s())
        field = {
            RTC_SECONDS: now.tm_sec,
            RTC_MINUTES: now.tm_min,
            RTC_HOURS: now.tm_hour,
            RTC_DAY_OF_WEEK: (now.tm_wday + 1) % 7 + 1,  # 1 is Sunday
            RTC_DAY_OF_MONTH: now.tm_mday,
            RTC_MONTH: now.tm_mon,
            RTC_YEAR: now.tm_year % 100,
            RTC_CENTURY: now.tm_year // 100,
        }.get(self._index, 0)
        return field if self._control & _RTC_DM_BINARY else _bcd(field)

    def write(self, offset: int, width: int, value: int) -> None:
        """Select a register, or set the data mode."""
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks NMIs
        elif self._index == RTC_REG_B:
            self._control = value & _RTC_DM_BINARY | _RTC_24H
