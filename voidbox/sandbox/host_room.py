"""Whether the host has threads and open files left for one more sandbox, before it is started.

One that runs out of them half way fails somewhere, and so does whoever else needs one just then.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from voidbox.errors import HostError

THREADS, FILES = 32, 128  # of a sandbox's processes, beside one thread a CPU; and some to spare
_PROGRAM_FILES = 16  # of this program, for one start

_CGROUPS = "/sys/fs/cgroup"


def check(cpus: int, root: str = "") -> None:
    """See that there is room for one more sandbox.

    Args:
        root: where /proc and /sys are.
    Raises:
        HostError: there is none; says what to raise.
    """
    threads = THREADS + cpus
    total, ceiling = _tasks(root), _smallest(f"{root}/proc/sys/kernel", ("threads-max", "pid_max"))
    _refuse(threads, total, ceiling, "threads", "kernel.pid_max and kernel.threads-max")
    for folder in own_cgroups(root):
        used, most = number_in(f"{folder}/pids.current"), number_in(f"{folder}/pids.max")
        _refuse(threads, used, most, "threads in this control group", "its pids.max")
    with suppress(OSError, ValueError, IndexError):
        allocated, unused, most = map(int, _read(f"{root}/proc/sys/fs/file-nr").split())
        _refuse(FILES, allocated - unused, most, "open files", "fs.file-max")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        # The lowest number that is free says how many are open, but for a few holes.
        with suppress(OSError):
            probe = os.open("/", os.O_PATH | os.O_CLOEXEC)
            os.close(probe)
            _refuse(_PROGRAM_FILES, probe, soft, "open files of this program", "ulimit -n")


def _refuse(needed: int, used: int | None, most: int | None, what: str, limit: str) -> None:
    if used is not None and most is not None and used + needed > most:
        raise HostError(
            f"no room for one more sandbox: it may need {needed} {what}, and {used:,} of {most:,} "
            f"are in use: end some, or raise {limit}"
        )


def _tasks(root: str) -> int | None:
    """Return how many threads there are on the host."""
    with suppress(OSError, ValueError, IndexError):
        return int(_read(f"{root}/proc/loadavg").split()[3].partition("/")[2])
    return None


def own_cgroups(root: str = "") -> list[str]:
    """Return the folders of this process's control group and those around it."""
    found = []
    with suppress(OSError, StopIteration):
        lines = _read(f"{root}/proc/self/cgroup").splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        while True:
            found.append(f"{root}{_CGROUPS}{path}".rstrip("/"))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return found


def _smallest(folder: str, names: tuple[str, ...]) -> int | None:
    found = [number for name in names if (number := number_in(f"{folder}/{name}")) is not None]
    return min(found) if found else None


def number_in(path: str) -> int | None:
    """Return the number that a file has; None where there is none, or no limit."""
    with suppress(OSError, ValueError):  # there is none, or it says "max"
        return int(_read(path))
    return None


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
