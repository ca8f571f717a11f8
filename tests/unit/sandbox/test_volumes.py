"""Volumes: what users say of them, where they are kept, and how a machine gets them."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.sandbox.owned import Sandboxes
from tests.unit.sandbox.states import wanted
from voidbox import volumes
from voidbox.errors import ConfigError, HostError
from voidbox.sandbox.process import recipe
from voidbox.sandbox.volumes.attach import attach
from voidbox.sandbox.volumes.spec import VolumeSpec, parse_volume, parse_volumes, writes_named
from voidbox.sandbox.volumes.store import VolumeStore
from voidbox.vmm.config import DiskConfig, MachineConfig, ShareConfig


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(str(tmp_path / "state"))


@contextmanager
def had(path: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """A machine has the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


# --- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache:/c", VolumeSpec("cache", "/c")),
        ("cache:/c:ro", VolumeSpec("cache", "/c", True)),
        ("/data:/d:rw", VolumeSpec("/data", "/d")),
        ("/da:ta:/d", VolumeSpec("/da:ta", "/d")),
        ("./x:/d", VolumeSpec("/work/x", "/d")),
        (".:/d", VolumeSpec("/work", "/d")),
        ("..:/d", VolumeSpec("/", "/d")),
        ("a/b:/d", VolumeSpec("/work/a/b", "/d")),
        ("~:/d", VolumeSpec("/home/me", "/d")),
        ("~/x:/d", VolumeSpec("/home/me/x", "/d")),
        ("c:/a//b/./c/../d/", VolumeSpec("c", "/a/b/d")),
        ("c://a b", VolumeSpec("c", "/a b")),
        ("c:/process", VolumeSpec("c", "/process")),
    ],
)
def test_what_a_volume_is(text: str, expected: VolumeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/work")
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_volume(text) == expected
    assert parse_volume(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "give SOURCE:TARGET"),
        ("cache", "give SOURCE:TARGET"),
        ("cache:", "give SOURCE:TARGET"),
        (":/x", "give SOURCE:TARGET"),
        ("cache:ro", "give SOURCE:TARGET"),
        ("cache:x", "'x' is no absolute path"),
        ("ca che:/x", "'ca che' is no volume's name; a folder of this host has a / in it"),
        ("cache:/", "is the guest's own"),
        ("cache:/x/..", "is the guest's own"),
        ("cache:/proc", "is the guest's own"),
        ("cache:/dev/x", "is the guest's own"),
        ("cache:/x/../sys/y", "is the guest's own"),
        ("cache:/.voidbox", "is the guest's own"),
        ("cache:/a\nb", "cannot have such a path"),
        ("cache:/" + "x" * 2000, "cannot have such a path"),
    ],
)
def test_what_is_no_volume(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_volume(text)


def test_several_volumes(tmp_path: Path) -> None:
    folder = str(tmp_path)
    found = parse_volumes([f"{folder}:/a", f"{folder}:/b:ro", "cache:/a/c"])
    assert [spec.target for spec in found] == ["/a", "/b", "/a/c"]
    assert writes_named(["cache:/a"])
    assert not writes_named([f"{folder}:/a", "cache:/a:ro"]) and not writes_named([])
    for texts, why in (
        ([f"{folder}:/a", "cache:/a/"], "two volumes cannot both be at /a"),
        (["cache:/a", "cache:/b"], "give once the volume cache"),
        ([f"{folder}/none:/a"], "the volume's folder .*none is none: make it first"),
        (["/:/a"], "cannot share /"),
        ("cache:/a", "give a list"),
        ([7], "give text"),
    ):
        with pytest.raises(ConfigError, match=why):
            parse_volumes(texts)  # type: ignore[arg-type]
    parse_volumes(["cache:/workspaces"], copied_to="/workspace")
    for target in ("/workspace", "/workspace/x"):
        with pytest.raises(ConfigError, match="would be copied back with it"):
            parse_volumes([f"cache:{target}"], copied_to="/workspace")


# --- the store ----------------------------------------------------------------------------------


def test_a_volume_from_its_making_to_its_end(store: VolumeStore, tmp_path: Path) -> None:
    assert store.list() == []
    made = store.create("cache", (1 << 30) + 100)
    assert (made.name, made.size_bytes, made.used_bytes) == ("cache", 1 << 30, 0)
    assert not made.is_in_use and made.created_at > 1e9
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(made.path)).st_mode) == 0o700
    assert store.create("another", 1 << 30).name == "another"
    with pytest.raises(ConfigError, match="there is a volume cache already"):
        store.create("cache", 1 << 30)
    assert [volume.name for volume in store.list()] == ["another", "cache"]
    assert store.find("cache") == made
    store.remove("cache")
    assert not os.path.exists(os.path.dirname(made.path))
    with pytest.raises(ConfigError, match="no volume 'cache': voidbox volume create cache makes"):
        store.find("cache")
    with pytest.raises(ConfigError, match="no volume"):
        store.remove("cache")


