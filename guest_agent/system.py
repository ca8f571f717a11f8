"""Requests about the guest as a whole: METRICS, SET_CLOCK, SHUTDOWN."""

from __future__ import annotations

import os
import time

from guest_agent import arguments, protocol
from guest_agent.connection import Connection, Request, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_KIB = 1024
_POWER_OFF, _REBOOT = "poweroff", "reboot"


class Metrics(Request):
    """Measure the guest.

    Answers: RESULT {cpus, load (1, 5, 15 minutes), cpu_ns {user, system, idle, steal}, uptime_s,
    memory_bytes, memory_available_bytes, disk_bytes, disk_available_bytes, processes, clock_ns}.
    """

    def start(self, values: dict[str, Any]) -> None:
        memory = _meminfo()
        disk = os.statvfs("/")
        with open("/proc/uptime", encoding="ascii") as file:
            uptime = float(file.read().split()[0])
        self.result(
            {
                "cpus": os.sysconf("SC_NPROCESSORS_ONLN"),
                "load": list(os.getloadavg()),
                "cpu_ns": _cpu_times_ns(),
                "uptime_s": uptime,
                "memory_bytes": memory.get("MemTotal", 0),
                "memory_available_bytes": memory.get("MemAvailable", 0),
                "disk_bytes": disk.f_blocks * disk.f_frsize,
                "disk_available_bytes": disk.f_bavail * disk.f_frsize,
                "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
                "clock_ns": time.time_ns(),
            }
        )


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * _KIB
    return found


def _cpu_times_ns() -> dict[str, int]:
    """Return what the first line of /proc/stat says of all CPUs together; proc(5)."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, iowait, irq, softirq, steal = (*ticks, *[0] * 8)[:8]
    return {
        "user": (user + nice) * tick_ns,
        "system": (system + irq + softirq) * tick_ns,
        "idle": (idle + iowait) * tick_ns,
        "steal": steal * tick_ns,
    }


class SetClock(Request):
    """Set the guest's clock, after a snapshot say. Values: clock_ns, since 1970."""

    def start(self, values: dict[str, Any]) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, arguments.integer(values, "clock_ns"))
        self.result({})


class Shutdown(Request):
    """End the guest. Values: action, "poweroff" (default) or "reboot". RESULT comes first."""

    def __init__(
        self, on_shutdown: Callable[[bool], None], connection: Connection, number: int
    ) -> None:
        super().__init__(connection, number)
        self._on_shutdown = on_shutdown

    def start(self, values: dict[str, Any]) -> None:
        action = arguments.text(values, "action", _POWER_OFF)
        if action not in (_POWER_OFF, _REBOOT):
            raise RequestError(protocol.BAD_REQUEST, f"no action {action!r}")
        self.result({})
        self._on_shutdown(action == _REBOOT)
