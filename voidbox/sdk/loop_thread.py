"""The event loop behind the blocking API: one thread for all of a process's sandboxes.

Started when it is first needed, ended at exit. The thread is a daemon only so that the interpreter
gets as far as its exit handlers, which end it in good order.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from voidbox.errors import ConfigError, VoidboxError

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
    return _Job(coroutine).wait()


def run_telling(
    make: Callable[[Callable[[int, int], None]], Coroutine[Any, Any, T]],
    progress: Callable[[int, int], object],
) -> T:
    """Run what `make(tell)` returns, and call `progress` on this thread for what it tells.

    If more is told meanwhile, `progress` is called for the latest alone.
    """
    reports: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    job = _Job(make(lambda done, total: reports.put((done, total))))
    job.future.add_done_callback(lambda _: reports.put(None))
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
    """A coroutine on the loop's thread, as another thread sees it."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._has_started = False
        self._ended = threading.Event()
        if sys.is_finalizing():  # no thread runs any more, nor can one be started
            coroutine.close()
            raise ConfigError("the interpreter ends: it is too late to use the blocking API")
        loop = _start()
        if threading.current_thread() is _thread:
            coroutine.close()
            raise ConfigError(
                "the blocking API was called on its own event loop: use AsyncSandbox there"
            )
        self.future = asyncio.run_coroutine_threadsafe(self._run(coroutine), loop)

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._has_started = True
        try:
            return await coroutine
        finally:
            self._ended.set()

    def wait(self) -> T:
        try:
            return self.future.result()
        except VoidboxError as error:
            if os.environ.get("VOIDBOX_DEBUG"):
                raise
            # The message says it all; where in here it was raised helps no user.
            raise error.with_traceback(None) from None
        except BaseException:
            if not self.future.done():  # it is us who were interrupted
                self.cancel()
            raise

    def cancel(self) -> None:
        """End it, and wait for that."""
        self.future.cancel()
        if self._has_started:
            self._ended.wait(_END_S)


def _start() -> asyncio.AbstractEventLoop:
    global _loop, _thread, _has_hooks
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(
                target=_serve, args=(_loop,), name="voidbox-asyncio", daemon=True
            )
            _thread.start()
            if not _has_hooks:
                _has_hooks = True
                atexit.register(stop)
                os.register_at_fork(after_in_child=_forget)
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
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
