"""What goes with a process and can be given up without namespaces: prctl(2), capset(2), rlimits."""

from __future__ import annotations

import contextlib
import errno
import resource
import struct

from voidbox.jail import system

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1

# struct __user_cap_header_struct { __u32 version; int pid; }; then two of
# struct __user_cap_data_struct { __u32 effective, permitted, inheritable; };
_CAP_HEADER = struct.Struct("=Ii")
_CAP_VERSION_3 = 0x20080522
_CAP_LAST_MAX = 63


def set_no_new_privs() -> None:
    """No program that is executed gains rights: what seccomp and Landlock want first."""
    system.prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_undumpable() -> None:
    """No core dump, and no other process of the user's may trace or read this one."""
    system.prctl(PR_SET_DUMPABLE, 0)


def die_with_parent(number: int) -> None:
    """Get a signal when the thread that made this process ends."""
    system.prctl(PR_SET_PDEATHSIG, number)


def inherit_orphans() -> None:
    """Become the parent of what processes below this one leave behind."""
    system.prctl(PR_SET_CHILD_SUBREAPER, 1)


def refuse_writable_code() -> bool:
    """Have no memory become executable that was writable; False before Linux 6.3."""
    try:
        system.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def drop_capabilities() -> None:
    """Give up all capabilities, also those that a program run later could have."""
    for capability in range(_CAP_LAST_MAX + 1):
        try:
            system.prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL: no more of them; EPERM: not ours, and so none can be had
            break
    with contextlib.suppress(OSError):
        system.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = system.buffer(_CAP_HEADER.pack(_CAP_VERSION_3, 0))
    system.call("capset", header, system.buffer(bytes(24)))


def limit(**limits: int) -> None:
    """Lower limits of this process for good, such as core=0; one that is lower already stays.

    Args:
        limits: by the names of RLIMIT_*, in lower case.
    """
    for name, value in limits.items():
        which: int = getattr(resource, f"RLIMIT_{name.upper()}")
        _soft, hard = resource.getrlimit(which)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(which, (value, value))
