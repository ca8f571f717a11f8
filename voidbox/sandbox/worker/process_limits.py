"""What a worker's process may use of the host, as its keeper has the kernel see to it from outside.

In a control group of its own where the host lets this user make one: processor time, memory and
threads of all that the machine does, exactly. Elsewhere by what every host has:

    cpu                the worker's own throttle, of the vCPUs alone; see vmm.throttle
    host_memory_bytes  RLIMIT_DATA, which counts what is mapped: the guest's memory in full
    pids               RLIMIT_NPROC, which in a user namespace of its own counts its tasks alone,
                       but none of root's
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

from voidbox.errors import ConfigError, HostError
from voidbox.jail import cgroups
from voidbox.jail.cgroups import Group

CPU, HOST_MEMORY_BYTES, PIDS = KEYS = ("cpu", "host_memory_bytes", "pids")
_CONTROLLERS = {CPU: cgroups.CPU, HOST_MEMORY_BYTES: cgroups.MEMORY, PIDS: cgroups.PIDS}
MAPPED_BYTES_MIN = 512 << 20  # beside the guest's memory: Python, and a stack for each thread


class ProcessLimits:
    """The limits of one worker. Thread: one at a time.

    Args:
        pid: returns the worker's.
        memory_bytes: of its guest.
        group: that it is in, or None.
    """

    def __init__(
        self, pid: Callable[[], int], memory_bytes: int, group: Group | None = None
    ) -> None:
        self._pid = pid
        self._memory_bytes = memory_bytes
        self._group = group
        self._usual: dict[int, tuple[int, int]] = {}
        self.is_alone = False  # counted in a user namespace of its own

    def set(self, limits: Mapping[str, int | float | None]) -> dict[str, int | float | None]:
        """Have limits be kept, those of KEYS; return those that the worker has to see to.

        Raises:
            ConfigError: this host cannot keep it.
            HostError: the kernel refuses it.
        """
        left = dict(limits)
        for key in KEYS:
            if key in limits and self._set(key, limits[key]):
                del left[key]
        return left

    def _set(self, key: str, value: int | float | None) -> bool:
        """Have one be kept; False if the worker has to see to it."""
        group = self._group
        try:
            if group is not None and _CONTROLLERS[key] in group.controllers:
                self._set_in_group(group, key, value)
            elif key == HOST_MEMORY_BYTES:
                self._limit_mapped(value)
            elif key == PIDS:
                self._limit_tasks(value)
            else:
                return False
        except ProcessLookupError:
            return True  # it has ended
        except OSError as error:
            raise HostError.from_errno(f"limit {key}", error.errno or 0) from error
        return True

    def _set_in_group(self, group: Group, key: str, value: int | float | None) -> None:
        used = group.statistics().get("memory_bytes", 0)
        if key == HOST_MEMORY_BYTES and value is not None and used > value:
            raise ConfigError(
                f"the limit host_memory_bytes is {int(value):,}, and {used:,} are in use: that "
                "would be the sandbox's end"
            )
        _set_in_group(group, key, value)

    def _limit_mapped(self, value: int | float | None) -> None:
        check_mapped(value, self._memory_bytes)
        self._lower(resource.RLIMIT_DATA, value)

    def _limit_tasks(self, value: int | float | None) -> None:
        if value is not None and not self.is_alone:
            raise ConfigError(
                "the limit pids: this host has no control group for it, and counts tasks by user "
                "namespaces neither: voidbox doctor says more"
            )
        self._lower(resource.RLIMIT_NPROC, value)

    def _lower(self, which: int, value: int | float | None) -> None:
        """Set a soft limit; the hard one stays, and the jail lets the worker raise none."""
        pid = self._pid()
        soft, hard = resource.prlimit(pid, which)
        usual, _ = self._usual.setdefault(which, (soft, hard))
        wanted = usual if value is None else int(value)
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.prlimit(pid, which, (wanted, hard))

    def statistics(self) -> dict[str, int]:
        """Return what the group counts; see Group. {} without one."""
        return {} if self._group is None else self._group.statistics()

    def explain_end(self) -> str:
        """Return why the kernel has ended the worker, if it was for a limit of these; else ""."""
        if self.statistics().get("oom_kills"):
            return "it reached its limit of the host's memory"
        return ""


def check_mapped(value: int | float | None, memory_bytes: int) -> None:
    """Refuse a limit of the host's memory that RLIMIT_DATA cannot keep.

    Args:
        memory_bytes: of the guest.
    Raises:
        ConfigError: says what it can be.
    """
    least = memory_bytes + MAPPED_BYTES_MIN
    if value is not None and value < least:
        raise ConfigError(
            f"the limit host_memory_bytes is {int(value):,}: without a control group, of which "
            f"voidbox doctor says more, give at least {least:,}, the guest's memory and "
            f"{MAPPED_BYTES_MIN >> 20} MiB"
        )


def begin(group: Group, limits: Mapping[str, int | float | None]) -> None:
    """Have a group keep limits from before its workers have made anything.

    Raises:
        HostError: the kernel refuses it; the group is gone.
    """
    try:
        for key in set(limits) & {*KEYS}:
            if _CONTROLLERS[key] in group.controllers:
                _set_in_group(group, key, limits[key])
    except OSError as error:
        group.close()
        raise HostError.from_errno(f"limit by {group.folder}", error.errno or 0) from error


def _set_in_group(group: Group, key: str, value: int | float | None) -> None:
    if key == CPU:
        group.limit_cpu(value)
    elif key == PIDS:
        group.limit_pids(None if value is None else int(value))
    else:
        group.limit_memory(None if value is None else int(value))
