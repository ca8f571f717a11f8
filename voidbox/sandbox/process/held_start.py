"""A start that waits to be asked for: a machine that is restored, and stands ready."""

from __future__ import annotations

import threading

from voidbox.errors import AgentError, VoidboxError


class HeldStart:
    """Thread: any; wait_asked() is the main thread's."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._settled = threading.Event()  # it has begun, or never will
        self._failure: str | None = None
        self._lock = threading.Lock()  # covers both

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
        self._settled.wait()
        if self._failure is not None:
            raise AgentError(self._failure)

    def succeed(self) -> None:
        """Its agent answers."""
        self._settle(None)

    def fail(self, error: VoidboxError) -> None:
        """It has ended; who waits is told so. Nothing, if it had begun."""
        self._asked.set()
        self._settle(str(error))

    def _settle(self, failure: str | None) -> None:
        with self._lock:
            if not self._settled.is_set():
                self._failure = failure
                self._settled.set()
