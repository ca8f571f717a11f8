"""The store under many processes, and under those that are killed at any time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.unit.sandbox import crash_points
from tests.unit.sandbox.states import FAST_DISK, ROOT, allocations, check_whole, wanted
from voidbox.errors import VoidboxError
from voidbox.sandbox.state.store import Store

PROGRAM = [sys.executable, "-m", "tests.unit.sandbox.crash_points"]


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as path:
        yield f"{path}/state"


@pytest.mark.slow
def test_50_processes_at_once_never_get_the_same(folder: str) -> None:
    with ExitStack() as stack:
        takers = [
            stack.enter_context(
                subprocess.Popen(
                    [*PROGRAM, "take", folder],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(50)
        ]
        pipes = [(taker.stdin, taker.stdout) for taker in takers]
        for stdin, _ in pipes:
            assert stdin is not None
            stdin.write("go\n")
            stdin.flush()
        cids: list[int] = []
        ports: list[int] = []
        for _, stdout in pipes:
            assert stdout is not None
            its_cids, its_ports = json.loads(stdout.readline())
            cids += its_cids
            ports += its_ports
        assert sorted(cids) == list(range(3, 103))
        assert sorted(ports) == list(range(9000, 9200))
        assert len(allocations(folder)["cids"]) == 100
        for taker in takers:
            taker.communicate("end\n", timeout=60)
            assert taker.returncode == 0
    assert check_whole(folder) == []
    with Store(folder) as store:
        made = store.create(wanted())
        assert made.cid == 3
        assert store.allocate_port(made.id) == 9200


def _run(*args: str) -> str:
    done = subprocess.run([*PROGRAM, *args], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "set aside as" not in line]
    assert not complaints
    return done.stdout


def test_killed_before_each_call_that_changes_the_disk(folder: str) -> None:
    found = dict(line.split(": ") for line in _run("points", folder).splitlines())
    assert found.keys() == crash_points.ACTS.keys()
    for name, least in (("first", 12), ("create", 10), ("end", 8), ("remove", 8), ("clean", 10)):
        assert int(found[name].split()[0]) >= least, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_writers_killed_at_random_times(folder: str, seed: int) -> None:
    _run("storm", folder, str(seed), "120")


@pytest.mark.parametrize("name", sorted(crash_points.ACTS.keys() - {"set aside"}))
def test_a_disk_that_is_full_at_each_call(
    folder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, act = crash_points.ACTS[name]
    point = 0
    while True:
        point += 1
        base = f"{folder}-{point}"
        prepare(base)
        left = point

        def on_call() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            for call in crash_points.CALLS:
                patched.setattr(os, call, getattr(os, call))  # to be put back
            crash_points.count_calls(on_call)
            try:
                with Store(base) as store:
                    act(store)
            except VoidboxError as error:
                assert "No space left on device" in str(error)
                if name in ("first", "create"):  # nothing is left, at once
                    left_over = os.listdir(f"{Store(base).folder}/sandboxes")
                    assert not [entry for entry in left_over if entry.startswith(".")]
                    assert "new" not in [record.name for record in Store(base).list()]
        check_whole(base)
        with Store(base) as store:
            store.remove(store.create(wanted("next")).id)
        if left > 0:
            break
    assert point > 4
