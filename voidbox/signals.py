"""Signals as calls on a thread of their own, where a handler may lock and wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def blocked() -> Iterator[set[int | signal.Signals]]:
    """Have all signals blocked, in this thread and in those that it starts meanwhile.

    These keep it so: no signal is for them, whoever waits for one later. What was blocked before is
    given for those that start programs of the caller's.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # the next call raises what an earlier signal asks for, and blocks them nevertheless
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalThread:
    """Calls `on_signal(number)` on its thread for each signal that comes meanwhile.

    An exception of it is a bug, and goes to threading.excepthook; the next signal is taken as well.

    The signals are blocked in the thread that makes this and in all that it starts afterwards, so
    make it first. Those that are ignored already stay so: nohup keeps its meaning.
    """

    def __init__(self, numbers: Iterable[int], on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._numbers = {n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
        self._is_closing = False
        # For close(): nobody sends it by accident, and its default is to be ignored.
        self._end_signal = signal.SIGURG
        self._saved_mask = signal.pthread_sigmask(
            signal.SIG_BLOCK, self._numbers | {self._end_signal}
        )
        self._thread = threading.Thread(target=self._run, name="voidbox-signals")
        self._thread.start()

    def _run(self) -> None:
        while True:
            number = signal.sigwait(self._numbers | {self._end_signal})
            if number != self._end_signal:
                self._call(number)
            elif self._is_closing:
                return

    def _call(self, number: int) -> None:
        try:
            self._on_signal(number)
        except Exception as error:  # told; but who cannot be interrupted any more is worse off
            threading.excepthook(
                threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread))
            )

    def close(self) -> None:
        """End the thread and let the signals through again. Idempotent."""
        if not self._is_closing:
            self._is_closing = True
            assert self._thread.ident is not None
            signal.pthread_kill(self._thread.ident, self._end_signal)
            self._thread.join()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._saved_mask)

    def __enter__(self) -> SignalThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
