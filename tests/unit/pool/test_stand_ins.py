"""Pools of sandboxes with everything but the virtual machine; see fake_owner."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import voidbox
from tests.unit.agent.conftest import USER
from tests.unit.sandbox.conftest import in_event_loop
from tests.unit.sandbox.states import ROOT
from tests.unit.sdk.test_sandbox import FAKE_OWNER, state_folder
from voidbox.errors import AgentError, ConfigError, HostError
from voidbox.pool.aio import AsyncPool
from voidbox.pool.sync import Pool
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.launch import launch
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching, zygotes
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.sync import Sandbox

pytestmark = pytest.mark.slow

__all__ = ["state_folder"]

DEADLINE_S = 60.0


@pytest.fixture
def options(
    tmp_path: Path, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What a pool needs here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launching, "launch", functools.partial(launch, owner=FAKE_OWNER))
    monkeypatch.setattr(launching, "make_zygote", lambda: Zygote(FAKE_OWNER, environment()))
    (tmp_path / "image").write_text(json.dumps({"mode": ""}))
    (tmp_path / "work").mkdir()
    yield {
        "kernel": tmp_path / "kernel",
        "image": tmp_path / "image",
        "user": USER,
        "workdir": str(tmp_path / "work"),
        "memory": "64M",
        "block_network": True,
        "host_memory": None,
        "jail": "off",
    }
    with Store() as store:
        assert not [record.id for record in store.list() if store.is_alive(record.id)]


def kept() -> list[str]:
    return os.listdir(Path(os.environ["VOIDBOX_STATE"], "sandboxes"))


@pytest.mark.parametrize("isolated", [False, True])
@in_event_loop
async def test_sandboxes_of_a_pool(options: dict[str, Any], isolated: bool) -> None:
    async with AsyncPool(3, warm=1, isolated=isolated, **options) as pool:
        seen = set()
        for _ in range(3):
            async with pool.sandbox() as sandbox:
                assert (await sandbox.commands.run("echo hello")).stdout == "hello\n"
                seen.add(sandbox.sandbox_id)
                with pytest.raises(ConfigError, match="has no forks"):
                    await sandbox.fork()
                with pytest.raises(ConfigError, match="not suspended"):
                    await sandbox.suspend()
        assert len(seen) == 3, "each is used once"

        async def say(sandbox: Any, word: str) -> str:
            return str((await sandbox.commands.run(f"echo {word}")).stdout)

        assert await pool.map(say, ["a", "b", "c", "d"]) == ["a\n", "b\n", "c\n", "d\n"]
        assert pool.stats().failed == 0
    assert kept() == []


async def _snapshot(options: dict[str, Any]) -> str:
    given = {name: value for name, value in options.items() if name != "host_memory"}
    async with await AsyncSandbox.create(**given) as sandbox:
        return (await sandbox.snapshot("base")).snapshot_id


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@in_event_loop
async def test_a_warm_one_that_is_restored_runs_when_it_is_acquired(
    options: dict[str, Any],
) -> None:
    of_snapshot = {"snapshot": await _snapshot(options), "host_memory": None}
    async with AsyncPool(2, warm=1, **of_snapshot) as pool:
        await _until(lambda: pool.stats().warm == 1)
        (held,) = pool._warm
        folder = Path(held._store.path(held.sandbox_id))
        assert held.is_held and (await held.get_info()).state == "creating"
        assert not (folder / "agent.pid").exists(), "its machine has begun"
        async with pool.sandbox(0) as sandbox:
            assert sandbox is held and (await sandbox.get_info()).state == "running"
            assert (await sandbox.commands.run("echo hello")).stdout == "hello\n"
        await _until(lambda: pool.stats().warm == 1)
        (held,) = pool._warm
        assert await held.kill()  # as whoever takes it for a sandbox like others does
        await _until(lambda: pool.stats().warm == 1)


@pytest.mark.parametrize("problem", ["bad", "killed"])
@in_event_loop
async def test_one_that_cannot_be_restored_is_told_to_who_asks(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    of_snapshot = {"snapshot": await _snapshot(options), "host_memory": None}
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", problem)
    async with AsyncPool(1, **of_snapshot) as pool:
        with pytest.raises((HostError, AgentError)):
            await pool.acquire()
    async with AsyncPool(1, warm=1, **of_snapshot) as pool:
        await _until(lambda: pool.stats().failed)
        monkeypatch.delenv("VOIDBOX_FAKE_RESTORE")


@in_event_loop
async def test_one_whose_guest_is_lost_as_it_begins_is_told_and_replaced(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_snapshot = {"snapshot": await _snapshot(options), "host_memory": None}
    monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "no-adopt")
    async with AsyncPool(1, warm=1, **of_snapshot) as pool:
        await _until(lambda: pool.stats().warm == 1)
        monkeypatch.delenv("VOIDBOX_FAKE_RESTORE")
        with pytest.raises(AgentError, match="did not become one of its own"):
            await pool.acquire(0)
        async with pool.sandbox() as sandbox:
            assert (await sandbox.commands.run("true")).exit_code == 0


@in_event_loop
async def test_a_sandbox_that_ends_by_itself_keeps_its_story(options: dict[str, Any]) -> None:
    async with AsyncPool(1, **options) as pool:
        sandbox = await pool.acquire()
        fd = sandbox._store.open_owner(sandbox.sandbox_id)
        assert fd is not None
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        os.close(fd)
        other = await pool.acquire()  # its place is free
        with pytest.raises(AgentError):
            await sandbox.commands.run("true")
        assert (await sandbox.get_info()).state == "stopped"
        await sandbox.kill()
        assert (await other.commands.run("true")).exit_code == 0


@in_event_loop
async def test_a_zygote_that_is_killed_is_told(options: dict[str, Any]) -> None:
    async with AsyncPool(2, **options) as pool:
        before = await pool.acquire()
        assert pool._zygote is not None
        os.kill(pool._zygote.pid, signal.SIGKILL)
        pool._zygote._process.wait(DEADLINE_S)
        assert (await pool.acquire()).sandbox_id != before.sandbox_id  # another zygote
        assert (await before.commands.run("true")).exit_code == 0, "what it forked goes on"


def test_a_pool_that_blocks(options: dict[str, Any]) -> None:
    with Pool(2, warm=1, **options) as pool:
        with pool.sandbox() as sandbox:
            assert sandbox.commands.run("echo hello").stdout == "hello\n"
        found = pool.map(lambda sandbox, n: sandbox.commands.run(f"echo {n}").stdout, range(3))
        assert found == ["0\n", "1\n", "2\n"]
        assert pool.stats().size == 2
        with pytest.raises(ZeroDivisionError):
            pool.map(lambda sandbox, n: 1 // n, [0])
        pool.drain()
    assert kept() == []


def test_a_forked_child_is_given_nothing_of_its_parents_pool(options: dict[str, Any]) -> None:
    with Pool(1, warm=1, **options) as pool:
        deadline = time.monotonic() + DEADLINE_S
        while not pool.stats().warm:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = os.fork()
        if not pid:
            refusals = 0
            for use in (pool.acquire, pool.drain, lambda: pool.map(print, [1])):
                try:
                    use()
                except ConfigError as error:
                    refusals += "process that opened it" in str(error)
            pool.close()
            os._exit(refusals)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        with pool.sandbox(0) as sandbox:
            assert sandbox.commands.run("echo hello").stdout == "hello\n"


def test_a_pool_opens_or_says_why(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="jail"), Pool(1, **{**options, "jail": "tight"}):
        pass


def test_a_program_with_a_zygote(options: dict[str, Any]) -> None:
    del options["host_memory"]
    with voidbox.zygote():
        first = zygotes.current()
        assert first is not None
        with voidbox.zygote(), Sandbox.create(**options) as forked:
            assert parent_of(forked) == first.pid
            assert forked.commands.run("echo hello").stdout == "hello\n"
        with Sandbox.create(**options, isolated=True) as apart:
            assert parent_of(apart) == os.getpid()
        os.kill(first.pid, signal.SIGKILL)
        first._process.wait(DEADLINE_S)
        with Sandbox.create(**options) as forked:
            assert parent_of(forked) not in (first.pid, os.getpid())
    assert zygotes.current() is None
    with Sandbox.create(**options) as apart:
        assert parent_of(apart) == os.getpid()


def parent_of(sandbox: Sandbox) -> int:
    with Store() as store:
        pid = store.read(sandbox.sandbox_id).pid
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


PROGRAM = """
import functools, sys, time
from tests.unit.sdk.test_sandbox import FAKE_OWNER
from voidbox.pool.sync import Pool
from voidbox.sandbox.child_environment import environment
from voidbox.sandbox.zygote.client import Zygote
from voidbox.sdk import launching

