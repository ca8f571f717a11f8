"""What a guest may use of the host: in the record, at its start, and changed while it runs.

    cpu           CPUs of the host that it uses, such as 0.5
    disk_bytes_s  of each disk, read and written
    disk_ops_s    requests of each disk
    net_bytes_s   of the network, both directions
    memory_bytes  of the guest's memory, what it makes do with; the balloon takes the rest from it
    host_memory_bytes  of the host's memory, what the machine's process may hold, with the guest's
    pids          threads and processes that it may have

cpu and the last two are kept by a control group where there is one; see worker.process_limits.
None, or no such key, is no limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError
from voidbox.sandbox.worker.process_limits import CPU, HOST_MEMORY_BYTES, PIDS
from voidbox.vmm.config import MEMORY_BYTES_MIN

if TYPE_CHECKING:  # whoever makes a sandbox checks its limits, and has no machine
    from voidbox.sandbox.worker.machine import WorkerMachine

DISK_BYTES_S, DISK_OPS_S, NET_BYTES_S, MEMORY_BYTES = (
    "disk_bytes_s",
    "disk_ops_s",
    "net_bytes_s",
    "memory_bytes",
)
KEYS = (CPU, DISK_BYTES_S, DISK_OPS_S, NET_BYTES_S, MEMORY_BYTES, HOST_MEMORY_BYTES, PIDS)
Limits = dict[str, int | float | None]
_LEAST = {CPU: 0.01, HOST_MEMORY_BYTES: 64 << 20, PIDS: 64}  # or no machine would live


def check(values: Mapping[str, object]) -> Limits:
    """Return limits, those that are given.

    Raises:
        ConfigError: no such limit, or no number for it.
    """
    found: Limits = {}
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError(f"no limit {key!r}: there are {', '.join(KEYS)}")
        found[key] = None if value is None else _number(key, value)
    return found


def check_memory(wanted: int | float | None, has_bytes: int) -> None:
    """Refuse a limit of a guest's memory that is more than it has, or too little to live.

    Raises:
        ConfigError: says what there is.
    """
    if wanted is not None and not MEMORY_BYTES_MIN <= wanted <= has_bytes:
        raise ConfigError(
            f"the limit memory_bytes is {int(wanted):,}: give {MEMORY_BYTES_MIN:,} to "
            f"{has_bytes:,}, which the sandbox has"
        )


def _number(key: str, value: object) -> int | float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ConfigError(f"the limit {key} is a number, not {value!r}")
    number: int | float = value  # type: ignore[assignment]
    least = _LEAST.get(key, 1)
    if number < least:
        raise ConfigError(f"the limit {key} is {_shown(number)}: give at least {_shown(least)}")
    return float(number) if key == CPU else int(number)


def _shown(number: int | float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def apply(machine: WorkerMachine, limits: Limits, changed: Limits) -> None:
    """Have a machine keep to limits.

    Args:
        limits: all of them.
        changed: those that are new; the others are in force.
    Raises:
        ConfigError: it has no network to limit, or not as much memory, or this host keeps none.
        HostError: the host gives no thread for it, or the kernel refuses it.
    """
    if changed.get(NET_BYTES_S) is not None and machine.config.net is None:
        raise ConfigError("the sandbox has no network, so none to limit")
    check_memory(changed.get(MEMORY_BYTES), machine.config.memory_bytes)
    alone = (CPU, NET_BYTES_S, MEMORY_BYTES, HOST_MEMORY_BYTES, PIDS)
    orders = {key: limits.get(key) for key in alone if key in changed}
    if DISK_BYTES_S in changed or DISK_OPS_S in changed:
        orders |= {key: limits.get(key) for key in (DISK_BYTES_S, DISK_OPS_S)}
    machine.limit(orders)
