"""`voidbox pool run`: lines, what becomes of them, and what is shown."""

from __future__ import annotations

import functools
import io
import json
import os
import pty
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.pool.test_stand_ins import kept, options, state_folder
from voidbox.cli import pool, pool_run
from voidbox.cli.count_bar import CountBar
from voidbox.cli.pool_run import words_of
from voidbox.errors import ConfigError
from voidbox.pool.aio import AsyncPool

pytestmark = pytest.mark.slow

__all__ = ["options", "state_folder"]


def test_a_line_is_a_word_of_the_command() -> None:
    assert words_of(("wc", "-c"), "a b") == ["wc", "-c", "a b"]
    assert words_of(("sh", "-c", "echo {} {}"), "x") == ["sh", "-c", "echo x x"]


@pytest.fixture
def lines(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the command run over lines."""
    made = functools.partial(AsyncPool, **options)
    monkeypatch.setattr(pool_run, "AsyncPool", made)

    def run(text: str, *words: str) -> int:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        return pool.main(["run", *words])

    return run


def test_each_line_has_its_output(lines: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert lines("b\n\na\nc", "--size", "2", "--keep-order", "--", "echo", "got") == 0
    assert capfd.readouterr().out == "got b\ngot a\ngot c\n"
    assert kept() == []


def test_what_fails_is_told(lines: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("sh", "-c", "echo out; echo err >&2; exit {}")
    assert lines("0\n3\n", "--json", "--size", "1", "--", *words) == 123
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(one["line"], one["exit_code"]) for one in found] == [("0", 0), ("3", 3)]
    assert found[1]["stdout"] == "out\n"
    assert found[1]["stderr"] == "err\n"
    assert found[1]["error"] == ""


def test_a_time_limit_of_each(lines: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--size", "1", "--timeout", "1s", "--", "sh", "-c", "echo begun; exec sleep {}")
    assert lines("1000\n", *words) == 123
    found = capfd.readouterr()
    assert found.out == "begun\n"
    assert "1000: its time limit of 1 s ran out" in found.err


def test_output_that_nobody_reads_ends_it_though_there_are_more_lines(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: object, outcome: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pool_run._Work, "_write", refuse)
    before = set(threading.enumerate())
    with pytest.raises(BrokenPipeError):
        lines("line\n" * 3000, "--size", "1", "--", "echo")
    for thread in set(threading.enumerate()) - before:  # one that fails fails the test
        thread.join()
    assert kept() == []


def test_no_lines(lines: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert lines("", "--", "true") == 0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("words", [("--size", "0", "true"), ("--size", "2", "--warm", "3", "true")])
def test_bad_numbers(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        pool.main(["run", *words])


def test_no_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pool.main(["run", "--size", "2"])
    assert "no COMMAND" in capfd.readouterr().err


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    primary, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with CountBar() as bar:
            bar.update(1, None, 0, 2)
            bar.clear()
            bar.update(3, 4, 1, 1)
            bar.update(4, 4, 1, 0)
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(primary, 65536).decode()
    os.close(primary)
    assert "1 done, 2 running, 0 failed" in shown
    assert f"{'#' * 30} 4/4, 0 running, 1 failed" in shown
    assert shown.endswith("\r\n")
