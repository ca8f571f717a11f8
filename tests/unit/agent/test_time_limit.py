"""A command's time limit, on a clock that goes on while the guest is paused."""

from __future__ import annotations

from typing import Any

import pytest

from guest_agent import time_limit
from guest_agent.time_limit import TimeLimit


class Clock:
    """A loop and the time, which goes by only when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[float, Any]] = []
        self.expired_at: float | None = None

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Clock:
        self.calls.append((self.now + delay, callback))
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def expire(self) -> None:
        self.expired_at = self.now

    def run(self, seconds: float) -> None:
        """Let the guest run so long."""
        end = self.now + seconds
        while self.calls and self.calls[0][0] <= end:
            when, callback = self.calls.pop(0)
            self.now = max(self.now, when)
            callback()
        self.now = end

    def pause(self, seconds: float) -> None:
        """The clock goes on, and nothing else."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", clock)
    return clock


@pytest.mark.parametrize("seconds", [0.2, 0.5, 7.3])
def test_it_expires_when_the_time_is_over(clock: Clock, seconds: float) -> None:
    TimeLimit(clock, seconds, clock.expire)  # type: ignore[arg-type]
    clock.run(seconds - 0.01)
    assert clock.expired_at is None
    clock.run(0.02)
    assert clock.expired_at == pytest.approx(100 + seconds, abs=0.01)
    assert not clock.calls


def test_a_pause_does_not_count(clock: Clock) -> None:
    TimeLimit(clock, 10, clock.expire)  # type: ignore[arg-type]
    for _ in range(3):
        clock.run(1)
        clock.pause(3600)
    clock.run(6.9 - 3 * time_limit.STEP_S_MAX)
    assert clock.expired_at is None
    clock.run(3 * time_limit.STEP_S_MAX)
    assert clock.expired_at is not None


def test_a_busy_guest_that_is_late_gets_no_time_for_it(clock: Clock) -> None:
    TimeLimit(clock, 10, clock.expire)  # type: ignore[arg-type]
    for _ in range(12):  # each step is half as late again
        clock.pause(0.3)
        clock.run(0.5)
    assert clock.expired_at is None
    clock.run(0.8)
    assert clock.expired_at is not None


def test_cancelled(clock: Clock) -> None:
    limit = TimeLimit(clock, 2, clock.expire)  # type: ignore[arg-type]
    clock.run(1.2)
    limit.cancel()
    limit.cancel()
    clock.run(10)
    assert clock.expired_at is None
