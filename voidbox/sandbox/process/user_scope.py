"""A control group by the user's systemd: a transient scope, for processes that run already.

Only that may move them out of a login session into a group of the user's, and it takes it ill
when others make groups among its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from voidbox.jail import cgroups
from voidbox.jail.cgroups import Group

_CALL = (
    *("--user", "--quiet", "--timeout=5", "call", "org.freedesktop.systemd1"),
    *("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "StartTransientUnit"),
    "ssa(sv)a(sa(sv))",
)
_CALL_S, _MOVED_S, _LOOK_S = 10.0, 5.0, 0.005


def make(name: str, pids: Sequence[int]) -> Group | None:
    """Return a scope's group that processes have been moved to; None: nobody here makes one.

    systemd removes it with its last process.
    """
    import shutil  # three libraries of compression with it; most hosts delegate groups otherwise

    busctl, folder = shutil.which("busctl"), os.environ.get("XDG_RUNTIME_DIR")
    if busctl is None or not folder or not os.path.exists(f"{folder}/bus"):
        return None
    import subprocess  # nobody else in a sandbox's process needs it

    # Delegate: so that it has all controllers, whether or not a limit is asked for at once.
    properties = ["3", "PIDs", "au", str(len(pids)), *map(str, pids), "Delegate", "b", "true"]
    properties += ["CollectMode", "s", "inactive-or-failed"]
    unit = f"{cgroups.PREFIX}{name}.scope"
    try:
        subprocess.run(
            [busctl, *_CALL, unit, "fail", *properties, "0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CALL_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    until = time.monotonic() + _MOVED_S  # the answer comes before they are moved
    while time.monotonic() < until:
        folders = {cgroups.around_of(pid) for pid in pids}
        (folder,) = folders if len(folders) == 1 else (None,)
        if folder is not None and os.path.basename(folder) == unit:
            return Group(folder)
        time.sleep(_LOOK_S)
    return None
