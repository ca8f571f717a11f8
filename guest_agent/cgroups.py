"""A cgroup for each command that has a time limit: who is in it cannot leave.

A command's descendants may leave its process group (setsid), and then nothing but a cgroup tells
whose they are. Only with a time limit: to make one and to move into it is work for the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os

from guest_agent import syscalls
from guest_agent.loop import log
from guest_agent.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REMOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
_FOLDER = "voidbox"
OWN = f"/{_FOLDER}/agent"  # below the root, where the agent is not PID 1
_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC


def mount(root: str = ROOT) -> None:
    """Have a cgroup2 there.

    Raises:
        OSError: this kernel has none, or something else is there: cgroup v1, of somebody who needs
            it.
    """
    if os.path.exists(f"{root}/cgroup.procs"):
        return
    if os.path.ismount(root):
        raise OSError(errno.EBUSY, "something else is mounted there", root)
    syscalls.mount("cgroup2", root, "cgroup2", _FLAGS)


def _favor_moves(root: str) -> None:
    """Have nobody who moves wait for the kernel's next grace period, some ten milliseconds.

    Linux 6.0. Not at the start: it waits for such a period itself.
    """
    with contextlib.suppress(OSError):
        syscalls.mount("cgroup2", root, "cgroup2", _FLAGS | MS_REMOUNT, "favordynmods")


def join_own(root: str = ROOT) -> str:
    """Move this process, before it has started another, into a cgroup for it; return its folder.

    Raises:
        OSError: as mount().
    """
    mount(root)
    path = f"{root}{OWN}"
    os.makedirs(path, exist_ok=True)
    _move_to(path)
    return path


class Group:
    """The processes of one command, by the folder that stands for them."""

    def __init__(self, groups: Groups, path: str) -> None:
        self._groups = groups
        self.path = path

    def join(self) -> None:
        """Have this process be in it, so that a child is."""
        _move_to(self.path)

    def leave(self) -> None:
        """Have this process be where it was. Idempotent."""
        _move_to(self._groups.origin)

    def signal_strays(self, leader: int, number: int) -> None:
        """Send a signal to all outside the process group of `leader`.

        One that forks at this moment may be missed.
        """
        for pid in self._pids():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.getpgid(pid) != leader:
                    os.kill(pid, number)

    def kill(self) -> None:
        """Send SIGKILL to all, none missed; cgroup.kill, Linux 5.14."""
        with contextlib.suppress(OSError), open(f"{self.path}/cgroup.kill", "wb", 0) as file:
            file.write(b"1")

    def remove(self) -> bool:
        """Remove it; False if somebody is in it still. Idempotent."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def put_away(self) -> None:
        """Remove it now, or once it is empty."""
        if not self.remove():
            self._groups.left.append(self)

    def _pids(self) -> Iterator[int]:
        try:
            with open(f"{self.path}/cgroup.procs", encoding="ascii") as file:
                yield from map(int, file.read().split())
        except OSError:
            return  # the group is gone


def _move_to(path: str) -> None:
    fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


class Groups:
    """Makes them, on a cgroup2 that is mounted when the first is wanted.

    Args:
        origin: the folder of the cgroup that this process is in.

    Attributes:
        left: those with daemons in them, that outlive their command.
    """

    def __init__(self, root: str = ROOT, origin: str = ROOT) -> None:
        self._root = root
        self.origin = origin
        self._made = 0
        self._is_ready: bool | None = None  # not known yet
        self.left: list[Group] = []

    def make(self) -> Group | None:
        """Return a new one; None if this guest's kernel has no cgroup2."""
        if self._is_ready is None:
            self._is_ready = self._set_up()
        if not self._is_ready:
            return None
        self.left = [group for group in self.left if not group.remove()]
        self._made += 1
        group = Group(self, f"{self._root}/{_FOLDER}/{self._made}")
        try:
            os.mkdir(group.path)
        except OSError as error:
            log(f"no cgroup for a command: {error.strerror}")
            return None
        return group

    def _set_up(self) -> bool:
        try:
            mount(self._root)
            if self.origin == self._root:  # else it is the init's, with its options
                _favor_moves(self._root)
            os.makedirs(f"{self._root}/{_FOLDER}", exist_ok=True)
        except OSError as error:
            log(f"no cgroups ({error.strerror}): what leaves a command's process group lives on")
            return False
        return True
