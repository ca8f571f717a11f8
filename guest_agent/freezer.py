"""Stops all processes of the guest but the agent, by cgroup v2, unseen by any of them.

Commands start in the root cgroup, as the agent does, and that cannot be frozen: to start each in
one of its own would cost every command. So whoever is in the root is moved out of it first.
"""

from __future__ import annotations

import contextlib
import os
import time

from guest_agent import cgroups
from guest_agent.loop import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
_FOLDER = "voidbox-frozen"
_PASSES_MAX = 20  # who forks while being moved leaves somebody behind for the next
_FROZEN_S = 0.5
_POLL_S = 0.001
_PF_KTHREAD = 0x00200000  # <linux/sched.h>; field 9 of proc(5)'s stat


class Freezer:
    """Freezes and thaws. Only for an agent in the root cgroup, as PID 1 is, or in one of its own.

    That one has the commands in it as well, so the agent is in the root while they are frozen.
    """

    def __init__(self, root: str = ROOT, membership: str = "/proc/self/cgroup") -> None:
        self._root = root
        self._membership = membership
        self._frozen: list[str] = []
        self._has_left_own = False

    def freeze(self) -> bool:
        """Freeze all there is; False, and nothing is frozen, if that cannot be done."""
        try:
            if not self._is_ready():
                return False
            if self._empty_root():
                self._frozen = list(self._groups())
                for group in self._frozen:
                    _write(f"{group}/cgroup.freeze", b"1")
                if self._await_frozen():
                    return True
                log(f"the guest's processes are not frozen after {_FROZEN_S:g} s")
            else:
                log("the guest's processes multiply too fast to be frozen")
        except OSError as error:
            log(f"cannot freeze the guest's processes: {error}")
        self.thaw()
        return False

    def thaw(self) -> None:
        """Let all run. Idempotent."""
        groups, self._frozen = self._frozen, []
        for group in groups:
            with contextlib.suppress(OSError):  # it may be gone
                _write(f"{group}/cgroup.freeze", b"0")
        if self._has_left_own:
            self._has_left_own = False
            _write(f"{self._root}{cgroups.OWN}/cgroup.procs", b"0")

    def _is_ready(self) -> bool:
        cgroups.mount(self._root)
        with open(self._membership, encoding="ascii") as file:
            lines = file.readlines()
        if f"0::{cgroups.OWN}\n" in lines:
            _write(f"{self._root}/cgroup.procs", b"0")
            self._has_left_own = True
        elif "0::/\n" not in lines:
            return False
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self._root}/{_FOLDER}")
        return True

    def _empty_root(self) -> bool:
        """Move everybody else out of the root cgroup."""
        for _ in range(_PASSES_MAX):
            moved = False
            for pid in self._pids():
                if pid != os.getpid() and not _is_kernel_thread(pid):
                    with contextlib.suppress(OSError):  # it has ended
                        _write(f"{self._root}/{_FOLDER}/cgroup.procs", b"%d" % pid)
                        moved = True
            if not moved:
                return True
        return False

    def _pids(self) -> list[int]:
        with open(f"{self._root}/cgroup.procs", encoding="ascii") as file:
            return list(map(int, file.read().split()))

    def _groups(self) -> Iterator[str]:
        with os.scandir(self._root) as entries:
            for entry in entries:
                if os.path.exists(f"{entry.path}/cgroup.freeze"):
                    yield entry.path

    def _await_frozen(self) -> bool:
        deadline = time.monotonic() + _FROZEN_S
        while not all(map(_is_frozen, self._frozen)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _is_frozen(group: str) -> bool:
    try:
        with open(f"{group}/cgroup.events", encoding="ascii") as file:
            return "frozen 1\n" in file.readlines()
    except FileNotFoundError:
        return True  # it has ended


def _is_kernel_thread(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return True  # it has ended
    return bool(int(fields[6]) & _PF_KTHREAD)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
