"""A worker's process is started, and is ended: forked where that is safe, else a program anew."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

from voidbox.errors import HostError
from voidbox.jail import privileges
from voidbox.jail.cgroups import Group
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.keeper import channel

_MODULE = "voidbox.sandbox.worker"
_NEEDED = b"!"  # what a spare worker waits for, on the report's socket


class Link:
    """A worker as its keeper has it. Thread: any.

    Args:
        pid: of the process that was started.
        report: the other end of what warden reports on.
        is_inherited: see warden.
        is_spare: see fork_worker.

    Attributes:
        orders, asks, queries, console: the keeper's ends; see devices.
        group: that it was moved to, or None.
    """

    def __init__(
        self,
        pid: int,
        socks: Sequence[socket.socket],
        report: socket.socket,
        is_inherited: bool,
        is_spare: bool = False,
    ) -> None:
        self._child_pid = pid
        self._report = report
        self._is_inherited = is_inherited
        self._is_spare = is_spare
        self._worker_pid = 0
        self._has_pids = False  # in a namespace, where all ends with the worker
        self._pidfd = os.pidfd_open(pid)
        self._has_ended = False
        self.orders, self.asks, self.queries, self.console = socks
        self.group: Group | None = None
        self.status: int | None = None  # as os.waitpid has it, once it is known

    def settle(self) -> int:
        """Wait until the worker is there; return its number. Before anything is ordered.

        Thread: one at a time.
        """
        if self._worker_pid:
            return self._worker_pid
        said = b""
        with contextlib.suppress(OSError):  # somebody has killed it
            if self._is_spare:
                self._is_spare = False
                self._report.sendall(_NEEDED)
            said = self._report.recv(20)
        self._has_pids = bool(said)
        self._worker_pid = int(said) if said else self._child_pid
        if said and self._is_inherited:
            os.waitpid(self._child_pid, 0)  # after which the worker is our child
            os.close(self._pidfd)
            self._child_pid = self._worker_pid
            self._pidfd = os.pidfd_open(self._child_pid)
        return self._worker_pid

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it does not come in time."""
        if self.status is not None:
            return True
        if not self._is_spare:
            self.settle()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        self.status = 0
        with contextlib.suppress(ChildProcessError):  # somebody else waits for every child
            self.status = os.waitpid(self._child_pid, 0)[1]
        return True

    def kill(self) -> None:
        """End it at once, with what it has forked."""
        if not self._is_spare:
            self.settle()
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self, grace_s: float) -> None:
        """End it, if it does not by itself. Idempotent; the keeper's ends stay open."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._is_spare:
            self._report.shutdown(socket.SHUT_WR)
        if not self.wait(grace_s):
            self.kill()
            self.wait(grace_s)
        if not self._has_pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child_pid, signal.SIGKILL)  # its copies that write a snapshot
        os.close(self._pidfd)

    def close(self, grace_s: float) -> None:
        """End it, and free all but the orders. Idempotent; nobody watches any of it by then."""
        self.end(grace_s)
        for sock in (self._report, self.asks, self.queries, self.console):
            sock.close()


def _pairs() -> tuple[list[socket.socket], list[socket.socket]]:
    """Return both ends of: orders, asks, queries, console, and the report."""
    try:
        pairs = [channel.pair() for _ in range(3)]
        pairs += [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
    except OSError as error:
        raise HostError.from_errno("socketpair", error.errno or 0) from error
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def fork_worker(level: str, is_spare: bool = False) -> Link:
    """Fork a worker off this process, which has one thread; it ends with this one.

    Args:
        level: of its jail; see voidbox.jail.levels.
        is_spare: it may never be needed, and does nothing until Link.settle().
    Raises:
        HostError: the host gives no process or descriptors.
    """
    (*ours, report), (*theirs, report_theirs) = _pairs()
    parent = os.getpid()
    privileges.inherit_orphans()
    try:
        pid = os.fork()
    except OSError as error:
        raise HostError.from_errno("fork the machine's process", error.errno or 0) from error
    if not pid:
        os.setsid()  # a group of its own, which its copies cannot leave
        privileges.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent or (is_spare and report_theirs.recv(1) != _NEEDED):
            os._exit(1)
        from voidbox.sandbox.worker.process import be_worker

        be_worker(theirs, level, report_theirs.detach(), is_inherited=True)
    for sock in (*theirs, report_theirs):
        sock.close()
    return Link(pid, ours, report, is_inherited=True, is_spare=is_spare)


def spawn_worker(level: str, kept_fds: Sequence[int] = ()) -> Link:
    """Start a worker from any process; it ends when this one hangs up.

    Args:
        level: of its jail; see voidbox.jail.levels.
        kept_fds: descriptors that it gets under the same numbers.
    Raises:
        HostError: the host gives no process or descriptors.
    """
    import subprocess  # who forks its worker starts sooner without it

    (*ours, report), (*theirs, report_theirs) = _pairs()
    numbers = [sock.fileno() for sock in (report_theirs, *theirs)]
    command = [sys.executable, "-P", "-m", _MODULE, level, *map(str, [*numbers, *kept_fds])]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[*numbers, *kept_fds],
            start_new_session=True,
            env=environment(),
        )
    except OSError as error:
        for sock in (*ours, report):
            sock.close()
        raise HostError.from_errno(f"start {sys.executable}", error.errno or 0) from error
    finally:
        for sock in (*theirs, report_theirs):
            sock.close()
    process.returncode = 0  # Link waits for it: no business of the object's
    return Link(process.pid, ours, report, is_inherited=False)
