"""What ends a sandbox from outside its guest: its time, and the end of who owns it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from voidbox.sandbox.process import limits as limits_module
from voidbox.sandbox.process.limits import Limits

DEADLINE_S = 60


class FakeLoop:
    """Does at once what it is asked to do soon; holds the delay of its one timer."""

    def __init__(self) -> None:
        self.delay_s: float | None = None

    def call_soon(self, call: Callable[[], None]) -> None:
        call()

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        assert self.delay_s is None
        self.delay_s = delay_s
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self) -> None:
        self.delay_s = None


def let_turn(limits: Limits, turns: int = 3) -> None:
    """Wait until the loop has looked again at what it watches."""
    for _ in range(turns):
        turned = threading.Event()
        limits._loop.call_soon(turned.set)
        assert turned.wait(DEADLINE_S)


def test_the_time_stands_still_while_the_guest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(limits_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    limits, loop = Limits(None, lambda: None, lambda: None), FakeLoop()
    limits.close()
    monkeypatch.setattr(limits, "_loop", loop)
    limits.set_time(10)
    assert loop.delay_s == 10
    clock.now += 4
    limits.hold()
    assert loop.delay_s is None
    clock.now += 1000
    limits.hold()
    limits.go_on()
    assert loop.delay_s == 6
    clock.now += 7  # late: it should have ended
    limits.hold()
    limits.go_on()
    assert loop.delay_s == 0
    limits.hold()
    limits.set_time(5)
    assert loop.delay_s is None
    limits.go_on()
    assert loop.delay_s == 5
    limits.set_time(1e12)  # more than a timer takes
    assert loop.delay_s == 10**9
    limits.hold()
    limits.set_time(None)
    limits.go_on()
    assert loop.delay_s is None


def test_the_end_of_the_owner_is_noticed_and_nothing_that_it_says() -> None:
    ours, theirs = os.pipe()
    calls: list[str] = []
    orphaned = threading.Event()
    with closing(Limits(ours, lambda: None, lambda: (calls.append("x"), orphaned.set()))) as limits:
        limits.start()
        os.write(theirs, b"anything")
        let_turn(limits)
        assert not calls
        os.close(theirs)
        assert orphaned.wait(DEADLINE_S)
        let_turn(limits)
        assert calls == ["x"]
    with pytest.raises(OSError):
        os.fstat(ours)


def test_an_owner_that_is_forgotten_may_go() -> None:
    ours, theirs = os.pipe()
    end, other_end = os.pipe()
    calls: list[str] = []
    orphaned, ended = threading.Event(), threading.Event()
    with closing(Limits(ours, lambda: None, orphaned.set)) as limits:
        limits.start()
        limits.forget_parent()
        limits.forget_parent()
        limits.watch_end(end, lambda: (calls.append("x"), ended.set()))
        os.close(theirs)
        os.close(other_end)
        assert ended.wait(DEADLINE_S)
        let_turn(limits)
        assert calls == ["x"] and not orphaned.is_set()
    os.close(end)
