"""The zygote, as the program that has it sees it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence

from voidbox.errors import HostError
from voidbox.sandbox.zygote import protocol

_all: weakref.WeakSet[Zygote] = weakref.WeakSet()

PROCESS = "voidbox.sandbox.zygote.process"
_END_S = 10.0


class Zygote:
    """A process that forks those of sandboxes. It is gone when this object is closed, and with us.

    Thread: any.

    Args:
        owner: the module whose main() its children run, as a program of it would.
        environment: the zygote's own.
    Raises:
        HostError: the host gives no process.
    """

    def __init__(self, owner: str, environment: Mapping[str, str]) -> None:
        self.owner = owner
        self._lock = threading.Lock()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _all.add(self)
        with theirs:
            # -P: a file in the current folder must not pass for a module.
            command = [sys.executable, "-P", "-m", PROCESS, owner, str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    cwd="/",
                    env=dict(environment),
                )
            except OSError as error:
                self._sock.close()
                raise HostError.from_errno(f"start {sys.executable}", error.errno or 0) from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def spawn(
        self, argv: Sequence[str], environment: Mapping[str, str], fds: Sequence[int]
    ) -> tuple[int, int]:
        """Fork a process; return its number, and a pidfd that is the caller's to close.

        Args:
            argv: the module's arguments. Those that are descriptors are numbers of `fds`.
            fds: its log, the pipe of its status, and its parent's pipe if it has one.
        Raises:
            HostError: the zygote is gone, or the host gives no process.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise HostError.from_errno("socketpair", error.errno or 0) from error
        with ours, theirs:
            try:
                with self._lock:  # whole messages, and none to a socket that is being closed
                    values = {"argv": list(argv), "env": dict(environment)}
                    protocol.send(self._sock, values, [theirs.fileno(), *fds])
                theirs.close()
                answer, found = protocol.receive(ours)
            except OSError as error:
                raise HostError.from_errno("ask the zygote", error.errno or 0) from error
        if answer is None:
            raise HostError("the zygote, which forks sandboxes' processes, has ended")
        if "errno" in answer:
            raise HostError.from_errno("fork a sandbox's process", int(answer["errno"]))
        pid = int(answer["pid"])
        if not found:  # there was no descriptor for it, so nobody would know when it ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise HostError.from_errno("receive a pidfd", errno.EMFILE)
        return pid, found[0]

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it; what it has forked goes on. Idempotent."""
        with self._lock:
            self._sock.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget() -> None:
    """A child without exec is another process: the zygotes must end with its parent."""
    for zygote in _all:
        with contextlib.suppress(OSError):
            os.close(zygote._sock.detach())
    _all.clear()


os.register_at_fork(after_in_child=_forget)
