"""A program of the tests: SIGINT at one instruction after another of who uses threads.

    python -m tests.unit.interrupted threads|blocking-call|first-call

It says which one comes, as it may be the one at which everything stops, and at its end how many
there are. It traces, and needs a main thread, so it is a process of its own.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from dis import opname
from types import FrameType
from typing import Any

from voidbox.sdk import loop_thread
from voidbox.threads import Threads

_ABOUT_NAMES = ("/signal.py", "/enum.py")  # of signals: nine of ten instructions
_LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD")  # CHECK_EVAL_BREAKER in ceval.c


class Interrupt:
    """Sends its thread SIGINT after one of the instructions after which Python looks for signals.

    Attributes:
        count: how many of them there were so far.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._latest = ""
        self.count = 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename.endswith(_ABOUT_NAMES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before, self._latest = self._latest, opname[frame.f_code.co_code[frame.f_lasti]]
            self.count += before.startswith(_LOOKS)
            if before.startswith(_LOOKS) and self.count == self._at:
                print(self._at, frame.f_code.co_qualname, frame.f_lineno, flush=True)
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return self.trace


def use_threads() -> None:
    with Threads(2, "tested") as threads:
        futures = [threads.submit(abs, -number) for number in range(3)]
        assert threads.result(futures[1]) == 1
        assert {threads.first().result(), threads.first().result()} == {0, 2}


async def answer() -> int:
    return 42


def call_blocking() -> None:
    assert loop_thread.run(answer()) == 42


def run(use: Callable[[], None], at: int) -> int:
    """Interrupt it there; returns how many such instructions were run."""
    interrupt = Interrupt(at)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with contextlib.suppress(KeyboardInterrupt):
        sys.settrace(interrupt.trace)
        use()
    sys.settrace(None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    return interrupt.count


def main(use: Callable[[], None], prepare: Callable[[], None]) -> None:
    use()  # what is done once has been done
    prepare()
    count = run(use, 0)
    for at in range(1, count + 1):
        prepare()
        run(use, at)
        use()
    print(count, "instructions")


USES: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "threads": (use_threads, lambda: None),
    "blocking-call": (call_blocking, lambda: None),
    "first-call": (call_blocking, loop_thread.stop),  # starts the loop's thread
}

if __name__ == "__main__":
    main(*USES[sys.argv[1]])
