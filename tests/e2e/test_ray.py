"""voidbox.ray with real guests: a cluster of one node on this machine, a pool from one snapshot.

With an emulated processor each of Ray's processes takes half a minute to start: they are few, and
waits are long. `-o log_cli=true -o log_cli_level=INFO` says when each step begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import script
from tests.unit.ray.cluster import started
from voidbox import AsyncSandbox, SandboxLost
from voidbox.sandbox.state.store import Store

# Ray itself is imported later: it reads how patient it is to be when it is.
pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: make test-ray does that",
    ),
]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600.0
WORD = "of the snapshot"

_logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A state folder in memory, as all that the lab writes."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def snapshot(state: Path) -> str:
    """Of a guest that has written a word. Made before Ray's processes take the processors."""
    kernel, image = script("kernel/build_minimal.sh"), script("scripts/build_guest_image.sh")
    _logger.info("a guest boots")

    async def prepare() -> str:
        async with await AsyncSandbox.create(
            kernel=f"{kernel}/bzImage", image=image, memory="192M",
            request_timeout=DEADLINE_S, state_folder=str(state),
        ) as sandbox:  # fmt: skip
            await sandbox.files.write("/tmp/word", WORD)
            return (await sandbox.snapshot("base")).snapshot_id

    return asyncio.run(prepare())


@pytest.fixture(scope="module")
def options(snapshot: str, state: Path) -> Iterator[dict[str, Any]]:
    """A pool's, with a cluster that is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of Ray's workers: they are sent these functions
        _logger.info("Ray starts")
        with started(0, head={"kvm": 4}, patience_s=DEADLINE_S):
            from voidbox.ray import members

            patch.setattr(members, "OPEN_S", DEADLINE_S)
            yield {
                "snapshot": snapshot,
                "per_node": 2,
                "host_memory": None,
                "request_timeout": DEADLINE_S,
                "state_folder": str(state),
            }


def pool_of(options: dict[str, Any]) -> Any:
    from voidbox.ray import AsyncPool

    return AsyncPool(**options)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await test

    asyncio.run(bounded())


async def read_near(sandbox: AsyncSandbox, more: str) -> tuple[str, int]:
    """Return the snapshot's word and another one, by the guest, and where this ran."""
    done = await sandbox.commands.run(["echo", await sandbox.files.read("/tmp/word"), more])
    return done.stdout, os.getpid()


def test_real_guests_of_a_node(options: dict[str, Any], state: Path) -> None:
    async def test() -> None:
        _logger.info("the pool opens")
        async with pool_of(options) as pool:
            _logger.info("two are taken")
            first, second = [await pool.acquire() for _ in range(2)]
            for way in (first, by_calls_of_the_actor(pool, first)):
                _logger.info("one is used")
                await use(way)
            assert await second.kill()
            _logger.info("a rollout")
            text, pid = await pool.run_near(read_near, "and more")
            assert text == f"{WORD} and more\n"
            assert pid != os.getpid()
            await end_everything(pool, first, state)
            _logger.info("the pool closes")
        assert left(state) == []
        # The next pool has cleaned up, but for what says how the first guest crashed.
        assert set(os.listdir(state / "sandboxes")) <= {first.sandbox_id}

    run(test())


def by_calls_of_the_actor(pool: Any, sandbox: Any) -> Any:
    """Return the same sandbox, as it is reached where no gateway can be."""
    from voidbox.ray.calls import ActorCarrier
    from voidbox.ray.remote import RemoteSandbox
    from voidbox.ray.ticket import Ticket

    (member,) = pool.alive()
    place = sandbox._remote
    ticket = Ticket(place.peek(), place._token, place.secret, dict(place.envs), (), False, "")
    return RemoteSandbox(ActorCarrier(member.actor, member.address), ticket, member.name)


async def use(sandbox: Any) -> None:
    done = await sandbox.commands.run("cat /tmp/word; exit 3")
    assert (done.stdout, done.exit_code) == (WORD, 3)
    data = os.urandom(3 << 20)
    await sandbox.files.write("/tmp/data", data)
    assert await sandbox.files.read("/tmp/data", "bytes") == data
    handle = await sandbox.commands.start("yes")  # nobody reads it
    assert (await sandbox.commands.run("echo on")).stdout == "on\n"
    assert await handle.kill()


async def end_everything(pool: Any, first: Any, state: Path) -> None:
    """End a machine's process, and then the pool's: commands under way are lost with them."""
    _logger.info("one more is taken")
    second = await pool.acquire()
    execs = [await one.commands.start("sleep 1000") for one in (first, second)]
    (worker,) = children(first._remote.peek().pid)
    _logger.info("a machine's end")
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(SandboxLost) as lost:
        await execs[0].wait()
    assert lost.value.reason == "guest"
    assert not await first.kill(), "it had ended"
    assert (await second.commands.run("echo on")).stdout == "on\n"

    (member,) = pool.alive()
    _logger.info("the pool's end")
    os.kill((await member.call("stats"))["pid"], signal.SIGKILL)
    with pytest.raises(SandboxLost) as lost:
        await execs[1].wait()
    assert lost.value.reason == "pool"
    deadline = time.monotonic() + DEADLINE_S
    while left(state):
        assert time.monotonic() < deadline, "a machine outlives its pool"
        await asyncio.sleep(0.1)
    _logger.info("another pool, and another sandbox")
    async with another(pool) as sandbox:
        assert await sandbox.files.read("/tmp/word") == WORD


@contextlib.asynccontextmanager
async def another(pool: Any) -> Any:
    """A sandbox of the pool that takes the lost one's place."""
    while True:
        try:
            sandbox = await pool.acquire()
            break
        except SandboxLost:
            await asyncio.sleep(0.5)
    async with sandbox:
        yield sandbox


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def left(state: Path) -> list[str]:
    """Return the sandboxes that live."""
    with Store(str(state)) as store:
        return [record.id for record in store.list() if store.is_alive(record.id)]