launching.make_zygote = lambda: Zygote(FAKE_OWNER, environment())
with Pool(3, warm=2, starts=3, **eval(sys.argv[1])) as pool:
    one = pool.acquire()
    while pool.stats().warm < 2:
        time.sleep(0.01)
    print(pool._core._zygote.pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("is_held", [False, True])
def test_a_program_that_is_killed_leaves_nothing(options: dict[str, Any], is_held: bool) -> None:
    plain = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items()
    }
    if is_held:  # its warm ones have never run
        plain = {"snapshot": asyncio.run(_snapshot(options)), "host_memory": None}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, repr(plain)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert program.stdout is not None
    with program, Store() as store:
        fds = [os.pidfd_open(int(program.stdout.readline()))]
        fds += filter(None, (store.open_owner(record.id) for record in store.list()))
        assert len(fds) == 4
        program.kill()
        deadline = time.monotonic() + DEADLINE_S
        for fd in fds:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([fd], [], [], left_s)[0], "a process was left"
            os.close(fd)
        store.clean()
        assert kept() == []


@in_event_loop
async def test_a_program_that_is_killed_as_it_kills_one_leaves_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncPool(1, **options) as pool:
        sandbox = await pool.acquire()
        monkeypatch.setattr(Store, "remove", lambda store, id: None)  # it does not live that long
        await sandbox.kill()
        assert kept() == []


def test_a_zygote_ends_with_what_holds_it(options: dict[str, Any]) -> None:
    zygote = Zygote(FAKE_OWNER, environment())
    assert zygote.is_alive()
    pid = os.fork()
    if not pid:  # a child without exec does not keep it alive
        time.sleep(DEADLINE_S)
        os._exit(0)
    try:
        zygote.close()
        assert not zygote.is_alive()
        with pytest.raises(HostError, match="zygote"):
            zygote.spawn(["nowhere"], environment(), [0, 1])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
