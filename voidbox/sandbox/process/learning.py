"""A snapshot that many guests are restored from learns which of its pages they touch first.

The first of them is looked at once, a while after its start or at its end; the next have those
pages fetched by a thread while they start. What is written down says where memory was touched, and
nothing of it.
"""

from __future__ import annotations

import logging
import os
import threading

from voidbox.errors import VoidboxError
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.worker.machine import WorkerMachine
from voidbox.snapshot import working_set
from voidbox.snapshot.working_set import BYTES_MAX

# Until a first command has been answered: some times what it took until the agent was. What touches
# more than this within that time is at work of its own, and the next guest is looked at.
_AFTER, _AFTER_S_MIN, _AFTER_S_MAX = 4.0, 0.5, 60.0

log = logging.getLogger(__name__)


class Learning:
    """Looks at one guest. Thread: one of its own until close().

    Args:
        source: what it was restored from.
        own_folder: where the machine's process may write.
        answered_s: from its start to its agent's answer.
    """

    def __init__(
        self, machine: WorkerMachine, source: Source, own_folder: str, answered_s: float
    ) -> None:
        self._machine = machine
        self._written = os.path.join(own_folder, working_set.NAME)
        self._path = os.path.join(source.folder, working_set.NAME)
        self._after_s = min(max(_AFTER_S_MIN, _AFTER * answered_s), _AFTER_S_MAX)
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        if source.has_more_to_come and not os.path.lexists(self._path):
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="voidbox-learning")
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: the next guest may have one
            return
        self._thread = thread

    def _run(self) -> None:
        self._is_over.wait(self._after_s)
        try:
            touched = self._machine.record_working_set(self._written, BYTES_MAX)
            if touched <= BYTES_MAX:
                os.link(self._written, self._path)  # a rename would replace what another wrote
                os.unlink(self._written)
        except OSError as error:  # another was first, say, or the snapshot is gone
            log.info("no working set: %s", error.strerror)
            return
        except VoidboxError as error:
            log.info("no working set: %s", error)
            return
        story = "written down" if touched <= BYTES_MAX else "too much to be fetched beforehand"
        log.info("the guest has touched %d KiB: %s", touched >> 10, story)

    def close(self) -> None:
        """Look now, if it has not been done: the machine is there still. Idempotent."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
