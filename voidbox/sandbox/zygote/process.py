"""The zygote: imports what a sandbox's process does, then forks one whenever it is asked.

    python -P -m voidbox.sandbox.zygote.process OWNER FD

One thread, so that a fork copies a whole process. It ends when the other end of FD is closed: its
program has closed it, or is gone. It is the parent of what it forks, and waits for it; others watch
its end by the pidfd.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from typing import Any

from voidbox.jail import allowed, trial
from voidbox.sandbox.worker import confinement
from voidbox.sandbox.worker.imports import SHARED, USUAL
from voidbox.sandbox.zygote import protocol
from voidbox.snapshot import plain
from voidbox.snapshot.checks import Host
from voidbox.vmm.machine_state import MachineState

# What an owner imports before its guest runs, and would otherwise import in every child. What is
# not there is left to the child, which says so.
PRELOADED = (
    *SHARED,
    *USUAL,
    *("voidbox.vmm.machine", "voidbox.vmm.snapshot", "voidbox.virtio.fs", "voidbox.fuse.server"),
    *("voidbox.sandbox.process.owner", "voidbox.sandbox.process.life"),
    "voidbox.sandbox.process.preparing",
    *("voidbox.sandbox.guest", "voidbox.sandbox.worker.serving", "voidbox.sandbox.worker.process"),
    *("voidbox.sandbox.state.recalling", "voidbox.block.overlay_format", "encodings.ascii"),
    *("shutil", "subprocess"),
)


def main(argv: list[str]) -> int:
    """Be the zygote; in a child, be the owner. Returns the exit status."""
    owner, fd = argv
    sock = socket.socket(fileno=int(fd))
    os.set_inheritable(sock.fileno(), False)
    gc.disable()  # what is imported stays
    for name in (owner, *PRELOADED):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _learn()
    gc.collect()
    gc.freeze()  # a child's collector touches, and so copies, nothing of this
    gc.enable()
    signal.signal(signal.SIGCHLD, _reap)
    environment = dict(os.environ)
    while True:
        request, fds = protocol.receive(sock)
        if request is None:
            return 0
        if not _serve(request, fds):
            sock.close()
            if request["env"] != environment:
                os.environ.clear()
                os.environ.update(request["env"])
            return _be_owner(owner, request["argv"], fds)
        for each in fds:
            os.close(each)


def _learn() -> None:
    """Find out what is the same for all, and what every child would find out for itself."""
    logging.getLogger("voidbox").setLevel(logging.INFO)
    trial.problem_of_pids()
    allowed.keeper_program()
    Host.here()
    plain.learn(MachineState)
    confinement.import_late()


def _reap(number: int, frame: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve(request: dict[str, Any], fds: list[int]) -> bool:
    """Fork, and answer; False in the child."""
    with socket.socket(fileno=os.dup(fds[0])) as answers:
        # A child that ends at once must not be reaped before its pidfd is open.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
            if not pid:
                return False
            pidfd = os.pidfd_open(pid)
            with contextlib.suppress(OSError):  # nobody waits for it: its pipes tell it so
                protocol.send(answers, {"pid": pid}, [pidfd])
            os.close(pidfd)
        except OSError as error:
            with contextlib.suppress(OSError):
                protocol.send(answers, {"errno": error.errno or 0}, [])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    return True


def _be_owner(owner: str, arguments: list[str], fds: list[int]) -> int:
    """Be what `python -P -m OWNER` would be, in a session of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    answers, log, status, *parent = fds
    os.close(answers)
    for target in (1, 2):
        os.dup2(log, target)
    os.close(log)
    options = ["--status-fd", str(status)]
    options += [word for fd in parent for word in ("--parent-fd", str(fd))]
    sys.argv = [owner, *arguments, *options]
    return int(importlib.import_module(owner).main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
