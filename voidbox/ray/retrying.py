"""When a task begins again in another sandbox."""

from __future__ import annotations

import logging

from voidbox.errors import SandboxLost

TRIES = 4

_logger = logging.getLogger("voidbox")


class Tries:
    """A context manager for each try: lets a loss pass that was not the task's doing.

    A guest that ended by itself may have been ended by its task, which would do so again.
    """

    def __init__(self) -> None:
        self._left = TRIES

    def __enter__(self) -> None:
        self._left -= 1

    def __exit__(self, type: object, error: object, traceback: object) -> bool:
        if not isinstance(error, SandboxLost) or error.reason == "guest" or not self._left:
            return False
        _logger.warning("a task of map() begins again elsewhere: %s", error)
        return True
