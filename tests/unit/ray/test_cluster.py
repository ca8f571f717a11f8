"""Pools over a cluster of Ray's on this machine: stand-ins of virtual machines, all else real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'voidbox-kvm[ray]'")

from tests.unit.ray.cluster import add_node, of_stand_ins, started
from tests.unit.sandbox.states import ROOT
from voidbox.errors import CommandFailed, ConfigError, PoolFull, SandboxLost
from voidbox.ray.aio import AsyncPool
from voidbox.ray.remote import RemoteSandbox
from voidbox.sandbox.state.store import Store
from voidbox.sdk.facade import constructing

pytestmark = pytest.mark.slow

DEADLINE_S = 180.0
EXECS = 50


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbx") as name:
        (Path(name) / "image").write_text(json.dumps({"mode": ""}))
        (Path(name) / "work").mkdir()
        yield Path(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # of Ray's workers
    with started() as found:
        yield found
    if before is None:
        del os.environ["PYTHONPATH"]


@pytest.fixture
def options(cluster: Any, folder: Path) -> Iterator[dict[str, Any]]:
    yield of_stand_ins(folder)
    wait_until(lambda: not alive(folder), "a test left sandboxes behind")


def pool_of(options: dict[str, Any], **others: Any) -> AsyncPool:
    from tests.unit.ray.stand_ins import StandInPool
    from voidbox.ray import members

    members.OPEN_S = 600.0  # this machine may be busy with other tests
    return StandInPool(**{"per_node": 2, **options, **others})


def alive(folder: Path) -> list[str]:
    with Store(str(folder / "state")) as store:
        return [record.id for record in store.list() if store.is_alive(record.id)]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


async def until(condition: Callable[[], Coroutine[Any, Any, object]], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(900):
            await coroutine

    asyncio.run(main())


async def name_near(sandbox: Any, word: str) -> tuple[str, int]:
    return (await sandbox.commands.run(f"echo {word}")).stdout, os.getpid()


def fail_near(sandbox: Any) -> None:
    sandbox.commands.run("exit 3", check=True)


@pytest.mark.parametrize("transport", ["auto", "actor"])
def test_all_of_a_pool(options: dict[str, Any], transport: str) -> None:
    async def test() -> None:
        async with pool_of(options, transport=transport, labels={"run": "1"}) as pool:
            assert pool.size == 4
            async with pool.sandbox() as sandbox:
                done = await sandbox.commands.run("echo out; exit 3")
                assert (done.stdout, done.exit_code) == ("out\n", 3)
                data = os.urandom(3 << 20)
                await sandbox.files.write("data", data)
                assert await sandbox.files.read("data", "bytes") == data
                assert [line async for line in sandbox.logs()] == ["the guest boots"]
                assert (await sandbox.get_info()).metadata == {"run": "1"}
                await check_process(sandbox)
                assert await pool.reap({"run": "2"}) == 0
                assert await pool.reap({"run": "1"}) == 1
                with pytest.raises(SandboxLost) as lost:
                    await sandbox.commands.run("true")
                assert lost.value.reason == "guest"

            async def say(sandbox: RemoteSandbox, word: str) -> tuple[str, str]:
                return (await sandbox.commands.run(f"echo {word}")).stdout, sandbox.node

            said = await pool.map(say, "abcdef")
            assert [word for word, _ in said] == [f"{word}\n" for word in "abcdef"]
            near = await asyncio.gather(*(pool.run_near(name_near, word) for word in "abcdef"))
            assert [word for word, _ in near] == [f"{word}\n" for word in "abcdef"]
            assert os.getpid() not in {pid for _, pid in near}
            with pytest.raises(CommandFailed) as failed:
                await pool.run_near(fail_near)
            assert failed.value.result.exit_code == 3
            assert sum(one["failed"] for one in (await pool.stats_of_nodes()).values()) == 0

    run(test())


async def check_process(sandbox: RemoteSandbox) -> None:
    """See that the kernel would end it before its pool, and that Ray's variables are not its."""
    pid = sandbox._remote.peek().pid
    with open(f"/proc/{pid}/environ") as file:
        assert not [pair for pair in file.read().split("\0") if pair.startswith("RAY_")]
    scores = [int(Path(f"/proc/{each}/oom_score_adj").read_text()) for each in (pid, parent(pid))]
    assert scores[0] > scores[1] or scores[0] == 900, scores
    own = [one for one in pools() if oom_score(one) < scores[0]]
    assert own == pools(), "a pool would be ended before its sandboxes"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def pools() -> list[int]:
    """Return the processes of this program's NodePools."""
    found = []
    for pid in family(os.getpid()):
        with contextlib.suppress(OSError):
            if b"ray::StandInNodePool" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            found += [each for child in children for each in family(int(child))]
    return found


