"""Sandbox.create(workspace=…) with fake machines; see fake_owner."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.conftest import in_event_loop
from tests.unit.sdk.test_sandbox import options, state_folder
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.sandbox import session
from voidbox.sandbox.process import recipe
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.workspace import copying, watching
from voidbox.sdk import draft
from voidbox.sdk.aio import AsyncSandbox
from voidbox.sdk.sync import Sandbox
from voidbox.sdk.watch import FileEvent
from voidbox.vmm.config import ShareConfig

__all__ = ["options", "state_folder"]


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "guest"
    folder.mkdir()
    monkeypatch.setattr(copying, "GUEST_FOLDER", str(folder))
    return folder


@pytest.fixture
def host(tmp_path: Path) -> Path:
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "a").write_text("a")
    return folder


def test_the_end_of_the_context_copies_back(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    with Sandbox.create(**options, workspace=host) as sandbox:
        assert os.listdir(guest) == ["a"]
        (guest / "b").write_text("b")
        assert sandbox.sync_back().added == ("b",)
        (guest / "c").write_text("c")
        info = sandbox.get_info()
        assert (info.workspace, info.workspace_mode) == (str(host), "copy")
    assert sorted(os.listdir(host)) == ["a", "b", "c"]


@in_event_loop
async def test_an_error_in_the_context_copies_back_too(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await AsyncSandbox.create(**options, workspace=host):
            (guest / "b").write_text("b")
            raise ZeroDivisionError
    assert sorted(os.listdir(host)) == ["a", "b"]


@in_event_loop
async def test_stop_copies_back_and_kill_does_not(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    sandbox = await AsyncSandbox.create(**options, workspace=str(host))
    (guest / "b").write_text("b")
    await sandbox.stop()
    assert sorted(os.listdir(host)) == ["a", "b"]
    await sandbox.kill()
    async with await AsyncSandbox.create(**options, workspace=str(host)) as sandbox:
        (guest / "c").write_text("c")
        await sandbox.kill()
    assert sorted(os.listdir(host)) == ["a", "b"]


@in_event_loop
async def test_another_process_may_copy_back(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    async with await AsyncSandbox.create(**options, workspace=host) as sandbox:
        (guest / "b").write_text("b")
        found = await AsyncSandbox.connect(sandbox.name)
        assert (await found.sync_back()).added == ("b",)
        await found.close()
        assert (await sandbox.sync_back()).added == ()


@in_event_loop
async def test_a_sandbox_that_died_says_that_nothing_came(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    with pytest.raises(AgentError, match="nothing was copied back"):
        async with await AsyncSandbox.create(**options, workspace=host) as sandbox:
            (guest / "b").write_text("b")
            await sandbox._control("kill")
            await sandbox.wait(60)
    assert os.listdir(host) == ["a"]


@in_event_loop
async def test_a_sandbox_goes_on_if_not_all_was_copied_back(
    options: dict[str, Any], host: Path, guest: Path
) -> None:
    (host / "d").mkdir()
    sandbox = await AsyncSandbox.create(**options, workspace=host)
    (guest / "b").write_text("b")
    (guest / "d/c").write_text("c")
    os.rename(host / "d", host / "e")
    (host / "d").symlink_to("e")
    with pytest.raises(AgentError, match="not all was copied back"):
        await sandbox.stop()
    assert await sandbox.is_running()
    (host / "d").unlink()
    os.rename(host / "e", host / "d")
    await sandbox.stop()
    assert sorted(os.listdir(host)) == ["a", "b", "d"]
    assert os.listdir(host / "d") == ["c"]
    await sandbox.kill()


@in_event_loop
async def test_a_sandbox_that_was_removed(options: dict[str, Any], host: Path, guest: Path) -> None:
    async with await AsyncSandbox.create(**options, workspace=host) as sandbox:
        sandbox._workspace._lock_path = str(host / "gone/workspace.lock")
        with pytest.raises(ConfigError, match="cannot open"):
            await sandbox.sync_back()
        await sandbox.kill()


@in_event_loop
async def test_what_makes_no_sense(options: dict[str, Any], host: Path) -> None:
    for values in (
        {"workspace": host / "none"},
        {"workspace": "/"},
        {"workspace": host, "workspace_mode": "live"},
    ):
        with pytest.raises(ConfigError):
            await AsyncSandbox.create(**options, **values)
    async with await AsyncSandbox.create(**options) as sandbox:
        with pytest.raises(ConfigError, match="no workspace"):
            await sandbox.sync_back()


def test_the_recipe(tmp_path: Path) -> None:
    record = SandboxRecord("n", "k", "i", 1 << 28, 1, {}, {}, cid=3)

    def shares(mode: str) -> tuple[ShareConfig, ...]:
        found = record._replace(workspace=str(tmp_path), workspace_mode=mode)
        return recipe.machine_config(found, "s", "u").shares

    assert recipe.machine_config(record, "s", "u").shares == shares("copy") == ()
    assert shares("ro") == (ShareConfig(str(tmp_path), "workspace", True, "/workspace"),)
    assert shares("rw") == (ShareConfig(str(tmp_path), "workspace", False, "/workspace"),)
    with pytest.raises(ConfigError, match="workspace mode"):
        shares("both")


@in_event_loop
async def test_what_the_host_changes_in_a_live_folder_is_told(
    options: dict[str, Any], host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "sub").mkdir()
    (host / "link").symlink_to("sub")
    # The fake guest's /workspace: it knows that the folder is there, and nothing of its changes.
    monkeypatch.setattr(draft, "WORKDIR", "/etc")
    options["workdir"] = "/etc"
    async with await AsyncSandbox.create(**options, workspace=host, workspace_mode="rw") as sandbox:
        async with await sandbox.files.watch_dir("/etc/.", recursive=True) as watch:
            (host / "new").write_text("x")
            assert await watch.next(20) == FileEvent("create", "new", False)
            assert (await watch.next(20)).kind == "write"  # type: ignore[union-attr]
            (host / "sub" / "deep").mkdir()
            assert await watch.next(20) == FileEvent("create", "sub/deep", True)
            with pytest.raises(SandboxTimeout, match=r"^/etc/.: nothing happened for 0.1 s$"):
                await watch.next(0.1)
        told: asyncio.Queue[FileEvent] = asyncio.Queue()
        watch = await sandbox.files.watch_dir("/etc", told.put)
        os.rename(host / "new", host / "newer")
        async with asyncio.timeout(20):
            assert [(await told.get()).kind for _ in range(2)] == ["rename", "create"]
        await watch.close()
        watch = await sandbox.files.watch_dir("/etc")
        await sandbox.kill()
        with pytest.raises(AgentError, match="ended by this program"):
            await watch.next(20)


@in_event_loop
async def test_a_link_in_a_live_folder_is_not_followed_to_watch(
    options: dict[str, Any], host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "WORKDIR", "/etc")
    (host / "default").symlink_to("/")  # in the guest it is a folder
    async with await AsyncSandbox.create(**options, workspace=host, workspace_mode="ro") as sandbox:
        with pytest.raises(ConfigError, match="links on the way are not followed"):
            await sandbox.files.watch_dir("/etc/default")
        assert (await sandbox.commands.run("echo on")).stdout == "on\n"


@in_event_loop
async def test_the_host_s_changes_in_a_shared_volume_are_told(
    options: dict[str, Any], host: Path
) -> None:
    (host / "sub").mkdir()
    volumes = [f"{host}:/etc"]  # the fake guest knows that the folder is there
    async with (
        await AsyncSandbox.create(**options, volumes=volumes) as sandbox,
        await sandbox.files.watch_dir("/etc") as watch,
    ):
        (host / "new").mkdir()
        assert await watch.next(20) == FileEvent("create", "new", True)


def test_which_folder_of_the_host_a_path_leads_into() -> None:
    record = SandboxRecord(
        "n", "k", "i", 1 << 28, 1, {}, {}, workspace="/w", workspace_mode="rw",
        volumes=("/h:/workspace/h:ro", "cache:/workspace/h/cache", "/d:/data"),
    )  # fmt: skip
    shared = draft.shared_folders(record)
    found = session.Session(None, "box", shared=shared)  # type: ignore[arg-type]
    for path, expected in (
        ("/workspace", ("/w", ())),
        ("/workspace/a//b/.", ("/w", ("a", "b"))),
        ("/workspace/h", ("/h", ())),
        ("/workspace/h/../x", ("/w", ("x",))),
        ("/workspace/h/cache/x", None),  # a disk, which only the guest has
        ("/data/x", ("/d", ("x",))),
        ("/database", None),
        ("/", None),
    ):
        assert found.shared_parts(path) == expected, path
    assert draft.shared_folders(record._replace(workspace_mode="copy", volumes=())) == {}


def test_a_guest_that_makes_folders_without_end_gets_no_watches_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FOLDERS_MAX", 5)
    for name in "abc":
        (tmp_path / name).mkdir()
    watch = watching.SharedFolderWatch(str(tmp_path), (), True)
    try:
        for name in "defgh":
            (tmp_path / name).mkdir()
        watch.read()
        kinds = [event["kind"] for event in watch.tree.pending]
        assert watch.tree.folders == 5 and kinds.count("create") == 5 and "overflow" in kinds
    finally:
        watch.close()
