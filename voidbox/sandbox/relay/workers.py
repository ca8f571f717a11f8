"""A few threads for calls that block, started when there is work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Thread


class Workers:
    """Thread: any.

    Args:
        threads_max: calls that run at the same time.
        jobs_max: calls that run or wait; more are refused.
        on_fault: takes whatever a job raised.
    """

    def __init__(
        self, threads_max: int, jobs_max: int, on_fault: Callable[[BaseException], None]
    ) -> None:
        self._threads_max = threads_max
        self._jobs_max = jobs_max
        self._on_fault = on_fault
        self._changed = Condition()  # its lock covers what follows; never held while calling out
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: list[Thread] = []
        self._running = 0
        self._is_closed = False

    def submit(self, job: Callable[[], None]) -> bool:
        """Have a job done; False if there are too many already, or after close()."""
        with self._changed:
            if self._is_closed or len(self._jobs) + self._running >= self._jobs_max:
                return False
            self._jobs.append(job)
            busy = len(self._jobs) + self._running
            if busy > len(self._threads) and len(self._threads) < self._threads_max:
                thread = Thread(target=self._run, name="voidbox-relay-worker")
                try:
                    thread.start()
                except RuntimeError:  # no more threads: those that exist do it, or nobody
                    if not self._threads:
                        self._jobs.pop()
                        return False
                else:
                    self._threads.append(thread)
            self._changed.notify()
            return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                job = self._jobs.popleft()
                self._running += 1
            try:
                job()
            except Exception as error:  # handed on, not hidden
                self._on_fault(error)
            with self._changed:
                self._running -= 1

    def close(self) -> None:
        """Forget the jobs that wait, and wait for those that run. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