def count_near(sandbox: Any, number: int) -> int:
    return int(sandbox.commands.run(f"echo $(({number} + 1))").stdout)


def test_a_pool_that_blocks(options: dict[str, Any]) -> None:
    from tests.unit.ray.stand_ins import StandInPool
    from voidbox.ray.sync import Pool

    class Blocking(Pool):
        @constructing(StandInPool)
        def __init__(self) -> None: ...

    with Blocking(per_node=1, **options) as pool:
        assert pool.stats().size == 2
        with pool.sandbox() as sandbox:
            assert sandbox.commands.run("echo hello").stdout == "hello\n"
            sandbox.files.write("x", "y")
            assert sandbox.files.read("x") == "y"
        assert pool.map(count_near, range(3)) == [1, 2, 3]
        assert pool.run_near(count_near, 6) == 7
        assert pool.reap({"a": "b"}) == 0
        assert len(pool.stats_of_nodes()) == 2
        pool.drain()
        with pytest.raises(ConfigError, match="drained"):
            pool.acquire()


def test_what_makes_no_sense_is_told(options: dict[str, Any]) -> None:
    async def test() -> None:
        for wrong, message in (
            ({"transport": "pigeon"}, "transport"),
            ({"workspace": "/tmp"}, "upload"),
            ({"name": "one"}, "many"),
        ):
            with pytest.raises(ConfigError, match=message):
                pool_of({**options, **wrong})
        for wrong, message in (
            ({"nodes": "gpu"}, "no node of this cluster announces gpu"),
            ({"per_node": 1000}, "announces 8 kvm"),
            ({"jail": "tight"}, "jail"),
        ):
            with pytest.raises(ConfigError, match=message):
                async with pool_of({**options, **wrong}):
                    pass

    run(test())


def test_an_end_overtakes_a_thousand_starts_that_wait(options: dict[str, Any]) -> None:
    async def test() -> None:
        async with pool_of(options, per_node=1, transport="actor") as pool:
            taken = [await pool.acquire() for _ in range(2)]
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(1000)]

            async def all_wait() -> bool:
                stats = await pool.stats_of_nodes()
                return sum(one["waiting"] for one in stats.values()) == 1000

            await until(all_wait, "they do not wait")
            assert await taken[0].kill()
            assert sum(task.done() for task in waiting) <= 1
            with pytest.raises(PoolFull):
                await pool.acquire(timeout=0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await taken[1].kill()

    run(test())


async def busy(pool: AsyncPool) -> tuple[list[RemoteSandbox], list[asyncio.Task[Any]]]:
    """Return sandboxes, and commands without end in them."""
    taken = [await pool.acquire() for _ in range(2)]
    execs = [
        asyncio.create_task(taken[n % 2].commands.run(f"exec sleep {1000 + n}"))
        for n in range(EXECS)
    ]
    for sandbox in taken:

        async def all_run(sandbox: RemoteSandbox = sandbox) -> bool:
            return len(await sandbox.commands.list()) >= EXECS // 2

        await until(all_run, "the commands do not begin")
    return taken, execs


async def lost(execs: list[asyncio.Task[Any]]) -> set[str]:
    """Wait for their ends, which are losses all; return why."""
    async with asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*execs, return_exceptions=True)
    assert all(isinstance(one, SandboxLost) for one in found), found
    return {one.reason for one in found}


