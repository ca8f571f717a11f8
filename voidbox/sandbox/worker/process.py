"""A worker's process: rid of all that was its keeper's, until that is gone."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from voidbox.sandbox.worker import warden
from voidbox.sandbox.worker.imports import USUAL, import_all
from voidbox.thread_stacks import keep_stacks_small

_LAST_S = 10.0  # for the machine's end, once nobody is left to order anything

log = logging.getLogger(__name__)


def be_worker(
    socks: Sequence[socket.socket],
    level: str,
    report_fd: int,
    kept_fds: Sequence[int] = (),
    *,
    is_inherited: bool,
) -> NoReturn:
    """Be a worker until its keeper is gone; the process has one thread.

    Args:
        socks: orders, asks, queries, console; see Link.
        level: of its jail.
        report_fd, is_inherited: see warden.
        kept_fds: descriptors that stay open beside theirs.
    """
    status = 1
    try:
        gc.disable()  # until the machine is made: what is imported stays
        has_pids = warden.enter(level, report_fd, is_inherited)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o077)
        keep_stacks_small()
        warden.close_others({*kept_fds, *(sock.fileno() for sock in socks)})
        # As much as it is: imported while the keeper imports what it needs.
        from voidbox.sandbox.worker.devices import Ends
        from voidbox.sandbox.worker.serving import Worker

        import_all(USUAL)
        orders, *others = socks
        worker = Worker(orders, Ends(*others), has_pids)
        worker.run()
        threading.Thread(target=_end_at_last, daemon=True).start()
        worker.close()
        status = 0
    except BaseException:
        log.exception("the machine's process failed")
    finally:
        os._exit(status)


def _end_at_last() -> None:
    time.sleep(_LAST_S)
    os._exit(1)
