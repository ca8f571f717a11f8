"""cgroup v2: a control group of our own, where the host lets this user make one.

That is below this process's own group or one around it, if it is delegated: a session of the user's
systemd, a service with Delegate=, a container's own tree, or root's. Linux wants the group above
to hold no process itself ("no internal processes"), but for the root. A process can only be moved
where the user may write the cgroup.procs of the group that is above both places.

Who made a group holds a lock on its folder: what is left behind of a killed one is found by that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

CPU, MEMORY, PIDS = CONTROLLERS = ("cpu", "memory", "pids")
PREFIX = "voidbox-"
PERIOD_US = 100_000  # of cpu.max
_QUOTA_US_MIN = 1000  # Linux takes no less
_MAX = "max"
_EMPTY_S, _LOOK_S = 2.0, 0.01  # until a group is empty whose processes have been waited for


class Group:
    """A group that a process of ours is in, or will be. Thread: one at a time.

    Args:
        folder: of the file system of control groups.
        fd: of the folder, locked; None: somebody else made it, and removes it.

    Attributes:
        folder: see above.
        controllers: what of it can be limited.
    """

    def __init__(self, folder: str, fd: int | None = None) -> None:
        self.folder = folder
        self._fd = fd
        self.controllers = _controllers(folder, "cgroup.controllers")

    def add(self, pid: int) -> None:
        """Move a process here; what it starts from then on is here, too. Raises OSError."""
        _write(f"{self.folder}/cgroup.procs", str(pid))

    def limit_cpu(self, cpus: float | None) -> None:
        """Limit the CPU time of all together; None: not. Raises OSError."""
        quota = _MAX if cpus is None else max(_QUOTA_US_MIN, round(cpus * PERIOD_US))
        _write(f"{self.folder}/cpu.max", f"{quota} {PERIOD_US}")

    def limit_memory(self, size_bytes: int | None) -> None:
        """Limit the memory of all together, page cache included; None: not. Raises OSError.

        What cannot be kept in it is not swapped out, but ends all of them.
        """
        _write(f"{self.folder}/memory.max", _MAX if size_bytes is None else str(size_bytes))
        with contextlib.suppress(OSError):  # a kernel without swap has no such file
            _write(f"{self.folder}/memory.swap.max", _MAX if size_bytes is None else "0")
        _write(f"{self.folder}/memory.oom.group", "1")

    def limit_pids(self, count: int | None) -> None:
        """Limit threads and processes; None: not. Raises OSError."""
        _write(f"{self.folder}/pids.max", _MAX if count is None else str(count))

    def statistics(self) -> dict[str, int]:
        """Return what is used, as far as it is counted: memory_bytes, pids, cpu_held_ns, oom_kills.

        cpu_held_ns: how long its threads stood still for the limit, all together.
        """
        found = {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            if MEMORY in self.controllers:
                found["memory_bytes"] = int(_read(f"{self.folder}/memory.current"))
                found["oom_kills"] = _numbers(f"{self.folder}/memory.events")["oom_kill"]
            if PIDS in self.controllers:
                found["pids"] = int(_read(f"{self.folder}/pids.current"))
            if CPU in self.controllers:
                throttled_us = _numbers(f"{self.folder}/cpu.stat")["throttled_usec"]
                found["cpu_held_ns"] = throttled_us * 1000
        return found

    def close(self) -> None:
        """Remove it, whose processes have ended. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        until = time.monotonic() + _EMPTY_S
        while not _remove(self.folder) and time.monotonic() < until:
            time.sleep(_LOOK_S)  # what is left then, the next one removes: see find()
        os.close(fd)


def find() -> str | None:
    """Return the folder of a group below which this process may make one; None: there is none.

    Of those around this process the one with the most of CONTROLLERS; of these the nearest. What
    killed processes have left of ours in it is removed.
    """
    best, best_count = None, 0
    for folder in _around("/proc/self/cgroup"):
        count = len(_enabled(folder)) if _is_writable(folder) else 0
        if count > best_count:
            best, best_count = folder, count
    if best is not None:
        _tidy(best)
    return best


def make(folder: str, name: str) -> Group:
    """Return a group of our own below what find() has returned. Raises OSError."""
    path = f"{folder}/{PREFIX}{name}"
    while True:
        os.mkdir(path, 0o700)
        fd = _lock(path)
        if fd is not None:
            return Group(path, fd)


def _lock(folder: str) -> int | None:
    """Return its descriptor, locked; None if somebody has removed it meanwhile, as left behind."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_ino == os.stat(folder).st_ino:
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def around_of(pid: int) -> str | None:
    """Return the folder of the group that a process is in; None: it is not known."""
    return next(iter(_around(f"/proc/{pid}/cgroup")), None)


def _around(cgroup_file: str) -> Iterator[str]:
    """Yield the folders of a process's group, and of those around it, nearest first."""
    try:
        lines = _read(cgroup_file).splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        top, mounted_at = _mount()
    except (OSError, StopIteration, ValueError):
        return
    if path != top and not path.startswith(top.rstrip("/") + "/"):
        return  # it is in none that can be seen here
    path = path[len(top.rstrip("/")) :].rstrip("/")
    while True:
        yield f"{mounted_at}{path}"
        if not path:
            return
        path = os.path.dirname(path).rstrip("/")


def _is_writable(folder: str) -> bool:
    files = (folder, f"{folder}/cgroup.procs", f"{folder}/cgroup.subtree_control")
    return all(os.access(file, os.W_OK) for file in files)


def _mount() -> tuple[str, str]:
    """Return the root of the first cgroup2 file system as it is mounted, and where; proc(5)."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            root, folder = fields.split()[3:5]
            return root, folder
    raise ValueError("cgroup2 is not mounted")


def _enabled(folder: str) -> frozenset[str]:
    """Return the controllers that groups below have, once those that can be are switched on."""
    for controller in _controllers(folder, "cgroup.controllers"):
        with contextlib.suppress(OSError):  # EBUSY: it holds processes itself
            _write(f"{folder}/cgroup.subtree_control", f"+{controller}")
    return _controllers(folder, "cgroup.subtree_control")


def _controllers(folder: str, name: str) -> frozenset[str]:
    try:
        return frozenset(_read(f"{folder}/{name}").split()) & {*CONTROLLERS}
    except OSError:
        return frozenset()


def _tidy(folder: str) -> None:
    """Remove groups of ours that nobody holds any more."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                _remove_left(entry.path)


def _remove_left(folder: str) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rmdir(folder)
        finally:
            os.close(fd)


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _numbers(path: str) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {name: int(value) for name, value in pairs}


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