def test_the_end_of_a_pools_process(options: dict[str, Any], folder: Path) -> None:
    async def test() -> None:
        async with pool_of(options) as pool:
            taken, execs = await busy(pool)
            for pid in pools():
                os.kill(pid, signal.SIGKILL)
            assert await lost(execs) == {"pool"}
            await asyncio.to_thread(wait_until, lambda: not alive(folder), "they live on")
            for sandbox in taken:
                assert not await sandbox.kill()

            async def is_back() -> bool:
                with contextlib.suppress(SandboxLost):
                    async with pool.sandbox(60) as sandbox:
                        return (await sandbox.commands.run("true")).exit_code == 0
                return False

            await until(is_back, "no new pool on the nodes")
        assert os.listdir(folder / "state" / "sandboxes") == [], "the next pool cleans up"

    run(test())


def test_the_end_of_a_node(options: dict[str, Any], cluster: Any, folder: Path) -> None:
    async def test() -> None:
        node = add_node(cluster)
        async with pool_of(options, per_node=1) as pool:
            assert pool.size == 3
            begun: list[str] = []
            victim = next(one.name for one in pool._members.values() if one.id == node.node_id)

            async def work(sandbox: RemoteSandbox, number: int) -> int:
                begun.append(sandbox.node)
                while sandbox.node == victim or len(begun) < 3:  # there until it is lost
                    await sandbox.commands.run("sleep 0.1")
                return number

            mapping = asyncio.create_task(pool.map(work, range(3), 3))
            await until(lambda: _is(len(begun) == 3), "the tasks do not begin")
            cluster.remove_node(node, allow_graceful=False)
            assert await mapping == [0, 1, 2]
            assert len(begun) == 4, "one was done again, elsewhere"
            assert begun[3] != victim

    run(test())


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("whole", [True, False])
def test_execs_of_a_node_that_ends(
    options: dict[str, Any], cluster: Any, folder: Path, whole: bool
) -> None:
    async def test() -> None:
        node = add_node(cluster, kvm=7)
        async with pool_of(options) as pool:
            victim = pool._members[node.node_id]
            pool._choose = lambda full, options: victim  # type: ignore[method-assign]
            _, execs = await busy(pool)
            if whole:
                cluster.remove_node(node, allow_graceful=False)
            else:
                os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            assert await lost(execs) == {"node"}
            await asyncio.to_thread(wait_until, lambda: not alive(folder), "they live on")

    run(test())


