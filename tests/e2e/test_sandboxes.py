"""Sandboxes by the SDK, with real guests: many at once, one after another, and under faults.

VOIDBOX_ROUNDS=200 for the long run.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from voidbox import AgentError, Sandbox, VoidboxError
from voidbox.sandbox.launch import wait_ended
from voidbox.sandbox.state.store import State, Store

pytestmark = pytest.mark.boot

AT_ONCE = 8
ROUNDS = int(os.environ.get("VOIDBOX_ROUNDS", "3"))
MEMORY = "192M"


@pytest.fixture
def machine(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[dict[str, str]]:
    """What create() is given; the state folder is the test's own."""
    with tempfile.TemporaryDirectory(prefix="vb-") as folder:  # pytest's are too long for sockets
        os.environ["VOIDBOX_STATE"] = folder
        yield {"kernel": kernels["minimal"], "image": guest_images["minimal"], "memory": MEMORY}
        with Store() as store:
            assert [record.name for record in store.list() if store.is_alive(record.id)] == []
        del os.environ["VOIDBOX_STATE"]


def create(machine: dict[str, str], **values: object) -> Sandbox:
    return Sandbox.create(**machine, timeout=1200, request_timeout=300, **values)  # type: ignore[arg-type]


def children() -> set[int]:
    """The processes that this one has started, their threads' own included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def test_eight_at_once(machine: dict[str, str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sandboxes = list(pool.map(lambda _: create(machine), range(AT_ONCE)))
        try:
            with Store() as store:
                records = store.list()
            assert len({record.cid for record in records}) == AT_ONCE
            assert {record.state for record in records} == {State.RUNNING}

            def work(number: int) -> str:
                sandbox = sandboxes[number]
                sandbox.files.write("mine", f"{number}")
                return sandbox.commands.run("sleep 1; cat mine").stdout

            assert list(pool.map(work, range(AT_ONCE))) == [str(n) for n in range(AT_ONCE)]
        finally:
            list(pool.map(lambda sandbox: sandbox.kill(), sandboxes))


def test_round_after_round_leaves_nothing(machine: dict[str, str]) -> None:
    folder = Path(os.environ["VOIDBOX_STATE"])

    def round_trip() -> None:
        with create(machine) as sandbox:
            assert sandbox.commands.run("echo $((6 * 7))").stdout == "42\n"

    round_trip()
    before = len(os.listdir("/proc/self/fd")), children()
    threads = threading.active_count()
    for _ in range(ROUNDS):
        round_trip()
    assert (len(os.listdir("/proc/self/fd")), children()) == before
    assert threading.active_count() <= threads + 1  # asyncio's pool may get another worker
    assert list((folder / "sandboxes").iterdir()) == []
    with create(machine) as sandbox, Store() as store:
        assert store.read(sandbox.sandbox_id).cid == 3  # all others were given back


def test_a_guest_that_dies_ends_what_is_under_way(machine: dict[str, str]) -> None:
    for kill_at in ("exec", "write", "boot"):
        with ThreadPoolExecutor(1) as pool, Store() as store:
            known = {record.id for record in store.list()}
            if kill_at == "boot":
                future = pool.submit(create, machine)
                pid = 0
                while not pid:
                    new = [record for record in store.list() if record.id not in known]
                    pid = new[0].pid if new else 0
                    time.sleep(0.01)
            else:
                sandbox = create(machine)
                pid = store.read(sandbox.sandbox_id).pid
                if kill_at == "exec":
                    future = pool.submit(sandbox.commands.run, "sleep 1000", timeout=500)  # type: ignore[arg-type]
                else:
                    future = pool.submit(sandbox.files.write, "big", bytes(500 << 20))  # type: ignore[arg-type]
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(VoidboxError) as caught:
                future.result(120)
            assert isinstance(caught.value, AgentError) or kill_at == "boot"
            store.clean()
            for dead in [record for record in store.list() if record.id not in known]:
                assert dead.state is State.CRASHED
                store.remove(dead.id)


def test_kills_at_random_times_and_a_clock_that_jumps(machine: dict[str, str]) -> None:
    """A soak in small: whatever dies when, the next command works and nothing is lost."""
    chance = random.Random(5)
    with Store() as store:
        for _ in range(max(2, ROUNDS // 2)):
            sandbox = create(machine, keep=True)
            record = store.read(sandbox.sandbox_id)
            process = sandbox.commands.run("while :; do date; done", background=True)
            time.sleep(chance.random())
            if chance.random() < 0.5:
                sandbox.exec("date", "-s", "2040-01-01", user="root")
            os.kill(record.pid, signal.SIGKILL)
            with pytest.raises(VoidboxError):
                process.wait(60)
            assert wait_ended(store, record.id, 60)
            assert [crashed.id for crashed in store.clean()] == [record.id]
            assert os.path.getsize(store.path(record.id, "console.log")) >= 0
            store.remove(record.id)
            sandbox.close()
        with create(machine) as sandbox:
            assert sandbox.commands.run("true").exit_code == 0


def test_guests_of_a_team_write_to_each_other(machine: dict[str, str]) -> None:
    with (
        create(machine, name="ann", team="red") as ann,
        create(machine, name="bob", team="red") as bob,
        create(machine, name="eve", team="blue") as eve,
    ):
        assert ann.commands.run("voidbox-relay peers").stdout == "bob\n"
        reader = bob.commands.run("voidbox-relay receive --wait 60", background=True)
        ann.commands.run("voidbox-relay send bob hello", check=True)
        assert reader.wait(120).stdout == "ann: hello\n"
        refused = eve.commands.run("voidbox-relay send bob x")
        assert refused.exit_code == 1 and "bob" in refused.stderr
