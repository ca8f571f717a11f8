from __future__ import annotations

from collections.abc import Callable

from voidbox.nat.limited_log import LINES_MAX, LimitedLog


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s, self.callback = delay_s, callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]


def make() -> tuple[FakeLoop, list[str], LimitedLog]:
    loop, lines = FakeLoop(), list[str]()
    return loop, lines, LimitedLog(loop, lines.append)  # type: ignore[arg-type]


def test_each_is_a_line() -> None:
    loop, lines, log = make()
    log.add("refused TCP to 192.0.2.1:80")
    assert lines == ["refused TCP to 192.0.2.1:80"]
    loop.timers[0].callback()
    assert len(lines) == 1 and len(loop.timers) == 1  # nothing ticks where nothing is refused


def test_a_flood_is_counted_rather_than_written() -> None:
    loop, lines, log = make()
    for _ in range(100_000):
        log.add("x")
    assert len(lines) == LINES_MAX and len(loop.timers) == 1
    loop.timers[0].callback()
    assert lines[LINES_MAX:] == [f"and {100_000 - LINES_MAX} more in that second"]
    log.add("y")
    assert lines[-1] == "y" and len(loop.timers) == 2


def test_closing_says_what_is_still_to_be_said() -> None:
    loop, lines, log = make()
    log.close()
    for _ in range(LINES_MAX + 2):
        log.add("x")
    log.close()
    assert lines[-1] == "and 2 more in that second"
    assert loop.timers[0].is_cancelled
