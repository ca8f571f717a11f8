"""A start that waits to be asked for: a machine that is restored, and stands ready."""

from __future__ import annotations

import concurrent.futures
import threading

from voidbox.errors import AgentError, VoidboxError


class HeldStart:
    """Thread: any; wait_asked() is the main thread's."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._begun: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._lock = threading.Lock()  # covers _begun's being set

    def wait_asked(self) -> None:
        """Wait until it is to go on, or to end."""
        self._asked.wait()

    def end(self) -> None:
        """Have wait_asked() return: whoever called it looks whether it ends."""
        self._asked.set()

    def run(self) -> None:
        """Have it go on; return once its agent answers. One that has begun by itself does at once.

        Raises:
            VoidboxError: what it failed with.
        """
        self._asked.set()
        self._begun.result()

    def succeed(self) -> None:
        """Its agent answers."""
        with self._lock:
            if not self._begun.done():
                self._begun.set_result(None)

    def fail(self, error: VoidboxError) -> None:
        """It has ended; who waits is told so. Nothing, if it had begun."""
        self._asked.set()
        with self._lock:
            if not self._begun.done():
                self._begun.set_exception(AgentError(str(error)))
