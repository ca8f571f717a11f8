"""Work on a few threads, which Ctrl-C may interrupt at any moment.

KeyboardInterrupt is raised wherever the main thread is. In the middle of threading.Condition, which
is written in Python and which futures, events and Thread.start() are built upon, it leaves a lock
taken: the thread that needs it next waits forever, and so does the process, which joins its threads
before it ends. So signals are blocked while any of them is called here, and what waits is in C:
SimpleQueue.get() is interrupted only while it has nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from voidbox.signals import blocked

R = TypeVar("R")


class Threads:
    """Threads that do what is submitted. Use as a context manager: its end waits for theirs.

    What has not begun by then is not begun any more. Signals are blocked in the threads, and in
    processes that they start. Thread: one, but for the work.

    Args:
        count: how many; each is started when it is needed.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, name)
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self._passed_over: set[Future[Any]] = set()  # ended before the one that was waited for

    def submit(self, work: Callable[..., R], *arguments: Any) -> Future[R]:
        """Have `work(*arguments)` done; see first() and result() for how to wait for it."""
        with blocked():
            future = self._executor.submit(work, *arguments)
            future.add_done_callback(self._ended.put)
        return future

    def first(self) -> Future[Any]:
        """Wait for the next one that ends, in whatever order; it is returned once."""
        return self._passed_over.pop() if self._passed_over else self._ended.get()

    def result(self, future: Future[R]) -> R:
        """Wait for one, once; returns what its work did, or raises what that raised."""
        while future not in self._passed_over:
            self._passed_over.add(self._ended.get())
        self._passed_over.remove(future)
        return future.result()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        with blocked():
            self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor.shutdown()  # only joins what is left, which may be interrupted
