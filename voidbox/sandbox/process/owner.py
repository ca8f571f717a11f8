"""The process of one sandbox, its keeper: has its record, socket and logs, and sees to its end.

main thread ── starts the machine, in a worker that was forked off first; waits for its end
control     ── one thread a client; see operations
heartbeat   ── asks the agent whether it lives
limits      ── the time limit; the parent's pipe
keeper      ── what the worker asks for; its console
signals     ── SIGTERM, SIGINT: stop; once more: kill

The status descriptor gets JSON, a line each: {"adopted": true} once this process is the sandbox's,
then {"ok": true} when the agent has answered, or {"held": true} when its machine stands ready and
is to be asked for (see held_start), or an error as the control socket has it, when
everything has been cleaned up; "has_begun" in it says whether the guest had started.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
from typing import TYPE_CHECKING

from voidbox.errors import HostError, VoidboxError
from voidbox.file_limit import raise_file_limit
from voidbox.sandbox.control import describe_error
from voidbox.sandbox.process import logs
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker.imports import SHARED, import_all
from voidbox.sandbox.worker.link import fork_worker
from voidbox.thread_stacks import keep_stacks_small

if TYPE_CHECKING:  # imported while the worker imports what it needs
    from voidbox.sandbox.process.starting import MakeGuest

log = logging.getLogger(__name__)
_logs = logging.getLogger("voidbox")


def main(argv: list[str], make_guest: MakeGuest | None = None) -> int:
    """Be the process of a sandbox; returns the exit status.

    Args:
        make_guest: see MakeGuest; None: in a worker, which shuts itself in.
    """
    folder, status_fd, parent_fd = _parse(argv)

    def report(values: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            _tell(status_fd, values)

    gc.disable()  # until it has begun: what is imported stays
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whatever terminal it was started from
    try:
        store, record = _adopt(folder)
        _tell(status_fd, {"adopted": True})
        raise_file_limit()
        keep_stacks_small()
        import_all(SHARED)
        link = fork_worker(record.jail) if make_guest is None else None
        # The worker imports what it needs meanwhile.
        from voidbox.sandbox.process.life import Life
        from voidbox.sandbox.process.preparing import prepare

        life = Life(prepare(store, record, link, make_guest), parent_fd, report)
    except (VoidboxError, OSError) as error:
        if isinstance(error, OSError):
            error = HostError.from_errno("start the sandbox's process", error.errno or 0)
        report({**describe_error(error), "has_begun": False})
        return 1
    gc.freeze()
    gc.enable()
    life.run()
    return 0


def _tell(status_fd: int, values: dict[str, object]) -> None:
    """Raises OSError: whoever waited for it has given up, or is gone."""
    os.write(status_fd, json.dumps(values).encode() + b"\n")


def _adopt(folder: str) -> tuple[Store, SandboxRecord]:
    id = os.path.basename(folder)
    store = Store(os.path.dirname(os.path.dirname(folder)), is_known=True)
    record = store.adopt(id)
    _logs.addHandler(logs.OwnerLog(store.path(id, "owner.log")))
    if _logs.level != logging.INFO:  # setting it looks at every logger there is
        _logs.setLevel(logging.INFO)
    log.info("the sandbox's process begins")
    return store, record


def _parse(argv: list[str]) -> tuple[str, int, int | None]:
    numbers = dict(zip(argv[1::2], argv[2::2], strict=False))
    if len(argv) % 2 == 0 or not numbers.keys() <= {"--status-fd", "--parent-fd"}:
        raise SystemExit("usage: owner FOLDER [--status-fd N] [--parent-fd N]")
    parent_fd = numbers.get("--parent-fd")
    status_fd = int(numbers.get("--status-fd", "1"))
    return os.path.abspath(argv[0]), status_fd, int(parent_fd) if parent_fd else None
