"""A process forked off a paused machine, which writes the memory as it was at the fork.

The machine goes on at once: what it writes from then on is not in the helper's copy. The helper is
a copy of one thread of a process of many, so it uses nothing that another thread may have held a
lock of: `os`, memoryviews, and no more. It closes every descriptor but its own few first; else a
machine that is killed would look alive for as long as it writes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Sequence

from voidbox.errors import HostError
from voidbox.snapshot import memory
from voidbox.snapshot.memory import Part

_RESULT = struct.Struct("<iq")  # errno, bytes
_ORPHANED = 1


class Helper:
    """The process, seen from the machine's. Thread: one caller's.

    Args:
        fd: the file to write to.
        parts: the memory; it must not change during the call.

    Attributes:
        fork_ns: how long the fork took.
    Raises:
        HostError: the host gives no process or descriptors.
    """

    def __init__(self, fd: int, parts: Sequence[Part]) -> None:
        self._pid = 0
        self._result_fd = self._alive_fd = -1
        fds: list[int] = []
        try:
            fds += os.pipe2(os.O_CLOEXEC)
            fds += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._result_fd, result_fd, alive_fd, self._alive_fd = fds
            started_ns = time.perf_counter_ns()
            self._pid = _fork(lambda: _main(fd, parts, result_fd, alive_fd))
            self.fork_ns = time.perf_counter_ns() - started_ns
        except OSError as error:
            for each in fds:
                os.close(each)
            raise HostError.from_errno("fork", error.errno or 0) from error
        os.close(result_fd)
        os.close(alive_fd)

    def wait(self, timeout_s: float) -> int:
        """Wait until the memory is written; returns how many bytes of data it has.

        Raises:
            HostError: it could not be written, or not in time.
        """
        try:
            poll = select.poll()
            poll.register(self._result_fd, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                raise HostError(f"the snapshot's memory was not written within {timeout_s:g} s")
            data = os.read(self._result_fd, _RESULT.size)
        finally:
            self.close()
        if len(data) < _RESULT.size:
            raise HostError("the process that wrote the snapshot's memory was ended")
        number, written = _RESULT.unpack(data)
        if number:
            raise HostError(
                f"cannot write the snapshot's memory: {os.strerror(number)}; "
                "the machine goes on as before",
                number,
            )
        return int(written)

    def close(self) -> None:
        """End the process, if it has not ended. Idempotent."""
        for fd in (self._result_fd, self._alive_fd):
            if fd >= 0:
                os.close(fd)
        self._result_fd = self._alive_fd = -1
        if self._pid:
            # Where a jail lets no signal out it ends by itself: its pipe is closed.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # the program reaps all its children
                os.waitpid(self._pid, 0)
            self._pid = 0


def _fork(main: Callable[[], None]) -> int:
    """Fork; the child runs `main` and ends. Raises OSError."""
    # Handlers of the program's would run in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads, whose locks the child does not touch.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                main()
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _main(fd: int, parts: Sequence[Part], result_fd: int, alive_fd: int) -> None:
    gc.disable()  # a finalizer would act on what is the parent's
    number = written = 0
    try:
        _close_all_but({fd, result_fd, alive_fd, *(part.base_fd for part in parts)})
        written = memory.write(fd, parts, lambda: _end_if_orphaned(alive_fd))
    except OSError as error:
        number = error.errno or _ORPHANED
    os.write(result_fd, _RESULT.pack(number, written))
    os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    """Not by /proc: in a jail a child has none of its own."""
    first = 0
    for fd in sorted(kept):
        if fd >= 0:
            os.closerange(first, fd)
            first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _end_if_orphaned(alive_fd: int) -> None:
    """Nobody waits for the file if the machine's process is gone."""
    try:
        if not os.read(alive_fd, 1):
            os._exit(_ORPHANED)
    except BlockingIOError:
        pass
