"""The image's own init as PID 1, and the agent beside it as its first child.

The agent is PID 1 until the guest is up; then it forks, and it is the parent that becomes the init:
systemd and its like insist on being PID 1. The child serves the host as ever, in a cgroup of its
own beside those that the init makes, and leaves the end of the machine to the init.
"""

from __future__ import annotations

import os
import resource
import signal

from guest_agent import cgroups
from guest_agent.cgroups import Groups
from guest_agent.loop import log
from guest_agent.spawn import OF_PYTHON, OPEN_FILES, PATH

_ENVIRONMENT = {"HOME": "/", "TERM": "linux"}  # what the kernel gives to PID 1
_SYSTEMD = "/run/systemd/system"  # there if systemd is the init: sd_booted(3)
# What systemd(1) does at these: it needs neither D-Bus nor a program of the image.
_SYSTEMD_POWEROFF, _SYSTEMD_REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5


def hand_over(path: str) -> None:
    """Have PID 1 become the image's init. Returns in its child, once the init runs.

    Raises:
        OSError: it cannot be executed; then this is PID 1 still.
    """
    failure_read, failure_write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        try:
            _become(path)
        except OSError as error:
            os.write(failure_write, b"!")
            reason = os.strerror(error.errno or 0)
            raise OSError(error.errno, f"cannot start the image's init {path}: {reason}") from error
    os.close(failure_write)
    if os.read(failure_read, 1):  # b"" once exec has closed the other end
        os._exit(1)
    os.close(failure_read)
    os.setsid()


def _become(path: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES[0], hard), hard))
    for number in OF_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    os.execve(path, [path], _ENVIRONMENT)


def join_cgroup(root: str = cgroups.ROOT) -> Groups:
    """Be in a cgroup that the init does not take for its own, with all that is started from here.

    systemd moves whoever is in the root, when it starts, into its own scope, in which nobody may
    make another.
    """
    try:
        return Groups(root, cgroups.join_own(root))
    except OSError as error:
        log(f"no cgroup for the agent: {error.strerror}")
        return Groups(root)


def end(is_reboot: bool) -> None:
    """Ask the init to end the machine.

    Raises:
        OSError: it cannot be asked.
    """
    if os.path.isdir(_SYSTEMD):
        os.kill(1, _SYSTEMD_REBOOT if is_reboot else _SYSTEMD_POWEROFF)
        return
    name = "reboot" if is_reboot else "poweroff"
    os.posix_spawnp(name, [name], {**_ENVIRONMENT, "PATH": PATH})
