"""What a process of Ray's must be, to have sandboxes."""

from __future__ import annotations

import contextlib
import os

POOL_OOM_SCORE, OWNER_OOM_SCORE = 300, 900
_NOT_FOR_OWNERS = ("PYTHONBREAKPOINT", "PYTHONUNBUFFERED")


def be_a_pool() -> None:
    """Prepare this process, a worker of Ray's, once.

    The kernel, short of memory, is to end a sandbox and not the pool, with which all of them would
    end: Ray gives its workers the highest score there is, so ours goes down. And what Ray puts into
    a worker's environment is none of a sandbox's business.
    """
    set_oom_score(os.getpid(), POOL_OOM_SCORE)
    for name in _NOT_FOR_OWNERS:
        os.environ.pop(name, None)


def set_oom_score(pid: int, score: int) -> None:
    """Set a process's oom_score_adj, -1000 to 1000 (proc(5)); one that is gone is fine."""
    path = f"/proc/{pid or 'self'}/oom_score_adj"
    with contextlib.suppress(OSError), open(path, "w") as file:  # perhaps only root may lower it
        file.write(str(score))


def expose_to_oom(pid: int) -> None:
    """Have the kernel end a process, and those that it has made, before their pool."""
    set_oom_score(pid, OWNER_OOM_SCORE)
    path = f"/proc/{pid}/task/{pid}/children"
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for child in map(int, file.read().split()):
            expose_to_oom(child)


def open_raylet() -> int | None:
    """Return a pidfd of the raylet that this process is a worker of; None if its parent is none.

    It gets readable when the raylet ends. Ray's workers do not always notice that by themselves.
    """
    pid = os.getppid()
    try:
        fd = os.pidfd_open(pid)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            program = file.read().partition(b"\0")[0]
    except OSError:
        return None
    if os.path.basename(program) == b"raylet" and os.getppid() == pid:
        return fd
    os.close(fd)
    return None
