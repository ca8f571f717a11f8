"""The pipe by which the sandboxes of this process learn of its end.

All of them hold the reading end; this process alone holds the other, and the kernel closes that
with it, however it ends.
"""

from __future__ import annotations

import os
import threading

_lock = threading.Lock()
_ends: tuple[int, int] | None = None  # reading, writing
_has_hook = False


def reading_end() -> int:
    """Return the descriptor for launch(); it stays this module's."""
    global _ends, _has_hook
    with _lock:
        if _ends is None:
            _ends = os.pipe()  # close-on-exec, so that no other program holds it
        if not _has_hook:
            _has_hook = True
            os.register_at_fork(after_in_child=_forget)
        return _ends[0]


def _forget() -> None:
    """A child without exec is another process: it must not keep its parent's sandboxes alive."""
    global _ends, _lock
    _lock = threading.Lock()
    ends, _ends = _ends, None
    for fd in ends or ():
        os.close(fd)
