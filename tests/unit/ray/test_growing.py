"""A pool over a cluster whose autoscaler acts: nodes come when they are wanted, and end unused."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'voidbox-kvm[ray]'")

from tests.unit.ray.cluster import of_stand_ins
from tests.unit.ray.growing import growing
from tests.unit.sandbox.states import ROOT

pytestmark = pytest.mark.slow

DEADLINE_S = 600.0


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A pool's, connected to a head that has no sandboxes."""
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of Ray's workers
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="vbx") as name, growing({"grown": 2}) as address:
        folder = Path(name)
        (folder / "image").write_text(json.dumps({"mode": ""}))
        (folder / "work").mkdir()
        ray.init(address=address, log_to_driver=False)
        yield {"nodes": "grown", "autoscale": True, "idle": 2.0, **of_stand_ins(folder)}
        ray.shutdown()


def nodes() -> int:
    """Return how many nodes the autoscaler keeps."""
    import ray

    return sum(node["Alive"] and "grown" in node["Resources"] for node in ray.nodes())


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.2)


def test_nodes_come_and_go(options: dict[str, Any]) -> None:
    from tests.unit.ray.stand_ins import StandInPool
    from voidbox.ray import members

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), StandInPool(**options) as pool:
            assert nodes() == 0
            first = await pool.acquire()
            assert nodes() == 1
            others = await asyncio.gather(*(pool.acquire() for _ in range(2)))
            taken = [first, *others]
            assert nodes() == 2, "the third is on a node of its own"
            for one in taken:
                assert (await one.commands.run("echo on")).stdout == "on\n"
            counts = {
                name: [one.node for one in taken].count(name)
                for name in {one.node for one in taken}
            }
            crowded = max(counts, key=lambda name: counts[name])
            kept = next(one for one in taken if one.node == crowded)
            for one in taken:
                if one is not kept:
                    assert await one.kill()
            await until(lambda: nodes() == 1, "the node that nobody uses does not end")
            assert (await kept.commands.run("echo on")).stdout == "on\n", "the other one stays"
            assert await kept.kill()
            await until(lambda: nodes() == 0, "the last node does not end")
            async with pool.sandbox() as again:
                assert (await again.commands.run("echo on")).stdout == "on\n"

    os.environ.pop("VOIDBOX_STATE", None)
    members.OPEN_S = DEADLINE_S
    asyncio.run(test())
