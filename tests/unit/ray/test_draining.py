"""Nodes that Ray drains, by its own command: they get no more sandboxes, and those there end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'voidbox-kvm[ray]'")

import ray

from tests.unit.ray.cluster import add_node, started
from tests.unit.ray.test_cluster import folder, options, pool_of, run, until, wait_until
from tests.unit.sandbox.states import ROOT

__all__ = ["folder", "options"]

pytestmark = pytest.mark.slow

RESOURCE = "drained"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that has no sandboxes, and a node that stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of Ray's workers
        with started(0) as found:
            add_node(found, resources={RESOURCE: 2})
            yield found


@pytest.fixture
def leaving(cluster: Any) -> Iterator[str]:
    """The id of one more node."""
    node = add_node(cluster, resources={RESOURCE: 2})
    yield node.node_id
    cluster.remove_node(node)


def drain(cluster: Any, node_id: str) -> None:
    words = ["drain-node", "--address", cluster.address, "--node-id", node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    limit = ["--deadline-remaining-seconds", "3600"]
    command = [sys.executable, "-m", "ray.scripts.scripts", *words, *why, *limit]
    subprocess.run(command, check=True, capture_output=True)


async def drained(cluster: Any, pool: Any, node_id: str) -> None:
    """Drain a node, and wait until the pool knows."""
    await asyncio.to_thread(drain, cluster, node_id)

    async def is_known() -> bool:
        return node_id not in [one.id for one in pool.ready()]

    await until(is_known, "the pool does not know of it")


def is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def is_on(sandbox: Any, node_id: str) -> bool:
    name: str = sandbox.node
    return name.endswith(f"/{node_id[:8]}")


@pytest.mark.parametrize("shared_as", [None, "of-many"])
def test_a_node_that_is_drained(
    options: dict[str, Any], cluster: Any, leaving: str, shared_as: str | None
) -> None:
    async def test() -> None:
        async with pool_of(options, nodes=RESOURCE, shared_as=shared_as) as pool:
            taken = [await pool.acquire() for _ in range(4)]
            there = [one for one in taken if is_on(one, leaving)]
            here = [one for one in taken if one not in there]
            assert len(there) == 2
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(4)]  # some of them there
            await drained(cluster, pool, leaving)
            assert await there[0].kill(), "its place is nobody's"
            for one in here:
                assert await one.kill()
            done, later = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            while later:
                for one in done:
                    assert await one.result().kill()
                done, later = await asyncio.wait(later, return_when=asyncio.FIRST_COMPLETED)
            assert not [one for one in waiting if is_on(one.result(), leaving)]
            assert (await there[1].commands.run("echo on")).stdout == "on\n"
            assert is_alive(leaving)
            assert await there[1].kill()
            await asyncio.to_thread(
                wait_until, lambda: not is_alive(leaving), "the node is kept from ending"
            )
            if shared_as is not None:  # what outlives this
                for member in pool.alive():
                    ray.kill(member.actor)

    run(test())


def hold(sandbox: Any, folder: Path, number: int) -> str:
    """Say that this has begun, wait for the word to go on, and return the node's id."""
    sandbox.commands.run("true", check=True)
    (folder / f"begun-{number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.1)
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def test_rollouts_that_have_not_begun_go_elsewhere(
    options: dict[str, Any], cluster: Any, leaving: str, tmp_path: Path
) -> None:
    async def have_begun() -> bool:
        return len(list(tmp_path.glob("begun-*"))) == 2

    async def test() -> None:
        async with pool_of(options, nodes=RESOURCE, per_node=1) as pool:
            near = [asyncio.create_task(pool.run_near(hold, tmp_path, n)) for n in range(6)]
            await until(have_begun, "none begins")
            await drained(cluster, pool, leaving)
            (tmp_path / "go").touch()
            nodes = await asyncio.gather(*near)
            assert nodes.count(leaving) == 1, "the one that had begun"
            await asyncio.to_thread(
                wait_until, lambda: not is_alive(leaving), "the node is kept from ending"
            )

    run(test())
