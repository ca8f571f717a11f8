"""State folders that are damaged, newer, full, or not ours."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.sandbox.states import ROOT, allocations, check_whole, wanted
from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.sandbox.state.store import Event, Store
from voidbox.storage import durable

GARBAGE = [
    b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"\0" * 300, b"[" * 100_000, b'{"version": 0}',
    b'{"version": "1"}', b'{"version": 1}', b'{"version": true}', b'{"version": 1, "x": NaN}',
    b'{"version": 1, "cids": {"3": "x"}}', b" " * (17 << 20),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def store(folder: str) -> Iterator[Store]:
    with Store(folder) as store:
        yield store


def aside(folder: str) -> list[Path]:
    return sorted(Path(folder, "set-aside").iterdir())


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_corrupted_record_is_set_aside_with_its_logs(
    folder: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(folder) as store:
        good, bad = store.create(wanted("good")), store.create(wanted("bad"))
        Path(store.path(bad.id, "console.log")).write_text("what it said")
        store.update(bad.id, Event.FAILED)
    Path(store.path(bad.id, "state.json")).write_bytes(garbage)
    assert [record.id for record in store.list()] == [good.id]
    (kept,) = aside(folder)
    assert (kept / "state.json").read_bytes() == garbage
    assert (kept / "console.log").read_text() == "what it said"
    (said,) = caplog.messages
    assert said.startswith(f"{store.path(bad.id, 'state.json')} cannot be read: ")
    assert said.endswith(f"set aside as {kept}")
    assert "\n" not in said
    with pytest.raises(ConfigError, match="no sandbox"):
        store.read(bad.id)
    caplog.clear()
    with store:
        assert store.create(wanted("bad")).cid == 4  # its name and its CID are free again
    assert len(aside(folder)) == 1
    assert not caplog.messages


@pytest.mark.parametrize("changes", [{"cid": 0}, {"cid": 1 << 40}, {"ports": [80, 70000]}])
def test_an_index_is_made_anew_whatever_number_a_record_has(
    folder: str, changes: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with Store(folder) as store:
        made = store.create(wanted())
        damaged = json.dumps(made.to_json() | changes)
        Path(store.path(made.id, "state.json")).write_text(damaged)
        Path(folder, "allocations", "allocations.json").unlink()
        others = [Store(folder).create(wanted()) for _ in range(2)]
        assert len({one.cid for one in others}) == 2
    assert not caplog.messages and not Path(folder, "set-aside").exists()


def test_a_record_of_another_or_none_at_all(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with Store(folder) as store:
        one, two, three = [store.create(wanted(name)) for name in ("one", "two", "three")]
    Path(store.path(two.id, "state.json")).write_text(json.dumps(one.to_json()))
    Path(store.path(three.id, "state.json")).unlink()
    assert [record.id for record in store.clean()] == [one.id]
    assert len(aside(folder)) == 2
    assert "it is another sandbox's" in caplog.text
    assert "it is missing" in caplog.text


def test_a_corrupted_record_of_one_that_lives_heals(
    store: Store, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = store.create(wanted("web"))
    store.adopt(made.id)
    running = store.update(made.id, Event.BOOTED, metadata={"a": "b"})
    port = store.allocate_port(made.id)
    Path(store.path(made.id, "state.json")).write_text("{")
    Path(folder, "allocations", "allocations.json").write_text("{")
    with Store(folder) as other:
        assert other.list() == []
        assert other.clean() == []
        assert "the sandbox runs, and will write it" in caplog.text
        with pytest.raises(ConfigError, match="no sandbox web"):
            other.read("web")
        assert other.is_alive(made.id)
        healed = store.update(made.id, user="me")
        assert healed == running._replace(user="me", ports=(port,))
        assert other.list() == [healed]
        assert other.clean() == []
        assert allocations(folder)["cids"] == {"3": made.id}
    assert len(aside(folder)) == 2


@pytest.mark.parametrize("garbage", [None, *GARBAGE], ids=range(len(GARBAGE) + 1))
def test_corrupted_allocations_are_made_anew_from_the_records(
    store: Store, folder: str, garbage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    ended, first, second = [store.create(wanted()) for _ in range(3)]
    ports = [store.allocate_port(first.id), store.allocate_port(second.id)]
    store.update(ended.id, Event.ENDED)
    path = Path(folder, "allocations", "allocations.json")
    if garbage is None:
        path.unlink()
    else:
        path.write_bytes(garbage)
    assert store.create(wanted()).cid == 3
    assert store.allocate_port(first.id) not in ports
    assert allocations(folder)["cids"].items() >= {"4": first.id, "5": second.id}.items()
    if garbage is None:
        assert not caplog.messages
    else:
        (kept,) = aside(folder)
        assert kept.read_bytes() == garbage
        assert caplog.messages[0].endswith(f"set aside as {kept}, made anew")


@pytest.mark.parametrize(
    "act",
    [
        Store.clean,
        lambda store: store.allocate_port(store.list()[0].id),
        lambda store: store.rename(store.list()[0].id, "other"),
        lambda store: store.update(store.list()[0].id, Event.ENDED),
    ],
)
def test_whoever_comes_first_makes_allocations_anew(
    store: Store, folder: str, act: Callable[[Store], object]
) -> None:
    store.create(wanted())
    Path(folder, "allocations", "allocations.json").write_text("{")
    act(store)
    store.clean()
    live = [record for record in store.list() if not record.state.is_final]
    assert allocations(folder)["cids"] == {str(record.cid): record.id for record in live}


def test_a_newer_folder_is_left_alone(folder: str) -> None:
    with Store(folder) as store:
        made = store.create(wanted())
    path = Path(folder, "allocations", "allocations.json")
    before = path.read_text()
    path.write_text('{"version": 2, "leases": {}}')
    pattern = r"was written by a newer voidbox \(version 2\): upgrade, or name another folder with"
    with pytest.raises(ConfigError, match=pattern):
        Store(folder)
    for known in (store, Store(folder, is_known=True)):
        with pytest.raises(ConfigError, match=pattern):
            known.create(wanted())
    with pytest.raises(ConfigError, match=pattern):
        store.clean()
    path.write_text(before)
    state = Path(store.path(made.id, "state.json"))
    state.write_text('{"version": 7}')
    for act in (store.list, store.clean, lambda: store.read(made.id), lambda: store.read("x")):
        with pytest.raises(ConfigError, match=r"newer voidbox \(version 7\)"):
            act()
    assert state.read_text() == '{"version": 7}'
    assert not os.path.exists(f"{folder}/set-aside")


def test_folders_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/none"), Path("/a\0b")):
        with pytest.raises(ConfigError, match="cannot use .*; name another folder with VOIDBOX_S"):
            Store(str(path))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to .*/open: chmod 700 it"):
        Store(str(tmp_path / "open"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        Store(str(tmp_path / "mine"))


def test_a_folder_that_is_gone_meanwhile(store: Store, folder: str) -> None:
    made = store.create(wanted())
    os.rename(folder, f"{folder}-moved")
    for act in (store.list, store.clean, lambda: store.update(made.id, user="x"),
                lambda: store.create(wanted())):  # fmt: skip
        with pytest.raises(VoidboxError, match="No such file or directory"):
            act()


def test_what_a_file_holds_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, rename = [], os.rename
    monkeypatch.setattr(
        "os.fsync", lambda fd: done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).parent.name)
    )
    monkeypatch.setattr("os.rename", lambda *names: (done.append("its name"), rename(*names)))
    (tmp_path / "above" / "here").mkdir(parents=True)
    durable.write_json(str(tmp_path / "above" / "here" / "file"), {})
    assert done == ["here", "its name", "above"]


def test_a_folder_that_may_not_stay(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail(source: str, target: str) -> None:
        if os.path.dirname(target) == f"{folder}/sandboxes":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(HostError, match="Input/output error"):
        store.create(wanted())
    monkeypatch.undo()
    assert store.list() == []
    assert check_whole(folder) == []


def test_a_description_that_is_too_large(store: Store, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"may have 16 MiB, not .* pass large values as files"):
        store.create(wanted(envs={"A": "x" * (16 << 20)}))
    assert store.list() == []
    assert check_whole(folder) == []


def _out_of_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _out_of_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


@pytest.mark.parametrize("limit", [_out_of_descriptors, _out_of_file_size])
def test_limits_of_the_process(folder: str, limit: Callable[[], None]) -> None:
    """Nothing is set aside, lost or half done because something else ran out."""
    with Store(folder) as store:
        made = store.create(wanted("old"))
        store.update(made.id, Event.ENDED, crash="x" * 1000)
    before = store.list()
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.unit.sandbox import states, test_store_bad_disk as t\n"
        "import logging, shutil\n"
        "store = t.Store(sys.argv[1])\n"
        f"t.{limit.__name__}()\n"
        "for act in (store.list, store.clean, lambda: store.create(states.wanted('web')),\n"
        "            lambda: store.update(sys.argv[2], user='me')):\n"
        "    try: act()\n"
        "    except t.HostError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, folder, made.id],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = found.stdout.splitlines()
    if limit is _out_of_descriptors:
        assert len(said) == 4
        assert all("Too many open files" in line for line in said)
    else:
        assert len(said) == 2
        assert all("cannot write" in line and "File too large" in line for line in said)
    assert check_whole(folder) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    options = "size=160k,mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "voidbox-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs: run the tests as root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(small_disk / "state")
    caplog.set_level(logging.WARNING)
    with Store(folder) as store:
        made = [store.create(wanted("old")), store.create(wanted("killed"))]
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        for _ in range(3):
            with pytest.raises(HostError, match="No space left on device"):
                store.create(wanted("new"))
        with pytest.raises(HostError, match="No space left on device"):
            store.update(made[0].id, Event.ENDED)
        with pytest.raises(HostError, match="No space left on device"):
            store.allocate_port(made[0].id)
        assert store.list() == made
    assert store.clean() == []  # it cannot be written, and is said
    assert "cannot clean up after killed" in caplog.text
    assert store.list() == made
    store.remove(made[0].id)  # makes room
    assert [record.name for record in store.clean()] == ["killed"]
    filler.unlink()
    with store:
        assert store.create(wanted("new")).cid == 3
    assert [record.name for record in check_whole(folder)] == ["killed", "new"]


def test_a_full_disk_from_the_start(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb") as file:
        file.write(bytes(1 << 20))
    with pytest.raises(VoidboxError, match="No space left on device"):
        Store(str(small_disk / "state")).create(wanted())


def test_allocations_where_an_older_voidbox_had_them_give_way(folder: str) -> None:
    with Store(folder) as store:
        first = store.create(wanted())
        os.rename(f"{folder}/allocations/allocations.json", f"{folder}/allocations.json")
        second = store.create(wanted())
        assert allocations(folder)["cids"] == {str(r.cid): r.id for r in (first, second)}
        assert not os.path.exists(f"{folder}/allocations.json")
