"""A coroutine that signals end, leaving nothing half done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from voidbox.cli import exit_status
from voidbox.signals import SignalThread

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it. A first signal cancels it; then, or at once with a second one, the process ends.

    asyncio.run() alone knows Ctrl-C only, and waits for threads that wait for the guest.
    """
    interrupt = _Interrupt()
    # Threads that exist before would get the signals; where there can be no loop, nothing is run.
    with (
        contextlib.closing(work),
        SignalThread(_SIGNALS, interrupt.on_signal),
        asyncio.Runner() as runner,
    ):
        return runner.run(interrupt.watch(work))


class _Interrupt:
    """Thread: main, but for on_signal."""

    def __init__(self) -> None:
        self._number = 0
        self._task: asyncio.Task[Any] | None = None

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            return await work
        except BaseException:
            if self._number:  # whatever it died of
                _exit(self._number)
            raise
        finally:
            self._task = None

    def on_signal(self, number: int) -> None:
        task = self._task
        if self._number or task is None:
            _exit(number)
        self._number = number
        with suppress(RuntimeError):  # it has just ended
            task.get_loop().call_soon_threadsafe(task.cancel)


def _exit(number: int) -> NoReturn:
    os._exit(exit_status.SIGNAL_BASE + number)
