"""AsyncSandbox with everything but the virtual machine; see fake_owner."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import ROOT, USER
from tests.unit.sandbox.conftest import in_event_loop
from voidbox import volumes
from voidbox.errors import AgentError, CommandTimeout, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.launch import launch
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk import command_handle, draft, launching
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.info import SandboxMetrics
from voidbox.sdk.launching import Launch

FAKE_OWNER = "tests.unit.sandbox.fake_owner"
Create = Callable[..., Coroutine[Any, Any, AsyncSandbox]]


@pytest.fixture
def state_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder: of a short name, for there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        monkeypatch.setenv("VOIDBOX_STATE", folder)
        yield Path(folder)


@pytest.fixture
def options(
    tmp_path: Path, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What create() needs here; no sandbox may be left at the end but those that are kept."""
    monkeypatch.setattr(launching, "launch", functools.partial(launch, owner=FAKE_OWNER))
    for mode in ("", "bad", "panic", "slow", "nervous"):
        (tmp_path / f"image{mode}").write_text(json.dumps({"mode": mode}))
    (tmp_path / "work").mkdir()
    yield {
        "kernel": tmp_path / "kernel",
        "image": tmp_path / "image",
        "user": USER,
        "workdir": str(tmp_path / "work"),
        "memory": "64M",
        "block_network": True,
    }
    store = Store()
    alive = [record for record in store.list() if store.is_alive(record.id)]
    for record in alive:
        fd = store.open_owner(record.id)
        if fd is not None:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            os.close(fd)
    assert not alive, "a test left sandboxes behind"


def kept() -> list[str]:
    """Return the folders of sandboxes that there are."""
    folder = Path(os.environ["VOIDBOX_STATE"], "sandboxes")
    return sorted(os.listdir(folder)) if folder.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def draft_of(options: dict[str, Any]) -> SandboxRecord:
    """Return what a Launch of these options begins with."""
    return SandboxRecord(
        name="", kernel=str(options["kernel"]), image=str(options["image"]), cpus=1,
        memory_bytes=64 << 20, envs={}, metadata={}, jail="off",
    )  # fmt: skip


def agent_pid(sandbox: AsyncSandbox) -> int:
    return int(Path(sandbox._store.path(sandbox.sandbox_id, "agent.pid")).read_text())


def owner_pid(sandbox: AsyncSandbox) -> int:
    return sandbox._store.read(sandbox.sandbox_id).pid


# --- its life -----------------------------------------------------------------------------------


@in_event_loop
async def test_from_create_to_kill(options: dict[str, Any], tmp_path: Path) -> None:
    metadata = {"task": "42"}
    async with await AsyncSandbox.create(
        **options, name="mine", metadata=metadata, envs={"A": "1"}, timeout=100
    ) as sandbox:
        assert (await sandbox.commands.run("echo $A; pwd")).stdout == f"1\n{tmp_path}/work\n"
        assert (await sandbox.exec("echo", "a  b", workdir="/")).stdout == "a  b\n"
        await sandbox.files.write("f", "x")
        assert (tmp_path / "work" / "f").read_text() == "x"
        info = await sandbox.get_info()
        assert (info.name, info.state, info.metadata) == ("mine", "running", metadata)
        assert info.sandbox_id == sandbox.sandbox_id and info.is_running
        assert info.memory_bytes == 64 << 20 and info.network is None
        assert info.end_at is not None and info.started_at is not None
        assert info.end_at == info.started_at + 100
        metrics = await sandbox.get_metrics()
        assert metrics.cpus > 0 and metrics.memory_bytes > metrics.memory_used_bytes > 0
        assert metrics.host_memory_bytes > 0
        assert [one.name for one in await AsyncSandbox.list()] == ["mine"]
        assert kept() == [sandbox.sandbox_id]
    assert not kept()
    assert not await sandbox.kill() and not await sandbox.terminate()


