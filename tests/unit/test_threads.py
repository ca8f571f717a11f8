"""Threads: in what order it says what has ended, and that Ctrl-C may fall anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from voidbox.threads import Threads


def test_the_first_that_ends_comes_first() -> None:
    release = threading.Event()
    with Threads(2, "tested") as threads:
        slow, fast = threads.submit(release.wait), threads.submit(abs, -1)
        assert threads.first() is fast
        release.set()
        assert threads.first() is slow


def test_results_by_the_order_that_is_asked_for() -> None:
    with Threads(3, "tested") as threads:
        futures = [threads.submit(abs, -number) for number in range(20)]
        assert [threads.result(future) for future in futures[::-2]] == [*range(19, 0, -2)]
        assert {threads.first() for _ in range(10)} == set(futures[::2])  # each of the others once


def test_what_fails_is_told() -> None:
    with Threads(1, "tested") as threads:
        failing = threads.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            threads.result(failing)


def test_the_end_begins_nothing_more_and_waits_for_what_has_begun() -> None:
    begun, release, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        release.wait()
        done.append(1)

    with Threads(1, "tested") as threads:
        threads.submit(work)
        never = threads.submit(done.append, 2)
        begun.wait()
        threading.Timer(0.05, release.set).start()
    assert done == [1] and never.cancelled()


@pytest.mark.parametrize(
    ("use", "count_min"), [("threads", 200), ("blocking-call", 15), ("first-call", 60)]
)
def test_an_interrupt_at_any_instruction_leaves_no_lock(use: str, count_min: int) -> None:
    program = [sys.executable, "-W", "ignore", "-m", "tests.unit.interrupted", use]
    with subprocess.Popen(
        program, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        killer = threading.Timer(60, process.kill)  # it blocks what is less
        killer.start()
        output = process.stdout.read()
        killer.cancel()
    assert process.returncode == 0, output[-1000:]
    assert int(output.splitlines()[-1].split()[0]) >= count_min
