"""The event loop: order, timers, hand-overs from other threads, and its end."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from voidbox.event_loop import EventLoop

DEADLINE_S = 60


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def loop(errors: list[BaseException]) -> Iterator[EventLoop]:
    loop = EventLoop(errors.append)
    loop.start()
    yield loop
    loop.close()


def settle(loop: EventLoop) -> None:
    """Wait until everything handed in so far has run."""
    done = threading.Event()
    loop.call_soon(done.set)
    assert done.wait(DEADLINE_S)


def test_calls_keep_their_order(loop: EventLoop) -> None:
    seen: list[int] = []
    for number in range(1000):
        loop.call_soon(lambda number=number: seen.append(number))  # type: ignore[misc]
    settle(loop)
    assert seen == list(range(1000))


def test_no_call_is_lost_among_threads(loop: EventLoop) -> None:
    seen: list[tuple[int, int]] = []

    def caller(name: int) -> None:
        for number in range(500):
            loop.call_soon(lambda number=number: seen.append((name, number)))  # type: ignore[misc]

    threads = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(loop)
    assert len(seen) == 2000
    for name in range(4):
        assert [number for who, number in seen if who == name] == list(range(500))


def test_timers_run_in_order_and_can_be_cancelled(loop: EventLoop) -> None:
    seen: list[str] = []
    done = threading.Event()

    def arm() -> None:
        loop.call_later(0.03, lambda: (seen.append("late"), done.set()))  # type: ignore[func-returns-value]
        loop.call_later(0.01, lambda: seen.append("early"))
        loop.call_later(0.02, lambda: seen.append("never")).cancel()

    loop.call_soon(arm)
    assert done.wait(DEADLINE_S)
    assert seen == ["early", "late"]


def test_watching_replacing_and_unwatching(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    seen: list[str] = []
    came = threading.Event()

    def first(ready: int) -> None:
        assert ready & select.EPOLLIN
        seen.append("first" + os.read(reader, 1).decode())
        loop.watch(reader, select.EPOLLIN, second)
        came.set()

    def second(ready: int) -> None:
        seen.append("second" + os.read(reader, 1).decode())
        loop.unwatch(reader)
        loop.unwatch(reader)
        came.set()

    loop.call_soon(lambda: loop.watch(reader, select.EPOLLIN, first))
    for byte in (b"a", b"b"):
        came.clear()
        os.write(writer, byte)
        assert came.wait(DEADLINE_S)
    os.write(writer, b"c")
    settle(loop)
    assert seen == ["firsta", "secondb"]
    os.close(reader)
    os.close(writer)


def test_a_callback_may_unwatch_another_of_the_same_pass(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    seen: list[int] = []

    def callback(mine: int) -> None:
        seen.append(mine)
        for reader, _ in pipes:
            loop.unwatch(reader)

    def arm() -> None:
        for index, (reader, writer) in enumerate(pipes):
            os.write(writer, b"x")
            loop.watch(reader, select.EPOLLIN, lambda _, index=index: callback(index))  # type: ignore[misc]

    loop.call_soon(arm)
    settle(loop)
    settle(loop)
    assert len(seen) == 1
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def test_what_raises_is_reported_and_the_loop_goes_on(
    loop: EventLoop, errors: list[BaseException]
) -> None:
    loop.call_soon(lambda: 1 // 0)
    settle(loop)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_regular_files_are_refused(loop: EventLoop, errors: list[BaseException]) -> None:
    with open(__file__) as file:
        loop.call_soon(lambda: loop.watch(file.fileno(), select.EPOLLIN, lambda _: None))
        settle(loop)
    assert [type(error) for error in errors] == [PermissionError]


def test_close_runs_what_was_handed_in_and_frees_everything() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        loop = EventLoop(lambda error: None)
        loop.start()
        seen: list[int] = []
        loop.call_soon(lambda seen=seen: seen.append(1))  # type: ignore[misc]
        loop.close()
        loop.close()
        assert seen == [1]
        loop.call_soon(lambda: None)  # nobody is there; nothing happens
    assert len(os.listdir("/proc/self/fd")) <= before
    assert "voidbox-loop" not in [thread.name for thread in threading.enumerate()]


def test_close_without_start() -> None:
    EventLoop(lambda error: None).close()
