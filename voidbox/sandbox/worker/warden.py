"""A pid namespace for a worker. Only what is forked is in one: so the first process stays outside.

    keeper ─ forks ─► first process ─ forks ─► worker: process 1 of the namespace
                      ends at once, and the keeper inherits the worker
    program ─ runs ─► warden ─ forks ─► worker
                      waits for it, and ends as it does; the worker ends with it

What the worker forks ends with the worker, whatever it does. A program of somebody's inherits
nobody, unless it asks for all orphans. The warden has nothing: no descriptor, no capability.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NoReturn

from voidbox.jail import namespaces, privileges, trial
from voidbox.jail.levels import OFF


def enter(level: str, report_fd: int, is_inherited: bool) -> bool:
    """Go on as a child of this process, in user and pid namespaces of its own.

    Args:
        level: of the jail; see voidbox.jail.levels.
        report_fd: gets the child's number, as who started us sees it; nothing if there is none.
            It is closed.
        is_inherited: whether who started us takes the child over; else this process waits.
    Returns:
        False where the host gives no namespaces, or none are wanted: this is still this process.
    """
    try:
        if level == OFF or trial.problem_of_pids():
            return False
        namespaces.enter(("user", "pid"))
        pid = os.fork()
        if not pid:
            return True
        with contextlib.suppress(OSError):  # nobody wants to know
            os.write(report_fd, str(pid).encode())
        if is_inherited:
            os._exit(0)
        _be_warden(pid)
    finally:
        os.close(report_fd)


def close_others(kept_fds: set[int]) -> None:
    """The lock of the sandbox, the pipes of whoever started it: none of them is ours."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept_fds:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _be_warden(pid: int) -> NoReturn:
    """Wait for the worker; end as it has."""
    close_others(set())
    privileges.drop_capabilities()
    privileges.set_no_new_privs()
    privileges.set_undumpable()
    privileges.limit(core=0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
