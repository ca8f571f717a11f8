"""Where a sandbox's control group comes from: the user's systemd, else wherever one may be made."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from voidbox.jail import cgroups
from voidbox.jail.cgroups import Group
from voidbox.sandbox.process import user_scope

log = logging.getLogger("voidbox.sandbox.process.owner")


def make(name: str, pids: Sequence[int]) -> Group | None:
    """Return a group that processes have been moved to; None: this host gives none."""
    group = user_scope.make(name, pids) or _make_own(name, pids)
    if group is None:
        log.info("no control group: the limits hold by other means")
    else:
        log.info("control group %s: %s", group.folder, ", ".join(sorted(group.controllers)))
    return group


def _make_own(name: str, pids: Sequence[int]) -> Group | None:
    folder = cgroups.find()
    if folder is None:
        return None
    try:
        group = cgroups.make(folder, name)
    except OSError:
        return None
    try:
        for pid in pids:
            group.add(pid)
    except OSError:
        group.close()
        return None
    return group


def attempt() -> frozenset[str]:
    """Return what a group can limit that this process may make, and makes. It has one thread."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    group = make(f"doctor-{os.getpid()}", (pid,))
    os.close(theirs)
    os.waitpid(pid, 0)
    if group is None:
        return frozenset()
    group.close()
    return group.controllers
