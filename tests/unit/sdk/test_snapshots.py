"""Snapshots, forks and suspended sandboxes by the SDK; the machines are fake."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.conftest import in_event_loop
from tests.unit.sdk.test_sandbox import FAKE_OWNER, kept, options, state_folder
from voidbox import Sandbox
from voidbox.cli import exit_status, fork
from voidbox.errors import AgentError, ConfigError, HostError
from voidbox.sandbox import launch as launching
from voidbox.sandbox.launch import launch
from voidbox.sandbox.snapshots.shelf import Lent
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk import copies, creating
from voidbox.sdk import launching as sdk_launching
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.snapshots import SnapshotInfo

pytestmark = pytest.mark.slow

__all__ = ["options", "state_folder"]


@pytest.fixture(autouse=True)
def fake_wake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launching, "wake", functools.partial(launching.wake, owner=FAKE_OWNER))
    yield


def snapshots_folder() -> list[str]:
    return os.listdir(Path(os.environ["VOIDBOX_STATE"], "snapshots"))


@in_event_loop
async def test_a_snapshot_and_what_is_made_of_it(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, name="one", envs={"A": "1"}) as sandbox:
        made = await sandbox.snapshot("ready")
        assert isinstance(made, SnapshotInfo)
        assert (made.name, made.sandbox_name, made.parent_id) == ("ready", "one", "")
        assert made.sandbox_id == sandbox.sandbox_id and made.size_bytes > 0
        assert [one.snapshot_id for one in await AsyncSandbox.list_snapshots()] == [
            made.snapshot_id
        ]
        for key in ("ready", made.snapshot_id, made):
            async with await AsyncSandbox.create(snapshot=key, envs={"B": "2"}) as copy:
                assert (await copy.commands.run("echo $A$B")).stdout == "12\n"
                assert (await copy.get_info()).snapshot == made.snapshot_id
        await AsyncSandbox.remove_snapshot(made)
        assert not snapshots_folder()
        with pytest.raises(ConfigError, match="no snapshot ready"):
            await AsyncSandbox.create(snapshot="ready")
    assert not kept()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": "1G"}, "memory='1G': a sandbox that is restored has what its snapshot had"),
        ({"cpus": 2}, "cpus=2"),
        ({"image": "debian"}, "image='debian'"),
        ({"disks": ["/x"]}, "disks="),
        ({"vsock": "none"}, "vsock='none'"),
        ({"allow": ["example.com"]}, "no network"),
        ({"publish": ["8080:80"]}, "no network"),
        ({"workspace": "/tmp", "workspace_mode": "rw"}, "as a copy"),
        ({"timeout": -1}, "positive number"),
        ({"envs": {"A": 1}}, "text for text"),
        ({"name": "a b"}, "cannot be a sandbox's name"),
    ],
)
def test_what_cannot_be_changed(
    options: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with Sandbox.create(**options) as sandbox:
        made = sandbox.snapshot()
        with pytest.raises(ConfigError, match=message):
            Sandbox.create(snapshot=made, **given)
    Sandbox.remove_snapshot(made)


@in_event_loop
async def test_forks(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, envs={"A": "1"}) as sandbox:
        children = await sandbox.fork(3)
        assert not snapshots_folder()
        names = set()
        for child in children:
            assert isinstance(child, AsyncSandbox)
            assert (await child.commands.run("echo $A")).stdout == "1\n"
            names.add(child.name)
            assert await child.kill()
        assert len(names | {sandbox.name}) == 4
        assert (await sandbox.commands.run("echo $A")).stdout == "1\n"
    assert not kept()


@in_event_loop
async def test_a_fork_that_is_given_up_while_it_is_saved_leaves_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "waits")
    async with await AsyncSandbox.create(**options, cold=True) as sandbox:
        forking = asyncio.create_task(sandbox.fork())
        folder = Path(sandbox._store.path(sandbox.sandbox_id))
        while not [*folder.glob("machine/*.part")]:
            await asyncio.sleep(0.01)
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        (folder / "go").touch()
        while "a fork: " not in (folder / "owner.log").read_text() or snapshots_folder():
            await asyncio.sleep(0.01)


@in_event_loop
async def test_a_wait_that_is_given_up_leaves_no_descriptor(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        open_owner, opened = sandbox._store.open_owner, []

        def open_slowly(id: str) -> int | None:
            time.sleep(0.2)
            fd = open_owner(id)
            opened.append(os.readlink(f"/proc/self/fd/{fd}") and fd)
            return fd

        monkeypatch.setattr(sandbox._store, "open_owner", open_slowly)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sandbox.wait(), 0.05)
        while not opened or os.path.exists(f"/proc/self/fd/{opened[0]}"):
            await asyncio.sleep(0.01)
        monkeypatch.undo()


@in_event_loop
async def test_what_a_copy_may_use_is_given_anew(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(
        **options, cpu_limit=0.5, pids=1000, jail="default"
    ) as sandbox:
        made = await sandbox.snapshot()
        store = sandbox._store

    async def record(**given: Any) -> SandboxRecord:
        wanted = {**creating.DEFAULTS, "snapshot": made, **given}
        return await creating.make_record(store, wanted, True)  # type: ignore[arg-type]

    as_saved = await record()
    assert (as_saved.limits, as_saved.jail) == ({"cpu": 0.5, "pids": 1000}, "default")
    changed = await record(cpu_limit=2, disk_ops_s=100, jail="strict")
    assert changed.limits == {"cpu": 2, "pids": 1000, "disk_ops_s": 100}
    assert changed.jail == "strict"
    for wrong in ({"jail": "loose"}, {"pids": 1}, {"workdir": "relative"}):
        with pytest.raises(ConfigError):
            await record(**wrong)
    await AsyncSandbox.remove_snapshot(made)


@in_event_loop
async def test_who_kills_what_somebody_suspends_ends_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        other = await AsyncSandbox.connect(sandbox.sandbox_id)
        await sandbox.suspend()
        monkeypatch.setattr(other._place, "is_alive", lambda: True)  # as it was a moment ago
        assert await other.kill()
        assert (await other.get_info()).state == "stopped"


def test_forks_that_fail_are_exceptions(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox.create(**options) as sandbox:
        monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "bad")
        found = sandbox.fork(2)
        assert [type(one) for one in found] == [HostError, HostError]
        assert "another CPU" in str(found[0])
        assert kept() == [sandbox.sandbox_id]
        assert not snapshots_folder()
        for count in (0, -1, 1001, 1.5, "2", True):
            with pytest.raises(ConfigError, match="give a whole number"):
                sandbox.fork(count)  # type: ignore[arg-type]


@in_event_loop
async def test_forks_that_are_given_up_leave_nothing_also_of_those_that_run(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        begun: list[str] = []

        def launch_one(store: Store, record: SandboxRecord, *arguments: Any, **others: Any) -> None:
            begun.append(record.id)
            if len(begun) > 1:  # they wait for a file that nobody makes
                monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "waits")
            launch(store, record, *arguments, owner=FAKE_OWNER, **others)

        monkeypatch.setattr(sdk_launching, "launch", launch_one)
        monkeypatch.setattr(copies, "_STARTS_AT_ONCE", 1)
        task = asyncio.create_task(sandbox.fork(3))
        while len(begun) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept() == [sandbox.sandbox_id]
        assert not snapshots_folder()


@in_event_loop
async def test_forks_that_are_given_up_at_last_leave_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        loop, close = asyncio.get_running_loop(), Lent.close

        def close_as_it_is_given_up(lent: Lent) -> None:
            assert len(kept()) == 3, "all of them run"
            monkeypatch.setattr(Lent, "close", close)
            asyncio.run_coroutine_threadsafe(cancel(), loop).result()
            close(lent)

        async def cancel() -> None:
            task.cancel()

        monkeypatch.setattr(Lent, "close", close_as_it_is_given_up)
        task = asyncio.create_task(sandbox.fork(2))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept() == [sandbox.sandbox_id]
        assert not snapshots_folder()


@pytest.mark.parametrize("by", ["fork()", "voidbox fork"])
def test_forks_get_the_values_of_the_originals_secrets(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    given: list[Mapping[str, str] | None] = []

    def launch_one(
        store: Store,
        record: SandboxRecord,
        *_: Any,
        secrets: Mapping[str, str] | None = None,
        **__: Any,
    ) -> None:
        given.append(secrets)
        store.remove(record.id)
        raise HostError("enough is known")

    with Sandbox.create(**options) as sandbox:
        monkeypatch.setattr(copies, "copied_values", lambda store, record: {"KEY": "value"})
        for module in (launching, sdk_launching):
            monkeypatch.setattr(module, "launch", launch_one)
        if by == "fork()":
            sandbox.fork()
        else:
            assert fork.main([sandbox.name]) == exit_status.USAGE
    assert given == [{"KEY": "value"}]


@in_event_loop
async def test_suspend_and_resume(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, name="one") as sandbox:
        await sandbox.commands.run("echo hi")
        await sandbox.suspend()
        assert (await sandbox.get_info()).state == "suspended"
        assert not await sandbox.is_running()
        with pytest.raises(AgentError, match=r"one is suspended: resume\(\) or voidbox resume one"):
            await sandbox.commands.run("echo hi")
        with pytest.raises(AgentError, match="is suspended"):
            await sandbox.pause()
        await sandbox.resume()
        assert (await sandbox.commands.run("echo hi")).stdout == "hi\n"
        await sandbox.suspend()
        asleep = await AsyncSandbox.connect("one", auto_resume=False)
        assert (await asleep.get_info()).state == "suspended"
        other = await AsyncSandbox.connect("one")
        assert (await other.commands.run("echo hi")).stdout == "hi\n"
        assert (await sandbox.commands.run("echo hi")).stdout == "hi\n"
        await other.close()
        await asleep.close()
        await sandbox.suspend()
    assert not kept()


@in_event_loop
async def test_who_finds_what_somebody_is_waking_waits_for_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncSandbox.create(**options, name="one") as sandbox:
        await sandbox.suspend()
        folder = Path(sandbox._store.path(sandbox.sandbox_id))
        (folder / "agent.pid").unlink()
        monkeypatch.setenv("VOIDBOX_FAKE_RESTORE", "waits")
        waking = asyncio.create_task(sandbox.resume())
        while not (folder / "agent.pid").exists():
            await asyncio.sleep(0.01)
        resuming = asyncio.create_task(sandbox.resume())
        finding = asyncio.create_task(AsyncSandbox.connect("one"))
        await asyncio.sleep(0.3)
        assert not finding.done() and not resuming.done()
        (folder / "go").touch()
        await asyncio.gather(waking, resuming)
        other = await finding
        assert (await other.commands.run("echo hi")).stdout == "hi\n"
        await other.close()


def test_a_suspended_one_is_stopped_and_killed(options: dict[str, Any]) -> None:
    sandbox = Sandbox.create(**options, keep=True)
    sandbox.suspend()
    sandbox.stop()
    assert sandbox.get_info().state == "stopped"
    sandbox._core._keeps = False
    assert not sandbox.kill()
    assert not kept()
    with Sandbox.create(**options) as sandbox:
        sandbox.suspend()
        assert sandbox.kill()
    assert not kept()


def test_one_that_cannot_be_saved_goes_on(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_FAKE_SNAPSHOT", "full")
    with Sandbox.create(**options) as sandbox:
        for save in (sandbox.snapshot, sandbox.suspend, sandbox.fork):
            with pytest.raises(HostError, match="No space left"):
                save()
        assert sandbox.commands.run("echo hi").stdout == "hi\n"


def test_create_restores_a_template_unless_told_not_to(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")

    def how(**given: Any) -> str:
        with Sandbox.create(**options, **given) as sandbox:
            log = Path(sandbox._core._store.path(sandbox.sandbox_id, "owner.log"))
            for line in sandbox.logs(source="voidbox"):
                if "left the template" in line:
                    break
            text = log.read_text()
        return "restored" if "restored from" in text else "booted"

    assert [how(), how(), how(cold=True)] == ["booted", "restored", "booted"]