PROGRAM = """
import asyncio, sys
import ray
from tests.unit.ray.stand_ins import StandInPool

async def main():
    ray.init(address=sys.argv[1], log_to_driver=False)
    async with StandInPool(per_node=2, **eval(sys.argv[2])) as pool:
        taken = [await pool.acquire() for _ in range(2)]
        execs = [asyncio.create_task(one.commands.run("sleep 1000")) for one in taken]
        print("ready", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_the_end_of_a_driver(options: dict[str, Any], cluster: Any, folder: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, cluster.address, repr(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as driver:
        assert driver.stdout is not None
        wait_until(lambda: select.select([driver.stdout], [], [], 0)[0], "it does not begin")
        while driver.stdout.readline() != b"ready\n":  # what Ray says comes first
            assert driver.poll() is None
        assert len(alive(folder)) == 2
        driver.kill()
        wait_until(lambda: not alive(folder), "they outlive their driver")
        wait_until(lambda: not pools(), "pools outlive their driver")


def test_a_pool_that_is_shared(options: dict[str, Any], folder: Path) -> None:
    async def test() -> None:
        async with pool_of(options, shared_as="both", lease=4.0) as one:
            taken = await one.acquire()
            async with pool_of(options, shared_as="both", lease=4.0) as other:
                assert {member.id for member in one.alive()} == set(other._members)
                async with other.sandbox() as sandbox:
                    assert (await sandbox.commands.run("true")).exit_code == 0
                for member in other.alive():  # as a driver that is killed: nobody renews
                    await member.call("acquire", "somebody", None, None)
                await until(lambda: _used(one, 1), "what nobody renews is not ended")
            assert (await taken.commands.run("true")).exit_code == 0
            for member in one.alive():
                await member.end(one._holder, is_shared=False)

    run(test())


async def _used(pool: AsyncPool, count: int) -> bool:
    stats = await pool.stats_of_nodes()
    return sum(one["given"] + one["ending"] for one in stats.values()) == count


def test_a_reader_that_stops_grows_nobody(options: dict[str, Any]) -> None:
    def resident() -> int:
        found = 0
        for pid in (os.getpid(), *pools()):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            shared = int(Path(f"/proc/{pid}/statm").read_text().split()[2])
            found += (pages - shared) * os.sysconf("SC_PAGE_SIZE")
        return found

    async def test() -> None:
        async with pool_of(options, transport="actor") as pool, pool.sandbox() as sandbox:
            await sandbox.commands.run("true")
            before = resident()
            handle = await sandbox.commands.start("head -c 300000000 /dev/zero")
            await asyncio.sleep(2)
            assert (await sandbox.commands.run("echo on")).stdout == "on\n"
            assert resident() - before < 32 << 20
            await handle.kill()

    run(test())


def test_a_cluster_that_grows(options: dict[str, Any], cluster: Any) -> None:
    async def test() -> None:
        own = {**options, "nodes": "grown", "autoscale": True, "idle": 1.0, "lease": 8.0}
        async with pool_of(own) as pool:
            assert pool.size == 0
            with pytest.raises(PoolFull, match="no node"):
                await pool.acquire(timeout=0.1)
            taking = asyncio.create_task(pool.acquire())
            await until(lambda: _is(demanded("grown") == 1), "the autoscaler is told nothing")
            node = add_node(cluster, 0, {"grown": 2})
            sandbox = await taking
            assert (await sandbox.commands.run("true")).exit_code == 0
            assert not pool._resting
            await sandbox.kill()
            await until(lambda: _is(pool.size == 0), "the node is not let go")
            await until(lambda: _is(demanded("grown") == 0), "the autoscaler is told too much")
            async with pool.sandbox() as another:  # and taken again
                assert (await another.commands.run("true")).exit_code == 0
        cluster.remove_node(node)

    run(test())


def demanded(resource: str) -> float:
    """Return how many of a resource the cluster's autoscaler is asked for."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    told = json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")
    return sum(bundle.get(resource, 0) for bundle in told)


def test_a_pool_that_is_drained(options: dict[str, Any]) -> None:
    async def test() -> None:
        async with pool_of(options, per_node=1) as pool:
            taken = [await pool.acquire() for _ in range(2)]
            waiting = asyncio.create_task(pool.acquire())
            near = asyncio.create_task(pool.run_near(name_near, "late"))
            await asyncio.sleep(0.5)
            draining = asyncio.create_task(pool.drain())
            with pytest.raises(ConfigError, match="drained"):
                await waiting
            for sandbox in taken:
                assert not draining.done()
                await sandbox.kill()
            assert (await near)[0] == "late\n"
            await draining

    run(test())


def test_the_example_of_rollouts(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import ray

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import rollouts_on_ray

    ray.cloudpickle.register_pickle_by_value(rollouts_on_ray)  # as of a program that is run
    output = tmp_path / "plot.svg"

    async def test() -> None:
        own = {**options, "image": Path(options["image"])}
        results = await rollouts_on_ray.main(8, str(output), lambda **more: pool_of(more), **own)
        assert [one.number for one in results] == list(range(8))
        assert any(one.is_solved for one in results)

    run(test())
    assert "8 rollouts, " in capsys.readouterr().out
    assert output.read_text().startswith("<svg")
