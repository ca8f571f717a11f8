"""The event loop behind the blocking API: one thread for all of a process's sandboxes.

Started when it is first needed, ended at exit. The thread is a daemon only so that the interpreter
gets as far as its exit handlers, which end it in good order.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from voidbox.errors import ConfigError, VoidboxError
from voidbox.signals import blocked

T = TypeVar("T")

_END_S = 10.0  # for what is under way when its caller is interrupted

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_has_hooks = False


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop's thread; return what it returns. Thread: any other.

    An interrupt (Ctrl-C) cancels it, and waits for what it does then.
    """
    return _Job(coroutine, lambda: None).wait()


def run_telling(
    make: Callable[[Callable[[int, int], None]], Coroutine[Any, Any, T]],
    progress: Callable[[int, int], object],
) -> T:
    """Run what `make(tell)` returns, and call `progress` on this thread for what it tells.

    If more is told meanwhile, `progress` is called for the latest alone.
    """
    reports: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    job = _Job(
        make(lambda done, total: reports.put((done, total))), on_end=lambda: reports.put(None)
    )
    try:
        is_over = False
        while not is_over and (item := reports.get()) is not None:
            with suppress(queue.Empty):
                while (newer := reports.get_nowait()) is not None:
                    item = newer
                is_over = True
            progress(*item)
    except BaseException:
        job.cancel()
        raise
    return job.wait()


class _Job(Generic[T]):
    """A coroutine on the loop's thread, as another thread sees it.

    No Future of concurrent.futures: Ctrl-C at a wrong moment leaves its lock taken, on which the
    loop would wait forever (see voidbox.threads); and this takes a third less time.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], on_end: Callable[[], object]) -> None:
        if sys.is_finalizing():  # no thread runs any more, nor can one be started
            coroutine.close()
            raise ConfigError("the interpreter ends: it is too late to use the blocking API")
        self._coroutine = coroutine
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._result: T
        self._error: BaseException | None = None
        self._has_ended = False
        self._ended = threading.Lock()  # held until then
        self._ended.acquire()
        self._loop = _start()
        if threading.current_thread() is _thread:
            coroutine.close()
            raise ConfigError(
                "the blocking API was called on its own event loop: use AsyncSandbox there"
            )
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        """Thread: the loop's; as for all down to _end."""
        if self._is_cancelled:
            self._end_unbegun()
        else:
            self._task = self._loop.create_task(self._run())
            self._task.add_done_callback(self._end_unbegun)

    async def _run(self) -> None:
        try:
            self._result = await self._coroutine
        except Exception as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = CancelledError()
            raise
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._end()

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end_unbegun(self, _: object = None) -> None:
        """Where it was cancelled before it began, nothing of _run is run."""
        if not self._has_ended:
            self._coroutine.close()
            self._error = CancelledError()
            self._end()

    def _end(self) -> None:
        self._has_ended = True
        self._ended.release()
        self._on_end()

    def wait(self) -> T:
        """Return what it returns, or raise what it raises."""
        try:
            self._ended.acquire()
        except BaseException:  # it is us who were interrupted
            self.cancel()
            raise
        error, self._error = self._error, None
        try:
            if isinstance(error, VoidboxError) and not os.environ.get("VOIDBOX_DEBUG"):
                # The message says it all; where in here it was raised helps no user.
                raise error.with_traceback(None) from None
            if error is not None:
                raise error
            return self._result
        finally:
            del error  # whose traceback holds this frame

    def cancel(self) -> None:
        """End it, and wait for that."""
        self._is_cancelled = True
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._cancel_task)
        if not self._has_ended:
            self._ended.acquire(timeout=_END_S)


def _start() -> asyncio.AbstractEventLoop:
    global _loop, _thread, _has_hooks
    with _lock:
        if _loop is None:
            with blocked() as mask:  # Ctrl-C would leave a loop that no thread serves
                _loop = asyncio.new_event_loop()
                _thread = threading.Thread(
                    target=_serve, args=(_loop, mask), name="voidbox-asyncio", daemon=True
                )
                _thread.start()
                if not _has_hooks:
                    _has_hooks = True
                    atexit.register(stop)
                    os.register_at_fork(after_in_child=_forget)
        return _loop


def _serve(loop: asyncio.AbstractEventLoop, mask: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what sandboxes' processes begin with
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=_END_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def stop() -> None:
    """End the thread; the next call starts another. Idempotent."""
    global _loop, _thread
    with _lock:
        loop, thread = _loop, _thread
        _loop = _thread = None
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(2 * _END_S)


def _forget() -> None:
    """A child without exec has none of its parent's threads."""
    global _loop, _thread, _lock
    _lock = threading.Lock()
    _loop = _thread = None