@in_event_loop
async def test_secret_variables_are_shown_nowhere(
    options: dict[str, Any], state_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = "s3cret-é-value"
    sandbox = await AsyncSandbox.create(
        **options, name="one", envs={"A": "1", "TOKEN": "shown"}, secret_envs={"TOKEN": value}
    )
    folder = state_folder / "sandboxes" / sandbox.sandbox_id
    line = "echo $A $TOKEN"
    async with sandbox:
        assert (await sandbox.commands.run(line)).stdout == f"1 {value}\n"
        other = await AsyncSandbox.connect("one")
        assert (await other.exec("sh", "-c", line)).stdout == f"1 {value}\n"
        await other.close()
        info = await sandbox.get_info()
        assert (info.envs, info.secret_envs) == ({"A": "1"}, ("TOKEN",))
        found = {
            path.name for path in state_folder.rglob("*")
            if path.is_file() and any(
                words in path.read_bytes()
                for words in (value.encode(), json.dumps(value)[1:-1].encode())
            )
        }  # fmt: skip
        assert found == {"secret-envs"}
        assert (folder / "secret-envs").stat().st_mode & 0o777 == 0o600
        assert value not in repr(info) + repr(sandbox) + str(capfd.readouterr())
        await sandbox.stop()
        assert not (folder / "secret-envs").exists()
    for wrong in ({"A": 7}, {"A": value + "\0"}, {"": value}, [value], {"A": value * 20_000}):
        with pytest.raises(ConfigError) as caught:
            await AsyncSandbox.create(**options, secret_envs=wrong)
        assert value[:5] not in str(caught.value)
    assert not kept()


@in_event_loop
async def test_a_sandbox_that_is_killed_leaves_no_secrets(options: dict[str, Any]) -> None:
    sandbox = await AsyncSandbox.create(**options, secret_envs={"TOKEN": "x"})
    path = Path(sandbox._store.path(sandbox.sandbox_id, "secret-envs"))
    assert path.exists()
    os.kill(owner_pid(sandbox), signal.SIGKILL)
    await sandbox.wait()
    await AsyncSandbox.list()  # any command cleans up
    assert not path.exists()
    await sandbox.kill()


@in_event_loop
async def test_volumes(options: dict[str, Any], tmp_path: Path) -> None:
    volumes.create("cache")
    (tmp_path / "data").mkdir()
    given = [f"{tmp_path}/data:/data:ro", "cache:/cache"]
    sandbox = await AsyncSandbox.create(**options, volumes=given, keep=True)
    assert (await sandbox.get_info()).volumes == tuple(given)
    async with sandbox:
        pass
    info = await sandbox.get_info()
    assert info.reason == "it was stopped"  # a kill would be a power cut for the file system
    launch = AsyncSandbox.create(**options, volumes=["nothing:/cache"])
    with pytest.raises(ConfigError, match="no volume 'nothing': voidbox volume create"):
        await launch
    for wrong in ("cache:/c", ["cache"], [7]):
        with pytest.raises(ConfigError, match="give"):
            await AsyncSandbox.create(**options, volumes=wrong)
    assert kept() == [sandbox.sandbox_id]


@in_event_loop
async def test_connecting(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, name="one") as sandbox:
        for key in ("one", sandbox.sandbox_id, sandbox.sandbox_id[:6]):
            other = await AsyncSandbox.connect(key)
            assert (await other.commands.run("echo hi")).stdout == "hi\n"
            await other.close()
            with pytest.raises(AgentError, match="closed"):
                await other.commands.run("echo hi")
        assert await sandbox.is_running()
        with pytest.raises(ConfigError, match="no sandbox other"):
            await AsyncSandbox.connect("other")
        with pytest.raises(ConfigError, match="called one already"):
            await AsyncSandbox.create(**options, name="one")


@in_event_loop
async def test_killing_through_another_connection(options: dict[str, Any]) -> None:
    sandbox = await AsyncSandbox.create(**options)
    other = await AsyncSandbox.connect(sandbox.sandbox_id)
    task = asyncio.create_task(sandbox.commands.run("sleep 60"))
    await sandbox.commands.list()
    assert await other.kill()
    with pytest.raises(AgentError, match="killed"):
        await task
    assert (await sandbox.get_info()).state == "stopped"  # it is for its maker to remove it
    await sandbox.kill()


@in_event_loop
async def test_what_is_kept(options: dict[str, Any], tmp_path: Path) -> None:
    async with await AsyncSandbox.create(**options, keep=True) as sandbox:
        pass
    assert (await sandbox.get_info()).state == "stopped"
    assert [line async for line in sandbox.logs()] == ["the guest boots"]
    with pytest.raises(AgentError, match="it was killed"):
        await AsyncSandbox.connect(sandbox.sandbox_id)


@in_event_loop
async def test_stopping(options: dict[str, Any], tmp_path: Path) -> None:
    sandbox = await AsyncSandbox.create(**options)
    await sandbox.stop()
    info = await sandbox.get_info()
    assert info.state == "stopped" and not info.is_running
    await sandbox.stop()  # again: nothing to do
    assert not await sandbox.kill()
    assert not kept()


@in_event_loop
async def test_pause_and_resume(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        handle = await sandbox.commands.start("cat", stdin=True)
        await sandbox.pause()
        await handle.send_stdin("waits")
        await handle.close_stdin()
        assert (await sandbox.get_info()).state == "paused"
        for asked in (
            lambda: sandbox.commands.run("true"),
            lambda: sandbox.commands.list(),
            lambda: sandbox.commands.kill(1),
            lambda: sandbox.commands.connect(1),
            lambda: sandbox.pty.create(),
            lambda: sandbox.files.list(),
            lambda: sandbox.files.read("f"),
            lambda: sandbox.files.write("f", "x"),
            lambda: sandbox.get_metrics(),
        ):
            with pytest.raises(ConfigError, match=r"is paused: resume\(\) lets it go on"):
                await asked()
        with pytest.raises(ConfigError, match="paused"):
            await sandbox.pause()
        await sandbox.resume()
        assert (await handle.wait(60)).stdout == "waits"
        assert (await sandbox.commands.run("echo on")).stdout == "on\n"


@in_event_loop
async def test_the_sandboxs_own_time_limit(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        task = asyncio.create_task(sandbox.commands.run("sleep 60", timeout=50))
        await sandbox.commands.list()
        await sandbox.set_timeout(0.2)
        with pytest.raises(AgentError, match="time limit ran out") as caught:
            await task
        assert not isinstance(caught.value, CommandTimeout)
        assert (await sandbox.wait(60)).reason == "its time limit ran out"


@in_event_loop
async def test_a_time_limit_stands_still_while_the_sandbox_is_paused(
    options: dict[str, Any],
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        await sandbox.set_timeout(600)
        before = (await sandbox.get_info()).end_at
        await sandbox.pause()
        await asyncio.sleep(1)
        await sandbox.resume()
        after = (await sandbox.get_info()).end_at
        assert before is not None and after is not None and after > before + 0.9
        await sandbox.set_timeout(0.1)
        assert (await sandbox.wait(60)).reason == "its time limit ran out"


@in_event_loop
async def test_a_limit_that_is_set_while_the_sandbox_is_paused(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        await sandbox.pause()
        await sandbox.set_timeout(0.1)
        await asyncio.sleep(0.5)
        assert await sandbox.is_running()
        await sandbox.set_timeout(None)
        await sandbox.resume()
        assert (await sandbox.commands.run("echo on")).stdout == "on\n"


@pytest.mark.slow
@in_event_loop
async def test_a_commands_time_limit_stands_still_while_the_sandbox_is_paused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_handle, "_TIMEOUT_GRACE_S", 0.0)
    async with await AsyncSandbox.create(**options) as sandbox:
        line = "until [ -e go ]; do sleep 0.1; done; echo on"
        handle = await sandbox.commands.start(line, timeout=10)
        await sandbox.pause()
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(11)
        await sandbox.resume()
        await sandbox.files.write("go", "")
        assert (await waiting).stdout == "on\n"


@in_event_loop
async def test_waiting(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        with pytest.raises(SandboxTimeout, match="still runs"):
            await sandbox.wait(0.1)
        before = threading.active_count()
        waiting = [asyncio.create_task(sandbox.wait()) for _ in range(30)]
        await asyncio.sleep(0.2)
        assert threading.active_count() <= before + 8  # asyncio's pool, which they have left
        assert (await sandbox.commands.run("echo free")).stdout == "free\n"
        await sandbox.stop()
        assert {info.state for info in await asyncio.gather(*waiting)} == {"stopped"}


@in_event_loop
async def test_following_logs(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, keep=True) as sandbox:
        lines: list[str] = []

        async def follow() -> None:
            async for line in sandbox.logs(follow=True):
                lines.append(line)

        task = asyncio.create_task(follow())
        await until(lambda: bool(lines))
        os.kill(agent_pid(sandbox), signal.SIGKILL)
        await task
        assert lines == ["the guest boots", "the agent ended: -9"]
        said = [line async for line in sandbox.logs(source="voidbox")]
        assert any("agent answers" in line for line in said)
        with pytest.raises(ConfigError, match="source="):
            await anext(sandbox.logs(source="x"))  # type: ignore[arg-type]


# --- its death ----------------------------------------------------------------------------------


@in_event_loop
async def test_a_crash_ends_everything_at_once_with_the_consoles_tail(
    options: dict[str, Any], tmp_path: Path
) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        tasks = [
            asyncio.create_task(sandbox.commands.run("sleep 60")),
            asyncio.create_task((await sandbox.files.watch_dir()).next()),
        ]
        await sandbox.commands.list()
        started = time.monotonic()
        os.kill(agent_pid(sandbox), signal.SIGKILL)
        for task in tasks:
            with pytest.raises(AgentError, match=r"(?s)panic.*the agent ended: -9"):
                await task
        operations: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: sandbox.commands.run("true"),
            lambda: sandbox.files.read("f"),
            lambda: sandbox.pty.create(),
            lambda: sandbox.get_metrics(),
            lambda: sandbox.pause(),
            lambda: AsyncSandbox.connect(sandbox.sandbox_id),
        ]
        for operation in operations:
            with pytest.raises(AgentError, match="the agent ended: -9"):
                await operation()
        assert time.monotonic() - started < 50
        assert (await sandbox.get_info()).state == "crashed"
    assert not kept()


@pytest.mark.parametrize("what", ["exec", "upload", "nothing"])
@in_event_loop
async def test_its_process_is_killed(options: dict[str, Any], tmp_path: Path, what: str) -> None:
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    async with await AsyncSandbox.create(**options) as sandbox:
        await sandbox.commands.run("true")
        if what == "exec":
            task: asyncio.Task[Any] = asyncio.create_task(sandbox.commands.run("sleep 60"))
        elif what == "upload":
            task = asyncio.create_task(sandbox.files.upload(tmp_path / "big", "big"))
        else:
            task = asyncio.create_task(sandbox.wait())
        await asyncio.sleep(0.05)
        os.kill(owner_pid(sandbox), signal.SIGKILL)
        if what == "nothing":
            info = await task
            assert (info.state, info.reason) == ("crashed", "its process was killed")
        else:
            with pytest.raises(AgentError, match="its process was killed"):
                await task
        with pytest.raises(AgentError, match="its process was killed"):
            await sandbox.commands.run("true")
    assert not kept()


@in_event_loop
async def test_a_start_that_fails(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the kernel is no kernel"):
        await AsyncSandbox.create(**{**options, "image": tmp_path / "imagebad"})
    assert not kept()
    with pytest.raises(AgentError, match="the agent ended"):
        await AsyncSandbox.create(**{**options, "image": tmp_path / "imagepanic"})
    with pytest.raises(ConfigError, match="no guest image|no kernel"):
        os.environ["VOIDBOX_CACHE"] = str(tmp_path)
        try:
            await AsyncSandbox.create()
        finally:
            del os.environ["VOIDBOX_CACHE"]


@in_event_loop
async def test_a_start_may_take_as_long_as_is_asked_for(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options, request_timeout=300) as box:
        assert Store().read(box.sandbox_id).start_s == 300
        (copy,) = await box.fork()
        assert isinstance(copy, AsyncSandbox)
        assert Store().read(copy.sandbox_id).start_s == 300
        await copy.kill()


@in_event_loop
async def test_a_start_that_takes_too_long(options: dict[str, Any], tmp_path: Path) -> None:
    options["image"] = tmp_path / "imageslow"
    with pytest.raises(SandboxTimeout, match=r"did not start within 0\.5 s"):
        await AsyncSandbox.create(**options, request_timeout=0.5)
    assert not kept()


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.1, 0.3])
@in_event_loop
async def test_a_start_that_is_given_up(
    options: dict[str, Any], tmp_path: Path, after_s: float
) -> None:
    options["image"] = tmp_path / "imageslow"
    task = asyncio.create_task(AsyncSandbox.create(**options))
    await asyncio.sleep(after_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not kept()


@in_event_loop
async def test_a_start_that_is_given_up_again_and_again(
    options: dict[str, Any], tmp_path: Path
) -> None:
    options["image"] = tmp_path / "imageslow"
    task = asyncio.create_task(AsyncSandbox.create(**options))
    await until(lambda: bool(kept()))
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    assert task.cancelled() and not kept()


@in_event_loop
async def test_a_start_is_given_up_though_descriptors_are_short_for_a_moment(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["image"] = tmp_path / "imageslow"
    task = asyncio.create_task(AsyncSandbox.create(**options))
    await until(lambda: bool(kept()))
    wait_ended = launching.wait_ended
    problems = [HostError("pidfd_open: Too many open files") for _ in range(3)]

    def fails_at_first(*arguments: Any) -> bool:
        if problems:
            raise problems.pop()
        return wait_ended(*arguments)

    monkeypatch.setattr(launching, "wait_ended", fails_at_first)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not kept() and not problems


@in_event_loop
async def test_a_start_that_is_given_up_as_it_succeeds(options: dict[str, Any]) -> None:
    before = asyncio.all_tasks()
    outer = asyncio.create_task(Launch(Store(), draft_of(options), None).run())
    await asyncio.sleep(0)
    (inner,) = asyncio.all_tasks() - before - {outer}
    inner.add_done_callback(lambda _: outer.cancel())  # before outer learns of it
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.result().pid and not kept()


@pytest.mark.parametrize("method", ["read", "secret"])
@in_event_loop
async def test_a_start_of_which_nothing_can_be_known_leaves_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(store: Store, id: str) -> Any:
        raise HostError(f"cannot read {id}: Too many open files")

    def then_fail(*arguments: Any, **others: Any) -> None:
        launch(*arguments, owner=FAKE_OWNER, **others)
        monkeypatch.setattr(Store, method, fail)

    monkeypatch.setattr(launching, "launch", then_fail)
    with pytest.raises(HostError, match="Too many open files"):
        await AsyncSandbox.create(**options)
    assert not kept()


@in_event_loop
async def test_a_start_is_given_up_though_no_thread_of_the_pool_is_free(
    options: dict[str, Any], tmp_path: Path
) -> None:
    options["image"] = tmp_path / "imageslow"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    first, second = (
        asyncio.create_task(Launch(Store(), draft_of(options), None).run()) for _ in range(2)
    )
    await until(lambda: bool(kept()))
    for task in (second, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not kept()


_PROGRAM = """
import functools, os, signal, sys
from voidbox import Sandbox
from voidbox.sdk import launching
launching.launch = functools.partial(launching.launch, owner={owner!r})
sandbox = Sandbox.create(**{options!r})
sandbox.commands.run("true")
print(sandbox.sandbox_id, flush=True)
{end}
"""


def start_program(options: dict[str, Any], end: str) -> subprocess.Popen[str]:
    plain = {key: os.fspath(v) if isinstance(v, Path) else v for key, v in options.items()}
    text = _PROGRAM.format(owner=FAKE_OWNER, options=plain, end=end)
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("raise SystemExit(4)", 4)],
)
@in_event_loop
async def test_a_sandbox_ends_with_its_program(
    options: dict[str, Any], tmp_path: Path, end: str, status: int
) -> None:
    """And a program that closes nothing ends all the same."""
    with start_program(options, end) as program:
        assert program.stdout is not None
        id = program.stdout.readline().strip()
        assert await asyncio.to_thread(program.wait, 60) == status
    store = Store()
    await until(lambda: not store.is_alive(id))
    assert store.read(id).reason == "the process that owned it ended"
    store.close()


@in_event_loop
async def test_a_detached_one_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    with start_program({**options, "detached": True}, "") as program:
        assert program.stdout is not None
        id = program.stdout.readline().strip()
        assert await asyncio.to_thread(program.wait, 60) == 0
    await asyncio.sleep(0.3)
    sandbox = await AsyncSandbox.connect(id)
    assert (await sandbox.commands.run("echo on")).stdout == "on\n"
    assert await sandbox.kill()


@in_event_loop
async def test_a_forked_child_does_not_keep_it_alive(
    options: dict[str, Any], tmp_path: Path
) -> None:
    end = "pid = os.fork()\nif pid:\n    print(pid, flush=True)\n    os._exit(0)\nsignal.pause()"
    with start_program(options, end) as program:
        assert program.stdout is not None
        id = program.stdout.readline().strip()
        child = int(program.stdout.readline())
        await asyncio.to_thread(program.wait, 60)
        store = Store()
        await until(lambda: not store.is_alive(id))
        os.kill(child, signal.SIGKILL)  # it has lived on
        store.close()


@in_event_loop
async def test_several_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    sandboxes = await asyncio.gather(*(AsyncSandbox.create(**options) for _ in range(4)))
    results = await asyncio.gather(*(one.exec("echo", one.name) for one in sandboxes))
    assert [result.stdout.strip() for result in results] == [one.name for one in sandboxes]
    assert len({one.name for one in sandboxes}) == 4
    await asyncio.gather(*(one.kill() for one in sandboxes))
    assert not kept()


@pytest.mark.slow
@in_event_loop
async def test_rounds_leave_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def round() -> None:
        async with await AsyncSandbox.create(**options) as sandbox:
            await sandbox.commands.run("true")

    await round()
    before = descriptors()
    for _ in range(5):
        await round()
    assert descriptors() == before and not kept()
    allocations = json.loads(
        Path(os.environ["VOIDBOX_STATE"], "allocations/allocations.json").read_text()
    )
    assert not allocations["cids"]


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"cpus": 0},
        {"cpus": "2"},
        {"memory": 0},
        {"memory": 512 << 20},
        {"memory": "lots"},
        {"timeout": 0},
        {"workdir": "relative"},
        {"envs": {"A": 1}},
        {"envs": {"A=B": "x"}},
        {"envs": {"": "x"}},
        {"envs": {"A": "x\0"}},
        {"envs": "abc"},
        {"envs": {"A": "x" * 200_000}},
        {"envs": {f"A{number}": "x" * 100_000 for number in range(30)}},
        {"metadata": [1]},
        {"name": 5},
        {"name": ""},
        {"team": ""},
        {"team": "a/b"},
        {"metadata": {1: "a"}},
        {"name": "../x"},
        {"name": "a/b"},
        {"block_network": True, "allow": ["x.org"]},
        {"block_network": False, "allow": "x.org"},
        {"block_network": False, "deny": [5]},
        {"block_network": False, "allow_host_ports": ["80"]},
        {"request_timeout": -1},
    ],
)
@in_event_loop
async def test_arguments_without_sense(
    options: dict[str, Any], tmp_path: Path, bad: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        await AsyncSandbox.create(**{**options, **bad})
    assert "\n" not in str(caught.value) and not kept()


@in_event_loop
async def test_whatever_is_asked_of_a_sandbox_after_ones_own_kill_is_answered_so(
    options: dict[str, Any],
) -> None:
    sandbox = await AsyncSandbox.create(**options)
    handle = await sandbox.commands.start("sleep 100")
    watch = await sandbox.files.watch_dir(".")
    await sandbox.kill()
    said = f"{sandbox.name} has been ended by this program"
    for asked in (
        lambda: sandbox.commands.run("true"),
        lambda: sandbox.commands.list(),
        lambda: sandbox.files.read("f"),
        lambda: sandbox.pause(),
        lambda: sandbox.get_metrics(),
        lambda: sandbox.get_info(),
        lambda: sandbox.wait(),
        lambda: sandbox.ports.list(),
    ):
        with pytest.raises(AgentError, match=f"^{said}[^\n]*$"):
            await asked()
    for what in (handle.wait(), watch.next()):
        with pytest.raises(AgentError, match=said):
            await what
    assert not await sandbox.kill() and not await sandbox.is_running()


@pytest.mark.parametrize("key", [None, 5, b"x", ""])
@in_event_loop
async def test_what_is_no_name_is_not_found(state_folder: Path, key: Any) -> None:
    with pytest.raises(ConfigError):
        await AsyncSandbox.connect(key)


@pytest.mark.parametrize(
    "number", [math.inf, -math.inf, math.nan, 1e300, 10**400, "5", None], ids=repr
)
def test_figures_without_sense_count_as_none(number: Any) -> None:
    names = (
        "cpus", "memory_bytes", "memory_available_bytes", "disk_bytes", "disk_available_bytes",
        "processes", "uptime_s",
    )  # fmt: skip
    guest = dict.fromkeys(names, number) | {"load": [number, 0.5]}
    metrics = SandboxMetrics.of(guest, {"rss_bytes": number, "cpu_ns": number})
    assert metrics.load == (0.5,)
    assert not any((metrics.cpus, metrics.memory_used_bytes, metrics.uptime_s, metrics.host_cpu_s))


@in_event_loop
async def test_no_descriptors_left(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(HostError, match="socket: EMFILE"):
        ControlClient("control.sock").request("metrics")


def net(**values: Any) -> dict[str, object] | None:
    empty: dict[str, Any] = dict.fromkeys(
        ("allow", "deny", "allow_host_ports", "publish", "rate_bytes_s", "pcap")
    )
    plain = {**empty, "block_network": False, "outbound_domain_allowlist": None}
    return draft.make_net(**{**plain, **values})


def test_network_policies() -> None:
    open_net = {"allow": [], "deny": [], "allow_host_ports": [], "publish": []}
    assert net() == open_net
    assert net(block_network=True) is None
    assert net(allow=("a.org",), outbound_domain_allowlist=["b.org"]) == {
        **open_net, "allow": ["a.org", "b.org"],
    }  # fmt: skip
    assert net(outbound_domain_allowlist=[]) == {**open_net, "deny": ["*"]}
    assert net(publish=["80:80"], rate_bytes_s=5) == {
        **open_net, "publish": ["80:80"], "rate_bytes_s": 5,
    }  # fmt: skip


def test_amounts_of_memory() -> None:
    assert draft.memory_bytes(512) == draft.memory_bytes("512M") == 512 << 20


@in_event_loop
async def test_ports_need_a_network(options: dict[str, Any]) -> None:
    async with await AsyncSandbox.create(**options) as sandbox:
        assert await sandbox.ports.list() == []
        with pytest.raises(ConfigError, match="no network"):
            await sandbox.ports.add("8080:80")


@in_event_loop
async def test_a_state_folder_that_cannot_be(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ConfigError, HostError)):
        await AsyncSandbox.create(**options, state_folder=str(tmp_path / "file"))
