"""How a sandbox's own process shuts itself in, the keeper.

It leaves itself the state folder, the network, and most system calls: not to run a program.
"""

from __future__ import annotations

import contextlib
import os

from voidbox.jail import allowed, landlock, privileges, seccomp
from voidbox.nat.resolv_conf_file import RESOLV_CONF
from voidbox.sandbox.worker.surroundings import libraries

_REFER_VERSION = 2  # before, nothing could be renamed from one folder into another


def enter(state_folder: str, group_folder: str | None = None) -> None:
    """Give up other files. The process has one thread. What the kernel cannot do is left out.

    Args:
        group_folder: of the worker's control group, which is written while it lives, and removed.
    """
    privileges.limit(core=0)
    privileges.set_no_new_privs()
    privileges.set_undumpable()
    rules = [(state_folder, landlock.WRITE), (f"/proc/{os.getpid()}", landlock.READ)]
    if group_folder is not None:
        rules.append((group_folder, landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE))
        rules.append((os.path.dirname(group_folder), landlock.REMOVE_DIR))
    # The name servers' file may be replaced: a rule for it alone would hold for the old one.
    servers = os.path.dirname(os.path.realpath(RESOLV_CONF))
    rules += [(path, landlock.READ) for path in (*libraries(), servers, "/etc")]
    if landlock.version() >= _REFER_VERSION:
        with contextlib.suppress(OSError):
            landlock.restrict(rules, with_network=True, with_signals=True)
    with contextlib.suppress(OSError):  # the worker, which must have it, says that there is none
        seccomp.install(allowed.keeper_program())
