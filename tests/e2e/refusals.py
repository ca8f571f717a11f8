"""What jails refuse while a test runs: no test may pass with a system call that nobody expected.

A call that ends its process is in the kernel's log, as an audit record. One that gets EPERM is in
the log of the process's keeper: owner.log, which may be gone with its sandbox, or the log of this
process, if the keeper is in it. A helper follows the first two, in a process of its own: tests
count what this one has open.

    python -m tests.e2e.refusals     a line on stdin asks for what was refused since the last one
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import subprocess
import sys

REFUSED = "jail: refused "  # voidbox.sandbox.keeper.serving
AUDIT_SECCOMP = "type=1326 "  # linux/audit.h
_POLL_S = 1.0  # no sandbox lives as short as that
_PIECE_BYTES = 1 << 20


class Refusals(logging.Handler):
    """All that is refused from now on. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._own: list[str] = []
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.refusals"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        )
        self.take()  # it follows

    def __enter__(self) -> Refusals:
        logging.getLogger("voidbox").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("voidbox").removeHandler(self)
        self._helper.communicate()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a keeper in this process says."""
        message = record.getMessage()
        if message.startswith(REFUSED):
            self._own.append(message)

    def take(self) -> list[str]:
        """Return what was refused since the last call, a line each."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write("\n")
        self._helper.stdin.flush()
        own, self._own = self._own, []
        found: list[str] = json.loads(self._helper.stdout.readline())
        return own + found


class _OwnerLogs:
    """The logs that processes have as their stderr, also those that are deleted."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, int], int] = {}

    def poll(self) -> list[str]:
        """Return the lines about refusals that are new."""
        written = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):  # it is gone, or somebody else's
                    written.add(self._follow(f"/proc/{name}/fd/2"))
        lines = [line for fd in self._followed.values() for line in _read(fd) if REFUSED in line]
        for key in self._followed.keys() - written:  # nobody writes it any more
            os.close(self._followed.pop(key))
        return lines

    def _follow(self, stderr: str) -> tuple[int, int] | None:
        if not os.readlink(stderr).removesuffix(" (deleted)").endswith("/owner.log"):
            return None
        status = os.stat(stderr)
        key = status.st_dev, status.st_ino
        if key not in self._followed:
            self._followed[key] = os.open(stderr, os.O_RDONLY)
        return key


class _KernelLog:
    """The audit records of seccomp, of processes that run what we run."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):  # not root's
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)
        self._program = f'exe="{os.path.realpath(sys.executable)}"'

    def poll(self) -> list[str]:
        """Return those that are new."""
        lines = _read(self._fd) if self._fd >= 0 else []
        return [line for line in lines if AUDIT_SECCOMP in line and self._program in line]


def _read(fd: int) -> list[str]:
    pieces = []
    while True:
        try:
            piece = os.read(fd, _PIECE_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno == errno.EPIPE:  # the kernel's log has overtaken us
                continue
            raise
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode(errors="replace").splitlines()


def main() -> None:
    """Follow, and answer."""
    kernel, owners = _KernelLog(), _OwnerLogs()
    found: list[str] = []
    while True:
        is_asked = bool(select.select([0], [], [], _POLL_S)[0])
        if is_asked and not os.read(0, 1):
            return
        found += owners.poll() + kernel.poll()
        if is_asked:
            print(json.dumps(found), flush=True)
            found = []


if __name__ == "__main__":
    main()
