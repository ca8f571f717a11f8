"""A workspace that is copied in and back, over the real agent; and what may happen on the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sandbox.conftest import Box, in_event_loop
from voidbox.agent.call import RequestFailed
from voidbox.agent.core import Event
from voidbox.errors import AgentError, ConfigError, HostError
from voidbox.sandbox.session import Session
from voidbox.sandbox.transfer import listing
from voidbox.sandbox.transfer.download import Download
from voidbox.sandbox.transfer.host_tree import HostFolder
from voidbox.sandbox.transfer.trees import Entry
from voidbox.sandbox.workspace import copying, manifest, merge
from voidbox.sandbox.workspace.changes import Changes, compare, parse_listed
from voidbox.sandbox.workspace.copying import WorkspaceResult
from voidbox.sandbox.workspace.manifest import GuestItem, HostItem, Manifest, kind_of, scan_host
from voidbox.sandbox.workspace.merge import CONFLICT_SUFFIX, Merge
from voidbox.sandbox.workspace.staging import Staging


def contents(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = "special"
    return found


class Work:
    """A host's folder and the guest's, and the way between them."""

    def __init__(self, box: Box, host: Path, guest: Path) -> None:
        self.box, self.host, self.guest = box, host, guest
        self.base = Manifest({}, {})

    async def copy_in(self) -> None:
        self.base = await copying.copy_in(self.box.session, str(self.host), 20)

    async def back(self, **values: int) -> WorkspaceResult:
        result, self.base = await copying.copy_back(
            self.box.session, str(self.host), self.base, 20, **values
        )
        assert not [name for name in os.listdir(self.host) if name.startswith(".voidbox-sync")]
        return result


@pytest.fixture
def work(box: Box, tmp_path: Path, guest: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setattr(copying, "GUEST_FOLDER", str(guest))
    host = tmp_path / "host"
    (host / "src/deep").mkdir(parents=True)
    (host / "empty").mkdir()
    (host / "a.txt").write_text("a\n")
    (host / "b.txt").write_text("b\n")
    (host / "run.sh").write_text("#!/bin/sh\n")
    (host / "run.sh").chmod(0o755)
    (host / "src/deep/big").write_bytes(os.urandom(300_000))
    (host / "src/deep/f").write_text("f")
    (host / "link").symlink_to("src/deep/f")
    (tmp_path / "outside").mkdir()
    return Work(box, host, guest)


@in_event_loop
async def test_there_and_back(work: Work) -> None:
    await work.copy_in()
    assert contents(work.guest) == contents(work.host)
    result = await work.back()
    assert result[:5] == ((), (), (), (), ())
    g = work.guest
    (g / "a.txt").write_text("changed\n")
    (g / "new/er").mkdir(parents=True)
    (g / "new/er/file").write_bytes(bytes(200_000))
    (g / "b.txt").unlink()
    shutil.rmtree(g / "src/deep")
    (g / "run.sh").chmod(0o700)
    (g / "link").unlink()
    (g / "link").symlink_to("a.txt")
    (g / "new/up").symlink_to("../a.txt")
    result = await work.back()
    assert contents(work.host) == contents(g)
    assert set(result.added) == {"new", "new/er", "new/er/file", "new/up"}
    assert set(result.changed) == {"a.txt", "run.sh", "link"}
    assert set(result.deleted) == {"b.txt", "src/deep", "src/deep/big", "src/deep/f"}
    assert (result.conflicts, result.skipped) == ((), ())
    assert str(result) == "4 added, 3 changed, 4 deleted"
    assert (work.host / "a.txt").stat().st_mtime_ns == (g / "a.txt").stat().st_mtime_ns
    (g / "a.txt").write_text("once more\n")
    assert (await work.back()).changed == ("a.txt",)
    assert contents(work.host) == contents(g)


@in_event_loop
async def test_the_same_size_and_time_hide_nothing(work: Work) -> None:
    await work.copy_in()
    file = work.guest / "a.txt"
    before = file.stat()
    file.write_text("z\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await work.back()).changed == ("a.txt",)


@in_event_loop
async def test_a_touch_is_no_change(work: Work) -> None:
    await work.copy_in()
    os.utime(work.guest / "a.txt", (5, 5))
    before = (work.host / "a.txt").stat()
    (work.host / "b.txt").write_text("the host's\n")
    os.utime(work.guest / "b.txt", (5, 5))
    result = await work.back()
    assert result[:5] == ((), (), (), (), ())
    assert (work.host / "a.txt").stat() == before or result.bytes
    assert (work.host / "b.txt").read_text() == "the host's\n"


@in_event_loop
async def test_conflicts_lose_nothing(work: Work) -> None:
    await work.copy_in()
    h, g = work.host, work.guest
    (h / "a.txt").write_text("the host's\n")
    (g / "a.txt").write_text("the guest's\n")
    (h / "b.txt").unlink()
    (g / "b.txt").write_text("the guest's b\n")
    (h / "run.sh").write_text("#!/bin/true\n")
    (g / "run.sh").unlink()
    (h / "both").write_text("h")
    (g / "both").write_text("g")
    (h / "same").write_text("same")
    (g / "same").write_text("same")
    (h / "src/deep/f").write_text("alike")
    (g / "src/deep/f").write_text("alike")
    (h / "host-only").write_text("h")
    (h / "x").write_text("a file")
    (g / "x").mkdir()
    (g / "x/inner").write_text("in a folder")
    (h / ("a.txt" + CONFLICT_SUFFIX)).write_text("there already")
    result = await work.back()
    assert {line.partition(":")[0] for line in result.conflicts} == {
        "a.txt", "b.txt", "run.sh", "both", "x",
    }  # fmt: skip
    assert (h / "a.txt").read_text() == "the host's\n"
    assert (h / f"a.txt{CONFLICT_SUFFIX}").read_text() == "there already"
    assert (h / f"a.txt{CONFLICT_SUFFIX}-2").read_text() == "the guest's\n"
    assert not (h / "b.txt").exists()
    assert (h / f"b.txt{CONFLICT_SUFFIX}").read_text() == "the guest's b\n"
    assert (h / "run.sh").read_text() == "#!/bin/true\n"
    assert ((h / "both").read_text(), (h / f"both{CONFLICT_SUFFIX}").read_text()) == ("h", "g")
    assert (h / "x").read_text() == "a file"
    assert (h / f"x{CONFLICT_SUFFIX}/inner").read_text() == "in a folder"
    assert (h / "host-only").exists()
    assert not (await work.back()).conflicts  # told once


@in_event_loop
async def test_files_and_folders_change_places(work: Work) -> None:
    await work.copy_in()
    g = work.guest
    (g / "a.txt").unlink()
    (g / "a.txt").mkdir()
    (g / "a.txt/inner").write_text("inner")
    shutil.rmtree(g / "src")
    (g / "src").write_text("a file now")
    (g / "link").unlink()
    (g / "link").write_text("no link")
    (g / "b.txt").unlink()
    (g / "b.txt").symlink_to("link")
    result = await work.back()
    assert contents(work.host) == contents(g)
    assert not result.conflicts


@in_event_loop
async def test_what_a_hostile_guest_leaves(work: Work, tmp_path: Path) -> None:
    await work.copy_in()
    g, h = work.guest, work.host
    (g / "out").symlink_to(tmp_path / "outside")
    (g / "up").symlink_to("../../etc")
    os.mkfifo(g / "fifo")
    (g / "suid").write_text("")
    (g / "suid").chmod(0o6755)
    (g / "b.txt").unlink()
    os.mkfifo(g / "b.txt")
    (g / ".voidbox-sync-000000000000").write_text("mine")
    result = await work.back()
    assert {line.partition(":")[0] for line in result.skipped} == {
        "out", "up", "fifo", "b.txt", ".voidbox-sync-000000000000",
    }  # fmt: skip
    assert result.added == ("suid",)
    assert (h / "suid").stat().st_mode & 0o7777 == 0o755
    assert (h / "b.txt").read_text() == "b\n"
    assert not os.path.lexists(h / "out")
    # The host has put a link where a folder was.
    shutil.rmtree(h / "src")
    (h / "src").symlink_to(tmp_path / "outside")
    (g / "src/deep/f").write_text("written through a link?")
    (g / "src/new").write_text("and this?")
    (g / "src/deep/big").unlink()
    result = await work.back()
    assert os.listdir(tmp_path / "outside") == []
    assert len(result.failed) >= 2


@in_event_loop
async def test_what_could_not_be_copied_is_tried_again(work: Work) -> None:
    await work.copy_in()
    h, g = work.host, work.guest
    (g / "a.txt").write_text("the guest's\n")
    (g / "src/new").write_text("new")
    (g / "src/deep/f").unlink()
    os.rename(h / "src", h / "elsewhere")
    (h / "src").symlink_to("elsewhere")  # no link is followed: nothing below can be brought
    result = await work.back()
    assert {line.partition(":")[0] for line in result.failed} == {"src/new", "src/deep/f"}
    assert (result.changed, result.skipped) == (("a.txt",), ())
    assert str(result) == "0 added, 1 changed, 0 deleted, 2 failed"
    assert (await work.back()).failed == result.failed
    (h / "src").unlink()
    os.rename(h / "elsewhere", h / "src")
    result = await work.back()
    assert (result.added, result.deleted, result.failed) == (("src/new",), ("src/deep/f",), ())
    assert not any((await work.back())[:6])


@in_event_loop
async def test_a_file_that_is_lost_is_fetched_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await work.copy_in()
    (work.guest / "a.txt").write_text("the guest's\n")
    (work.guest / "b.txt").write_text("gone soon\n")

    async def losing(
        self: Download, path: str, host: object, files: list[Entry], limit_bytes: int
    ) -> None:
        (work.guest / "b.txt").unlink()
        for entry in files:
            code = "EIO" if entry.parts == ("a.txt",) else "ENOENT"
            self._leave_out(entry, RequestFailed(code, "a.txt: input/output error"))

    with monkeypatch.context() as patch:
        patch.setattr(Download, "some", losing)
        result = await work.back()
    assert result.failed == ("a.txt: input/output error",)
    assert result.skipped == ("b.txt: it was removed meanwhile",)
    result = await work.back()
    assert (result.changed, result.deleted) == (("a.txt",), ("b.txt",))


@in_event_loop
async def test_too_much(work: Work) -> None:
    await work.copy_in()
    before = contents(work.host)
    os.truncate(work.guest / "a.txt", 1 << 30)
    (work.guest / "b.txt").unlink()
    with pytest.raises(HostError, match="nothing was"):
        await work.back(limit_bytes=1 << 20)
    assert contents(work.host) == before


@in_event_loop
async def test_a_guest_that_dies(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.copy_in()
    before = contents(work.host)
    (work.guest / "a.txt").write_text("changed")
    (work.guest / "b.txt").unlink()
    fetch = copying._fetch

    async def dying(*arguments: object) -> object:
        work.box.endpoint.cut("it died")
        return await fetch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "_fetch", dying)
    with pytest.raises(AgentError):
        await work.back()
    assert contents(work.host) == before


@in_event_loop
async def test_a_host_folder_that_cannot_be_read(work: Work) -> None:
    work.host = work.host / "missing"
    with pytest.raises(ConfigError, match="cannot read"):
        await work.copy_in()


@pytest.mark.parametrize(
    "item",
    [
        None, {}, {"name": "../x", "type": "file"}, {"name": "a", "type": 5},
        {"name": "a", "type": "file", "size": "1"}, {"name": "a", "type": "file", "size": 1 << 70},
        {"name": "a", "type": "link", "target": 5}, {"name": "/a", "type": "file"},
        {"name": "a", "type": "file", "mode": True},
    ],
)  # fmt: skip
def test_listings_without_sense(item: object) -> None:
    with pytest.raises(AgentError):
        parse_listed(item)


def test_a_manifest_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "d").mkdir(parents=True)
    (folder / os.fsdecode(b"odd\xff\nname")).write_text("x")
    (folder / "d/link").symlink_to("zwölf")
    guest = {("a", "b"): GuestItem("file", 0o644, 1, 2, 3, 4)}
    written = Manifest(scan_host(str(folder)), guest)
    path = str(tmp_path / "workspace.json")
    written.save(path)
    assert Manifest.load(path) == written
    for text in ("", "{", "[]", '{"version": 9}', '{"version": 1, "host": [[]], "guest": []}'):
        Path(path).write_text(text)
        with pytest.raises(ConfigError, match="cannot tell"):
            Manifest.load(path)


# Both sides change at random: what either side changed is there afterwards, somewhere.

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.sampled_from(["1", "2", "3", None]), max_size=6)
STEPS = st.lists(st.tuples(PATHS, st.sampled_from(["x", "y", "dir", "gone"])), max_size=6)


def build(folder: Path, tree: dict[str, str | None]) -> None:
    folder.mkdir()
    for path, content in sorted(tree.items()):
        change(folder, path, content or "dir")


def change(folder: Path, path: str, what: str) -> None:
    at = folder / path
    for above in list(at.relative_to(folder).parents)[-2::-1]:
        if (folder / above).is_file():
            return
    if what == "gone":
        if at.is_dir():
            shutil.rmtree(at)
        elif at.exists():
            at.unlink()
    elif what == "dir":
        if not at.exists():
            at.mkdir(parents=True)
    elif not at.is_dir():
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(what)


def guest_items(folder: Path) -> dict[tuple[str, ...], GuestItem]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[path.relative_to(folder).parts] = GuestItem(
            kind_of(status.st_mode), status.st_mode & 0o777, status.st_size,
            status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
        )  # fmt: skip
    return found


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(TREES, STEPS, STEPS)
def test_nothing_is_lost(
    tree: dict[str, str | None],
    guest_steps: list[tuple[str, str]],
    host_steps: list[tuple[str, str]],
) -> None:
    base_folder = Path(tempfile.mkdtemp(prefix="vbw-"))
    host, guest = base_folder / "host", base_folder / "guest"
    try:
        build(host, tree)
        build(guest, tree)
        original = files(host)
        base = Manifest(scan_host(str(host)), guest_items(guest))
        for path, what in guest_steps:
            change(guest, path, what)
        for path, what in host_steps:
            change(host, path, what)
        hosts, guests, now = files(host), files(guest), guest_items(guest)
        changes = compare(base, now)
        staging = Staging(str(host))
        staging.make()
        for parts in changes.files:
            staged = host.joinpath(staging.name, *parts)
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(guest.joinpath(*parts), staged)
        merged_by = Merge(staging.root_fd, staging.fd, base, now)
        merged_by.apply(changes)
        staging.close()
        merged = files(host)
        if not host_steps:
            assert merged == guests
            assert contents(host).keys() == contents(guest).keys()
        if not guest_steps:
            assert merged == hosts
        for name, text in hosts.items():
            if original.get(name) != text and guests.get(name) != text:
                assert merged.get(name) == text, "the host's change is gone"
        for name, text in guests.items():
            if original.get(name) != text:
                assert text in merged.values(), "the guest's change is gone"
        failed = merged_by.outcome.failed
        assert not failed, failed
    finally:
        shutil.rmtree(base_folder)


def test_a_task_that_is_cancelled_leaves_nothing(work: Work) -> None:
    async def main() -> None:
        await work.copy_in()
        (work.guest / "a.txt").write_text("x")
        task = asyncio.create_task(work.back())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (work.host / "a.txt").read_text() == "a\n"


def test_a_merge_that_has_begun_is_finished(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, begun, saved = Merge.apply, threading.Event(), []

    def slow(self: Merge, changes: Changes) -> None:
        begun.set()
        time.sleep(0.05)
        apply(self, changes)

    async def main() -> None:
        await work.copy_in()
        for name in ("a.txt", "b.txt"):
            (work.guest / name).write_text("x")
        monkeypatch.setattr(Merge, "apply", slow)
        path = str(work.host)
        back = copying.copy_back(work.box.session, path, work.base, 20, save=saved.append)
        task = asyncio.create_task(back)
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ((work.host / "a.txt").read_text(), (work.host / "b.txt").read_text()) == ("x", "x")
    assert [base.host[("a.txt",)].size for base in saved] == [1]
    assert not [name for name in os.listdir(work.host) if name.startswith(".voidbox-sync")]


@in_event_loop
async def test_a_base_that_cannot_be_kept(work: Work) -> None:
    await work.copy_in()
    (work.guest / "a.txt").write_text("x")

    def fail(base: Manifest) -> None:
        raise HostError("cannot write workspace.json: no space left", 28)

    with pytest.raises(copying.NotSaved, match="the changes are in"):
        await copying.copy_back(work.box.session, str(work.host), work.base, 20, save=fail)
    assert (work.host / "a.txt").read_text() == "x"


def test_staging_follows_no_link(tmp_path: Path) -> None:
    workspace, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (workspace, elsewhere):
        folder.mkdir()
    staging = Staging(str(workspace))
    staging.make()
    os.rename(workspace / staging.name, workspace / "moved")
    (workspace / staging.name).symlink_to(elsewhere)
    with HostFolder.of(os.dup(staging.fd), "staging") as host:
        host.write_file(("d", "f"), b"fetched", 0o600, 0)
    staging.close()
    assert os.listdir(elsewhere) == []
    assert (workspace / "moved/d/f").read_bytes() == b"fetched"


def test_staging_that_was_left_behind_is_removed(tmp_path: Path) -> None:
    old = tmp_path / ".voidbox-sync-0123456789ab"
    (old / "d").mkdir(parents=True)
    (tmp_path / ".voidbox-sync-mine").mkdir()
    used = Staging(str(tmp_path))
    used.make()
    new = Staging(str(tmp_path))
    new.make()
    assert set(os.listdir(tmp_path)) == {used.name, new.name, ".voidbox-sync-mine"}
    used.close()
    new.close()
    new.close()
    assert os.listdir(tmp_path) == [".voidbox-sync-mine"]


def test_what_is_too_deep_is_left_out() -> None:
    item = GuestItem("folder", 0o755, 0, 0, 0, 0)
    now = {("d",) * depth: item for depth in range(1, 1200)}
    changes = compare(Manifest({}, {}), now)
    assert max(map(len, changes.folders)) == 200
    assert len(changes.skipped) == 999
    assert "more than 200 folders" in changes.skipped[0]


@in_event_loop
async def test_a_folder_stays_writable_for_its_owner(work: Work) -> None:
    await work.copy_in()
    (work.guest / "src/new").write_text("x")
    (work.guest / "src").chmod(0o550)
    assert (await work.back()).added == ("src/new",)
    assert (work.host / "src").stat().st_mode & 0o777 == 0o750  # or nothing could come into it


@in_event_loop
async def test_a_change_of_the_host_is_seen_by_its_contents(work: Work) -> None:
    await work.copy_in()
    for name in ("a.txt", "b.txt"):
        file = work.host / name
        before = file.stat()
        file.write_text("h\n")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (work.guest / "a.txt").write_text("the guest's\n")
    (work.guest / "b.txt").unlink()
    assert len((await work.back()).conflicts) == 2
    assert (work.host / "a.txt").read_text() == (work.host / "b.txt").read_text() == "h\n"


@in_event_loop
async def test_what_was_never_copied_in_is_not_replaced(work: Work) -> None:
    os.mkfifo(work.host / "fifo")
    os.mkfifo(work.host / "other")
    await work.copy_in()
    (work.guest / "fifo").write_text("x")
    (work.guest / "other").symlink_to("a.txt")
    result = await work.back()
    assert {line.partition(":")[0] for line in result.conflicts} == {"fifo", "other"}
    assert (work.host / "fifo").is_fifo() and (work.host / "other").is_fifo()
    assert (work.host / f"fifo{CONFLICT_SUFFIX}").read_text() == "x"


@in_event_loop
async def test_permissions_of_the_host_stay(work: Work) -> None:
    await work.copy_in()
    (work.host / "a.txt").chmod(0o600)
    (work.guest / "a.txt").write_text("changed\n")
    (work.guest / "a.txt").chmod(0o755)
    (work.host / "both").write_text("same")
    (work.host / "both").chmod(0o600)
    (work.guest / "both").write_text("same")
    (work.guest / "new").write_text("x")
    (work.guest / "new").chmod(0o666)
    before = os.umask(0o027)
    try:
        await work.back()
    finally:
        os.umask(before)
    modes = [(work.host / name).stat().st_mode & 0o777 for name in ("a.txt", "both", "new")]
    assert modes == [0o600, 0o600, 0o640]
    assert (work.host / "a.txt").read_text() == "changed\n"


@in_event_loop
async def test_the_limit_is_for_what_comes_not_for_what_was_announced(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await work.copy_in()
    before = contents(work.host)
    for number in range(20):
        (work.guest / f"small{number}").write_bytes(bytes(60_000))
    (work.guest / "big").write_bytes(bytes(3_000_000))
    list_all = copying._list

    async def lying(session: Session, limit_s: float) -> object:
        found, unread = await list_all(session, limit_s)
        return {parts: item._replace(size=1) for parts, item in found.items()}, unread

    monkeypatch.setattr(copying, "_list", lying)
    for limit_bytes in (1_000_000, 3_500_000):
        with pytest.raises(HostError, match="which is the limit"):
            await work.back(limit_bytes=limit_bytes)
    assert contents(work.host) == before
    assert len((await work.back(limit_bytes=4_600_000)).added) == 21


@in_event_loop
async def test_a_folder_that_cannot_be_listed(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.copy_in()
    (work.guest / "a.txt").write_text("changed\n")
    (work.guest / "b.txt").unlink()
    list_all = copying._list

    async def failing(session: Session, limit_s: float) -> object:
        found, _ = await list_all(session, limit_s)
        shown = {parts: item for parts, item in found.items() if parts[:2] != ("src", "deep")}
        shown[("src", "deep")] = found[("src", "deep")]._replace(mode=0)
        return shown, {("src", "deep"): "src/deep: input/output error"}

    with monkeypatch.context() as patch:
        patch.setattr(copying, "_list", failing)
        result = await work.back()
    assert result[:3] == ((), ("a.txt",), ("b.txt",))
    assert result.failed == ("src/deep: input/output error",)
    assert (work.host / "src/deep/big").exists()
    (work.guest / "src/deep/f").unlink()
    assert (await work.back()).deleted == ("src/deep/f",)
    assert contents(work.host) == contents(work.guest)


@in_event_loop
async def test_staging_is_not_copied_in(work: Work) -> None:
    (work.host / ".voidbox-sync-0123456789ab").mkdir()
    (work.host / ".voidbox-sync-0123456789ab/f").write_text("of a run that crashed")
    (work.host / "src/.voidbox-sync-notes").write_text("the user's")
    await work.copy_in()
    assert ".voidbox-sync-0123456789ab" not in os.listdir(work.guest)
    assert (work.guest / "src/.voidbox-sync-notes").exists()
    (work.guest / "src/.voidbox-sync-notes").unlink()
    assert (await work.back()).deleted == ("src/.voidbox-sync-notes",)  # and the old one is removed


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/secret").write_text("x")

    def refuse(fd: int) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "digest_of", refuse)
    with pytest.raises(ConfigError, match="d/secret: Permission denied"):
        scan_host(str(tmp_path))


@in_event_loop
async def test_files_that_nobody_may_read(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.copy_in()
    for name, size in (("none", 5), ("big", 100_000)):
        (work.guest / name).write_bytes(bytes(size))
        (work.guest / name).chmod(0)
    (work.guest / "a.txt").chmod(0o200)
    staged = set()
    look = merge.look

    def looking(folder_fd: int, name: str) -> HostItem | None:
        found = look(folder_fd, name)
        staged.add((name, found.mode if found is not None else None))
        return found

    monkeypatch.setattr(merge, "look", looking)
    result = await work.back()
    assert (result.added, result.failed) == (("big", "none"), ())
    assert {("none", 0o600), ("big", 0o600), ("a.txt", 0o600)} <= staged
    assert [(work.host / name).stat().st_mode & 0o777 for name in ("none", "big", "a.txt")] == [
        0o400, 0o400, 0o600,
    ]  # fmt: skip


@in_event_loop
async def test_what_replaces_a_file_is_on_the_disk(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await work.copy_in()
    (work.guest / "a.txt").write_text("changed\n")
    (work.guest / "new").write_text("new\n")
    synced = []

    def sync(fd: int) -> None:
        synced.append(os.pread(fd, 100, 0))

    monkeypatch.setattr(os, "fsync", sync)
    await work.back()
    assert synced == [b"changed\n"]


@in_event_loop
async def test_nothing_is_deleted_before_its_replacement_is_there(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.host / "out").symlink_to("/etc/hostname")
    (work.host / "was-link").symlink_to("a.txt")
    await work.copy_in()
    g = work.guest
    os.rename(g / "out", g / "moved")  # which cannot come back
    (g / "empty").rmdir()
    for name in ("empty", "was-link"):
        if name == "was-link":
            (g / name).unlink()
        (g / name).write_text("a file now")

    async def losing(self: Download, path: str, host: object, files: list[Entry], _: int) -> None:
        for entry in files:
            self._leave_out(entry, RequestFailed("EIO", "input/output error"))

    with monkeypatch.context() as patch:
        patch.setattr(Download, "some", losing)
        result = await work.back()
    assert result.deleted == ()
    assert result.conflicts == ("out: deleted in the sandbox: a link that cannot come back: kept",)
    assert os.readlink(work.host / "was-link") == "a.txt"
    assert os.readlink(work.host / "out") == "/etc/hostname"
    assert (work.host / "empty").is_dir()
    assert set((await work.back()).changed) == {"empty", "was-link"}


@in_event_loop
async def test_a_folder_that_is_kept_is_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.copy_in()
    (work.host / "src/mine").write_text("the host's")
    shutil.rmtree(work.guest / "src")
    (work.guest / "empty").rmdir()
    rmdir = os.rmdir

    def refusing(path: str, *, dir_fd: int) -> None:
        if path == "empty":
            raise PermissionError(13, "Permission denied")
        rmdir(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refusing)
        result = await work.back()
    assert result.conflicts == ("src: deleted in the sandbox, not empty here: kept",)
    assert result.failed == ("empty: Permission denied",)
    assert (await work.back()).deleted == ("empty",)


@in_event_loop
async def test_a_folder_that_is_a_file_on_the_host_now(work: Work) -> None:
    await work.copy_in()
    shutil.rmtree(work.host / "src")
    (work.host / "src").write_text("the host's")
    (work.guest / "src/deep/f").write_text("the guest's")
    (work.guest / "src/new").mkdir()
    result = await work.back()
    assert result.failed == ()
    assert result.conflicts == (
        "src: a folder in the sandbox, a file here: put into src.voidbox-conflict",
    )
    assert (work.host / "src").read_text() == "the host's"
    assert (work.host / "src.voidbox-conflict/deep/f").read_text() == "the guest's"
    assert (work.host / "src.voidbox-conflict/new").is_dir()


@in_event_loop
async def test_a_list_without_end(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    await work.copy_in()

    async def endless(*arguments: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(copying, "read_list", endless)
    monkeypatch.setattr(copying, "_LIST_S", 0.02)
    with pytest.raises(AgentError, match="no end"):
        await work.back()


@in_event_loop
async def test_a_list_of_nothing_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndlessCall:
        is_over = is_lost = False

        def __enter__(self) -> EndlessCall:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        async def batch(self, limit_s: float) -> list[Event]:
            return [Event(0, {"entries": []}, 0)] * 100

    class Agent:
        async def call(self, *_: object) -> EndlessCall:
            return EndlessCall()

    monkeypatch.setattr(listing, "LISTED_BYTES_MAX", 1 << 20)
    with pytest.raises(AgentError, match="more names"):
        await listing.read_list(Agent(), {"path": "/x"}, 1, lambda item: None)
