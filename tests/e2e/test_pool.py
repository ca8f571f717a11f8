"""A pool's sandboxes that stand ready, with real guests."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voidbox import Pool, Sandbox

pytestmark = [pytest.mark.boot, pytest.mark.slow]

DEADLINE_S = 300.0
SPAN_S = 5.0


@pytest.fixture(scope="module")
def snapshot(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[str]:
    """Of a guest that has written a word; the state folder is in memory, as what the lab writes."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as folder:
        os.environ["VOIDBOX_STATE"] = folder
        with Sandbox.create(
            kernel=kernels["minimal"], image=guest_images["minimal"], memory="192M",
            request_timeout=DEADLINE_S,
        ) as sandbox:  # fmt: skip
            sandbox.files.write("/tmp/word", "hello")
            yield sandbox.snapshot("base").snapshot_id
        del os.environ["VOIDBOX_STATE"]


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _ticks(pid: int) -> int:
    """Return the CPU time of a process; proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_one_that_is_warm_costs_nothing_until_it_is_acquired(snapshot: str) -> None:
    with Pool(1, warm=1, snapshot=snapshot, request_timeout=DEADLINE_S) as pool:
        deadline = time.monotonic() + DEADLINE_S
        while not pool.stats().warm:
            assert time.monotonic() < deadline, pool.stats()
            time.sleep(0.1)
        (found,) = (info for info in Sandbox.list() if info.state == "creating")
        log = Path(os.environ["VOIDBOX_STATE"], "sandboxes", found.sandbox_id, "owner.log")
        assert "the machine is made" in log.read_text()
        keeper, worker = _family(_pid_of(found.sandbox_id))
        before = _ticks(keeper), _ticks(worker)
        time.sleep(SPAN_S)
        assert _ticks(worker) - before[1] <= 1, "its machine has run"
        assert _ticks(keeper) - before[0] <= 10  # of 500
        with pool.sandbox(0) as sandbox:
            assert sandbox.sandbox_id == found.sandbox_id
            assert sandbox.files.read("/tmp/word") == "hello"
            began = time.time()
            clock = "python3 -c 'import time; print(time.time())'"
            told = float(sandbox.commands.run(clock).stdout)
            assert began - 1 < told < time.time() + 1  # of when it began, not of when it was made


def _pid_of(id: str) -> int:
    path = Path(os.environ["VOIDBOX_STATE"], "sandboxes", id, "state.json")
    values: dict[str, Any] = json.loads(path.read_text())
    return int(values["pid"])
