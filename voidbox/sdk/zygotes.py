"""The zygote of a program: what forks its sandboxes' processes while it is wanted."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from voidbox.errors import HostError
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching

_logger = logging.getLogger("voidbox")

_lock = threading.Lock()
_zygote: Zygote | None = None
_wanted = 0  # by so many blocks


@contextlib.contextmanager
def zygote() -> Iterator[None]:
    """Have this program's sandboxes start in a tenth of the time, for the length of a block.

    A process that has imported everything forks theirs. They share its memory, and also the layout
    of its addresses; create(isolated=True) makes one that does not. Sandboxes stay when the block
    ends; the process goes, as it does with this program.

    Raises:
        HostError: the host gives no process.
    """
    global _zygote, _wanted
    with _lock:
        if _zygote is None:
            _zygote = launching.make_zygote()
        _wanted += 1
    try:
        yield
    finally:
        ended = None
        with _lock:
            _wanted = max(0, _wanted - 1)  # 0 in a child that came about in the block
            if not _wanted:
                ended, _zygote = _zygote, None
        if ended is not None:
            ended.close()


def current() -> Zygote | None:
    """Return what forks this program's sandboxes now; None: each is a program of its own."""
    global _zygote
    with _lock:
        if _zygote is None or _zygote.is_alive():
            return _zygote
        _logger.warning("the zygote was killed: starting another one")
        _zygote.close()
        try:
            _zygote = launching.make_zygote()
        except HostError as error:
            _logger.warning("%s", error)
            _zygote = None
        return _zygote


def _forget() -> None:
    """A child without exec has none of its parent's."""
    global _lock, _zygote, _wanted
    _lock, _zygote, _wanted = threading.Lock(), None, 0


os.register_at_fork(after_in_child=_forget)
