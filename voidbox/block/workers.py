"""Threads for what may block: a disk that has to be waited for, and flushes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

WORKERS_MAX = 8


class Workers:
    """Up to WORKERS_MAX threads, started when there is work that no idle one can take.

    Thread: one caller's, but for what is said of each job.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # covers all below; never held while a job runs
        self._has_job = threading.Condition(self._lock)
        self._is_idle = threading.Condition(self._lock)
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0  # threads that wait for a job
        self._running = 0  # jobs
        self._closing = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread run `job`, which must not raise."""
        with self._lock:
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or len(self._threads) == WORKERS_MAX:
                self._has_job.notify()
                return
            thread = threading.Thread(target=self._run, name=self._name)
            self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:  # the host gives no thread: others may do it, else we do
            with self._lock:
                self._threads.remove(thread)
                if self._threads:
                    return
                self._jobs.remove(job)
            job()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._jobs:
                    if self._closing:
                        return
                    self._idle += 1
                    self._has_job.wait()
                    self._idle -= 1
                job = self._jobs.popleft()
                self._running += 1
            try:
                job()
            finally:
                del job  # it holds slices of guest memory
                with self._lock:
                    self._running -= 1
                    if not self._running and not self._jobs:
                        self._is_idle.notify_all()

    @property
    def is_busy(self) -> bool:
        """Whether a job is not done. Thread: any."""
        with self._lock:
            return bool(self._jobs or self._running)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Return when every job is done; False if that takes longer."""
        with self._lock:
            return self._is_idle.wait_for(lambda: not (self._jobs or self._running), timeout_s)

    def cancel(self) -> None:
        """Forget the jobs that no thread has begun, and return when the others are done."""
        with self._lock:
            self._jobs.clear()
        self.drain()

    def close(self) -> None:
        """Do what is left, and end the threads. Idempotent."""
        with self._lock:
            self._closing = True
            self._has_job.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
