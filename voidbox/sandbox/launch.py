"""Starts the process of a sandbox, and waits for its beginning or its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from voidbox.errors import ConfigError, HostError, SandboxTimeout, VoidboxError
from voidbox.sandbox import host_room
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.control import describe_error, make_error
from voidbox.sandbox.endpoint import first_answer_s
from voidbox.sandbox.guarding import send_values
from voidbox.sandbox.log_file import read_tail
from voidbox.sandbox.process.logs import open_log
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import SUSPENDED
from voidbox.sandbox.state.store import Store

if TYPE_CHECKING:
    from voidbox.sandbox.zygote.client import Zygote

OWNER = "voidbox.sandbox.process.program"
_END_S = 10.0  # for a process that failed, or was told to end
_POLL_S = 0.05
_POLL_MS_MAX = (1 << 31) - 1  # of poll(2): some 24 days

_children: dict[int, str] = {}  # of launch(), that nobody has waited for yet, and their sandboxes
_children_lock = threading.Lock()


def is_asleep(store: Store, record: SandboxRecord) -> bool:
    """Whether a sandbox is suspended, or somebody is just waking it: wake() is what it needs."""
    if record.state is State.CREATING:
        return os.path.isdir(store.path(record.id, SUSPENDED))
    return record.state is State.SUSPENDED


def wake(store: Store, id: str, parent_fd: int | None = None, owner: str = OWNER) -> SandboxRecord:
    """Start the process of a suspended sandbox; return its record once its agent answers.

    If it fails, the sandbox is suspended as before. If somebody else is waking it, wait for that.

    Args:
        parent_fd: see launch(); without it the sandbox does not end with anybody.
    Raises:
        ConfigError: it is not suspended.
        VoidboxError: what it failed with.
    """
    limit_s = first_answer_s(store.read(id))
    deadline = time.monotonic() + limit_s
    while (found := _try_to_wake(store, id)) is None:
        if time.monotonic() > deadline:
            raise SandboxTimeout(f"{id} is being woken, for more than {limit_s:g} s already")
        time.sleep(_POLL_S)
    record = found
    if record.state is not State.CREATING:
        return record
    if parent_fd is None and record.is_owned:
        record = store.update(id, is_owned=False)
    try:
        launch(store, record, parent_fd, owner=owner, keeps=True)
    except BaseException:
        store.clean()
        raise
    return store.read(id)


def _try_to_wake(store: Store, id: str) -> SandboxRecord | None:
    """Return a record to be started here, or one that runs; None while somebody else starts it."""
    record = store.read(id)
    if record.state.has_process and not store.is_alive(record.id):
        store.clean()  # whoever had it was killed
        record = store.read(id)
    if record.state in (State.RUNNING, State.PAUSED):
        return record
    if record.state is State.CREATING:
        return None
    try:
        return store.wake(id)
    except ConfigError:
        if store.read(id).state is not State.CREATING:
            raise
        return None  # somebody else was faster


def launch(
    store: Store,
    record: SandboxRecord,
    parent_fd: int | None = None,
    owner: str = OWNER,
    keeps: bool = False,
    zygote: Zygote | None = None,
    secrets: Mapping[str, str] | None = None,
) -> None:
    """Start the process of a sandbox that `store` has created; return once its agent answers.

    One that is held, and restored, is only made ready: `begin` on its control socket does the rest.

    If it fails, nothing runs any more; its record stays if its guest had begun to run, or `keeps`
    says so. The paths in the record are absolute: the process is elsewhere.

    Args:
        parent_fd: the reading end of a pipe: the sandbox ends when nobody holds the other end any
            more. It stays the caller's.
        owner: the module to run.
        zygote: what forks the process; without one it is a program of its own.
        secrets: values of the record's secrets, by name; those that are not given are variables
            here.
    Raises:
        VoidboxError: what the sandbox failed with.
    """
    reap()
    fd = None
    try:
        with contextlib.ExitStack() as stack:
            host_room.check(record.cpus)
            status, theirs = _pipe(stack)
            fd = _spawn(store, record, theirs.fileno(), parent_fd, zygote or owner)
            stack.callback(os.close, fd)
            theirs.close()
            try:
                _await_boot(status, store, record)
                send_values(store, record, secrets or {})
            except BaseException as error:
                # One that has said why it failed ends by itself; the others are told to.
                _end(fd, is_told=not isinstance(error, _Failed))
                raise
    except BaseException as error:
        store.release(record.id)
        has_begun = fd is not None and not (isinstance(error, _Failed) and not error.has_begun)
        if not has_begun and not keeps:
            with contextlib.suppress(VoidboxError):  # then clean() buries it
                store.remove(record.id)
        if isinstance(error, _Failed):
            raise make_error(error.answer) from None
        raise
    store.release(record.id)


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    """Return both ends of a pipe, for reading and for writing."""
    try:
        ours, theirs = os.pipe()
    except OSError as error:
        raise HostError.from_errno("pipe", error.errno or 0) from error
    return stack.enter_context(open(ours, "rb")), stack.enter_context(open(theirs, "wb", 0))


class _Failed(Exception):
    def __init__(self, answer: dict[str, object]) -> None:
        super().__init__(answer.get("error"))
        self.answer = answer
        self.has_begun = answer.get("has_begun") is not False


def _spawn(
    store: Store,
    record: SandboxRecord,
    status_fd: int,
    parent_fd: int | None,
    owner: Zygote | str,
) -> int:
    """Start the process, in a session of its own: no terminal's signals reach it.

    Args:
        owner: what forks it, or the module to run.
    Returns:
        A pidfd, which is the caller's to close.
    """
    folder = store.path(record.id)
    pass_fds = [status_fd] if parent_fd is None else [status_fd, parent_fd]
    log_fd = open_log(store.path(record.id, "owner.log"))
    try:
        if isinstance(owner, str):
            return _start(owner, folder, log_fd, pass_fds, record.id)
        return owner.spawn([folder], environment(), [log_fd, *pass_fds])[1]
    finally:
        os.close(log_fd)


def _start(owner: str, folder: str, log_fd: int, pass_fds: list[int], id: str) -> int:
    """Start a program of its own; return a pidfd."""
    # -P: a file in the current folder must not pass for a module. Where we are must be said then.
    command = [sys.executable, "-P", "-m", owner, folder]
    for option, fd in zip(("--status-fd", "--parent-fd"), pass_fds, strict=False):
        command += [option, str(fd)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=pass_fds,
            start_new_session=True,
            cwd="/",  # whose file system nobody wants to unmount
            env=environment(),
        )
    except OSError as error:
        raise HostError.from_errno(f"start {sys.executable}", error.errno or 0) from error
    fd = -1
    try:
        fd = os.pidfd_open(process.pid)
    except OSError as error:
        process.kill()
        raise HostError.from_errno("pidfd_open", error.errno or 0) from error
    finally:
        with _children_lock:
            _children[process.pid] = id
        process.returncode = 0  # reap() waits for it: no business of the object's
    return fd


def _await_boot(status: BinaryIO, store: Store, record: SandboxRecord) -> None:
    has_adopted = False
    while line := status.readline():
        answer = json.loads(line)
        if answer.get("adopted"):
            store.release(record.id)  # it lives by itself now
            has_adopted = True
        elif answer.get("ok") or answer.get("held"):
            return
        else:
            raise _Failed(answer)
    tail = read_tail(store.path(record.id, "owner.log")).rpartition("\n")[2]
    error = HostError(f"the sandbox's process was killed at its start: {tail}".rstrip(": "))
    if has_adopted:
        raise error
    raise _Failed({**describe_error(error), "has_begun": False})


def wait_ended(store: Store, id: str, timeout_s: float | None = None) -> bool:
    """Wait for the end of a sandbox's process, by which all that it used is free again.

    Returns:
        False if `timeout_s` seconds pass before.
    Raises:
        HostError: see Store.open_owner.
    """
    fd = _open_child(id)
    if fd is None:
        fd = store.open_owner(id)
    if fd is not None:
        try:
            if not _wait_pidfd(fd, timeout_s):
                return False
        finally:
            os.close(fd)
    reap()
    return True


def _open_child(id: str) -> int | None:
    """Return a descriptor of a sandbox's process that is our child, up to its very end."""
    with _children_lock:  # nobody reaps it meanwhile: its number stays its own
        for pid, owned in _children.items():
            if owned == id:
                try:
                    return os.pidfd_open(pid)
                except ProcessLookupError:
                    pass
                except OSError as error:
                    raise HostError.from_errno("pidfd_open", error.errno or 0) from error
    return None


def reap() -> None:
    """Wait for those processes of launch() that have ended. Never blocks."""
    with _children_lock:
        for pid in list(_children):
            try:
                has_ended = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                has_ended = True  # somebody else waits for every child
            if has_ended:
                del _children[pid]


def _end(fd: int, is_told: bool) -> None:
    """Wait for a process; kill one that takes too long."""
    for number in (signal.SIGTERM if is_told else 0, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        if _wait_pidfd(fd, _END_S):
            break
    reap()


def _wait_pidfd(fd: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else min(timeout_s * 1000, _POLL_MS_MAX)))
