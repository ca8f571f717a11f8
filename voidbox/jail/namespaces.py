"""Namespaces that an unprivileged process may have: a user's own, and in it the others.

What refuses them: a kernel with unprivileged_userns_clone=0 or max_user_namespaces=0; AppArmor on
Ubuntu, which lets a process make them and then takes the capabilities away; a container's seccomp
filter. So they are tried, and mount and the maps are part of trying.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from voidbox.jail import system

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_COUNTED_SINCE = (5, 14)
_NUMBER = re.compile(r"\d+")

NAMES = {
    "user": CLONE_NEWUSER,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "mount": CLONE_NEWNS,
    "pid": CLONE_NEWPID,  # of the processes that this one forks, not of itself
}


def enter(names: Iterable[str]) -> None:
    """Go into new namespaces; in one of "user" this user is who it was.

    The process must have one thread. It has all capabilities in them, until it drops them.

    Args:
        names: of NAMES; "user" must be among them, or have been before.
    Raises:
        OSError: the host refuses it.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = 0
    for name in names:
        flags |= NAMES[name]
    system.call("unshare", flags)
    if not flags & CLONE_NEWUSER:
        return
    _write("setgroups", "deny")  # before gid_map, or that is refused
    _write("uid_map", f"{uid} {uid} 1")
    _write("gid_map", f"{gid} {gid} 1")


def count_tasks() -> bool:
    """Whether RLIMIT_NPROC counts the tasks of a user namespace alone, rather than all the user's.

    Root's are counted by nobody, in whatever namespace.
    """
    major, minor = map(int, _NUMBER.findall(os.uname().release)[:2])
    return (major, minor) >= _COUNTED_SINCE and os.geteuid() != 0


def _write(name: str, line: str) -> None:
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