@pytest.mark.parametrize("name", ["", "lock", "../x", "a/b", ".hidden", "-x", "a b", "x" * 64, "ä"])
def test_names_that_no_volume_has(store: VolumeStore, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a volume's name"):
        store.create(name, 1 << 30)
    with pytest.raises(ConfigError, match="no volume"):
        store.find(name)
    assert store.list() == []


@pytest.mark.parametrize("size", [0, 1 << 20, (16 << 40) + 4096])
def test_sizes_that_no_volume_has(store: VolumeStore, size: int) -> None:
    with pytest.raises(ConfigError, match="choose 16M to 16T"):
        store.create("x", size)


def test_one_writes_or_several_read(store: VolumeStore) -> None:
    path = store.create("cache", 1 << 30).path
    with had(path):
        assert store.find("cache").is_in_use
        for is_read_only in (True, False):
            with pytest.raises(ConfigError, match="another sandbox has the volume cache"):
                store.check_free("cache", is_read_only=is_read_only)
        with pytest.raises(ConfigError, match="a sandbox has the volume cache: stop it first"):
            store.remove("cache")
    with had(path, fcntl.LOCK_SH):
        assert store.find("cache").is_in_use
        assert store.check_free("cache", is_read_only=True).path == path
        with pytest.raises(ConfigError, match="several can have it with :ro"):
            store.check_free("cache", is_read_only=False)
    assert store.check_free("cache", is_read_only=False).name == "cache"
    assert not store.find("cache").is_in_use


def test_what_killed_makers_left_is_deleted(store: VolumeStore) -> None:
    for name in (".new-a", ".removed-b"):
        os.mkdir(f"{store.path}/{name}")
        Path(store.path, name, "disk.img").touch()
    store.create("a", 1 << 30)
    assert sorted(os.listdir(store.path)) == ["a", "lock"]


def test_a_damaged_description_costs_nothing(store: VolumeStore) -> None:
    made = store.create("cache", 1 << 30)
    Path(made.path).with_name("volume.json").write_text("{")
    (found,) = store.list()
    assert (found.name, found.size_bytes) == ("cache", 1 << 30)
    store.remove("cache")


def test_many_make_the_same_volume_at_once(store: VolumeStore) -> None:
    outcomes: list[str] = []

    def make() -> None:
        try:
            outcomes.append(store.create("cache", 1 << 30).name)
        except ConfigError:
            outcomes.append("taken")

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["cache", *["taken"] * 7]


def test_a_full_disk_leaves_nothing(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "truncate", fail)
    with pytest.raises(HostError, match="cannot make .*cache: No space left"):
        store.create("cache", 1 << 30)
    monkeypatch.undo()
    assert store.list() == [] and store.create("cache", 1 << 30)


def test_programs_make_and_remove_them(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    made = volumes.create("cache", size="64M", state_folder=state)
    assert made.size_bytes == 64 << 20
    assert volumes.create("big", state_folder=state).size_bytes == 8 << 30
    assert [volume.name for volume in volumes.list(state_folder=state)] == ["big", "cache"]
    assert volumes.find("cache", state_folder=state) == made
    volumes.remove("cache", state_folder=state)
    with pytest.raises(ConfigError, match="disk_size=True|size"):
        volumes.create("x", size=True, state_folder=state)


# --- the machine --------------------------------------------------------------------------------


def test_a_machine_gets_them(store: VolumeStore, tmp_path: Path) -> None:
    made = store.create("cache", 1 << 30)
    state = str(tmp_path / "state")
    base = MachineConfig("/k", disks=(DiskConfig("/mine"),))
    specs = parse_volumes([f"{tmp_path}:/data:ro", "cache:/cache"])
    config = attach(base, specs, state)
    assert config.shares == (ShareConfig(str(tmp_path), "voidbox-volume0", True, "/data"),)
    assert config.disks == (
        DiskConfig("/mine"),
        DiskConfig(made.path, serial="voidbox-volume1", target="/cache"),
    )
    for share in config.shares:
        share.validate()
    with had(made.path), pytest.raises(ConfigError, match="another sandbox has the volume cache"):
        attach(base, specs, state)


def test_a_record_keeps_them(store: VolumeStore, tmp_path: Path) -> None:
    made = store.create("cache", 1 << 30)
    texts = tuple(map(str, parse_volumes(["cache:/c", f"{tmp_path}:/d"])))
    record = wanted("x", volumes=texts)
    assert record.to_json()["volumes"] == ["cache:/c", f"{tmp_path}:/d"]
    config = recipe.machine_config(record, "/v", "/u", str(tmp_path / "state"))
    assert [disk.path for disk in config.disks] == [made.path]
    assert [share.target for share in config.shares] == ["/d"]
    store.remove("cache")
    with pytest.raises(ConfigError, match="no volume 'cache'"):
        recipe.machine_config(record, "/v", "/u", str(tmp_path / "state"))


def test_who_has_a_volume_is_ended_politely(sandboxes: Sandboxes) -> None:
    """A kill would be a power cut for its file system."""
    VolumeStore(sandboxes.store.folder).create("cache", 1 << 30)
    record = sandboxes.launch(volumes=("cache:/c",))
    sandboxes.control(record).request("set_timeout", timeout=0.01)
    ended = sandboxes.wait_ended(record)
    assert (ended.state.value, ended.reason) == ("stopped", "its time limit ran out")
    assert "asking the guest's agent to shut down" in sandboxes.file(record, "owner.log")
