"""What of the jail this host has: each layer is tried in a child, and its effect looked at."""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import Callable, Iterable

from voidbox.jail import allowed, landlock, mounts, namespaces, privileges, seccomp, system
from voidbox.named_tuple import NamedTuple

SECCOMP, LANDLOCK, NAMESPACES, MOUNT = "seccomp", "Landlock", "namespaces", "mount"
PID = "pid"
# Files that every Linux has. The one that is asked for is nowhere in the child's rules.
_ANY_FILE, _ANY_FOLDER = "/proc/version", "/usr"


class Trial(NamedTuple):
    """How a layer did.

    Attributes:
        problem: why it cannot be had, in a few words; "" where it works.
        detail: its version, say.
    """

    layer: str
    problem: str = ""
    detail: str = ""


def run_all() -> list[Trial]:
    """Try every layer, each in a child of its own. The process should have one thread."""
    version = landlock.version()
    trials = [
        _try(SECCOMP, _try_seccomp),
        _try(LANDLOCK, _try_landlock, str(version)),
        _try(NAMESPACES, _try_namespaces),
    ]
    if problem := trials[-1].problem:
        return [*trials, Trial(MOUNT, problem), Trial(PID, problem)]
    return [*trials, _try(MOUNT, _try_mount), _try(PID, _try_pid)]


@functools.cache
def problem_of_mounts() -> str:
    """Return why namespaces with a root of their own cannot be had; "" if they can.

    To be asked first: a host may give the namespace, and then let nobody do anything in it.
    It is tried once; what this process forks later knows the answer.
    """
    return _try(MOUNT, _try_mount).problem


@functools.cache
def problem_of_pids() -> str:
    """Return why there cannot be a pid namespace beside all others; "" if there can.

    See problem_of_mounts().
    """
    return _try(PID, _try_pid).problem


def why_no_namespaces(error: OSError) -> str:
    """Return who refuses namespaces, as far as it can be told."""
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "unprivileged_userns_clone is 0"
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return "max_user_namespaces is 0"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor restricts them"
    return f"{error.filename or 'the host'}: {error.strerror}"


def _try(layer: str, attempt: Callable[[], None], detail: str = "") -> Trial:
    """Try it in a child, which says what went wrong on a pipe."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        _be_child(attempt, theirs, layer)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    if status and not said:
        said = f"its trial ended with status {status}"
    return Trial(layer, said, detail if not said else "")


def _be_child(attempt: Callable[[], None], fd: int, layer: str) -> None:
    try:
        attempt()
    except OSError as error:
        is_namespace = layer in (NAMESPACES, MOUNT, PID)
        text = why_no_namespaces(error) if is_namespace else f"{error.filename}: {error.strerror}"
        os.write(fd, text.encode())
    except BaseException as error:  # nothing of the parent's may run in the child
        os.write(fd, repr(error).encode())
    os._exit(0)


def _try_seccomp() -> None:
    privileges.set_no_new_privs()
    seccomp.install(allowed.program(allowed.Needs(os.getpid())))
    try:
        socket.socket(socket.AF_UNIX).close()
    except PermissionError:
        return
    raise OSError(errno.ENOTSUP, "the filter refuses nothing", SECCOMP)


def _try_landlock() -> None:
    privileges.set_no_new_privs()
    landlock.restrict([(_ANY_FOLDER, landlock.READ)])
    try:
        open(_ANY_FILE, "rb").close()
    except PermissionError:
        return
    raise OSError(errno.ENOTSUP, "it refuses nothing", LANDLOCK)


def _try_namespaces() -> None:
    namespaces.enter(namespaces.NAMES.keys() - {"mount", "pid"})
    # Where AppArmor is in the way, they are there, but nothing may be done in them.
    system.call("sethostname", system.text("voidbox"), 7)
    privileges.drop_capabilities()


def _try_pid() -> None:
    _try_mount(namespaces.NAMES)
    pid = os.fork()
    if not pid:
        os._exit(0 if os.getpid() == 1 else 1)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.ENOTSUP, "it has no numbers of its own", PID)


def _try_mount(names: Iterable[str] = namespaces.NAMES.keys() - {"pid"}) -> None:
    namespaces.enter(names)
    mounts.enter_root([(_ANY_FOLDER, False)])
    if os.path.lexists(_ANY_FILE):
        raise OSError(errno.ENOTSUP, "other files can be seen", MOUNT)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
