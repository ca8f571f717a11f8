"""What a snapshot says of its sandbox, and which sandboxes may be saved, or leave a template."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.states import wanted
from voidbox.errors import ConfigError
from voidbox.nat.config import NatConfig
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots import rests_on, templates
from voidbox.sandbox.snapshots.record import FORK, SNAPSHOT, SnapshotRecord
from voidbox.sandbox.snapshots.restored import record_of
from voidbox.sandbox.snapshots.shelf import Shelf
from voidbox.storage.durable import Corrupted
from voidbox.version import __version__
from voidbox.vmm.config import DiskConfig, MachineConfig

ID = "0123456789ab"


def snapshot_of(**values: Any) -> SnapshotRecord:
    sandbox = wanted("web", id=ID, **values)
    return SnapshotRecord(ID, "base", SNAPSHOT, 1.5, "", {"/disk": "1:2"}, __version__, sandbox)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sandbox": None}, {"files": []}, {"files": {"/disk": 5}}, {"name": None}, {"parent": 5},
        {"created_at": True}, {"created_at": None}, {"created_at": "1"}, {"id": "x"},
        {"name": "../x"}, {"kind": "thing"}, {"created_at": 1e999},
    ],
)  # fmt: skip
def test_what_is_no_description(tmp_path: Path, wrong: dict[str, Any]) -> None:
    whole = snapshot_of()
    path = tmp_path / records.FILE
    path.write_bytes(whole.encode())
    assert records.load(str(tmp_path)) == whole
    # JSON has no Infinity, but numbers that are as large.
    path.write_text(json.dumps(json.loads(whole.encode()) | wrong).replace("Infinity", "1e999"))
    with pytest.raises(Corrupted):
        records.load(str(tmp_path))


def test_what_a_copy_does_not_take_over() -> None:
    net = {"allow": ["*"], "publish": ["127.0.0.1:9001:80"], "pcap": "/tmp/pcap"}
    found = record_of(
        snapshot_of(
            net=net, secret_envs=("KEY",), is_owned=True, is_pooled=True, removes_itself=True,
            timeout_s=5.0, idle_timeout_s=5.0, reason="it ended", workspace="/w",
        )
    )  # fmt: skip
    assert (found.name, found.snapshot, found.workspace, found.reason) == ("", ID, None, "")
    assert found.net == {"allow": ["*"], "publish": ["127.0.0.1:0:80"], "pcap": None}
    assert found.secret_envs == ()  # whoever may have a copy need not have those
    assert not (found.is_owned or found.is_pooled or found.removes_itself)
    assert (found.timeout_s, found.idle_timeout_s) == (None, None)
    assert record_of(snapshot_of()).net is None


def test_what_no_copy_can_hold() -> None:
    for fine in (
        {"workspace": "/w", "workspace_mode": "copy"},
        {"disks": ("/disk,ro", "/disk,overlay=/upper")},
    ):
        rests_on.refuse(wanted(**fine))
    for wrong, way_out in (
        ({"workspace": "/w", "workspace_mode": "ro"}, "as a copy"),
        ({"volumes": ("data:/data",)}, "create it without them"),
        ({"disks": ("/disk",)}, "give the disk an overlay"),
    ):
        with pytest.raises(ConfigError, match=way_out):
            rests_on.refuse(wanted(**wrong))


def test_a_machine_rests_on_what_it_only_reads(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("ro", "base", "own")]
    for path in paths:
        Path(path).touch()
    disks = (
        DiskConfig(paths[0], is_read_only=True), DiskConfig(paths[1], overlay="/upper"),
        DiskConfig(paths[2]),
    )  # fmt: skip
    found = rests_on.files_of(MachineConfig("k", disks=disks))
    assert list(found) == paths[:2]
    rests_on.check(found, "it")
    os.utime(paths[0], ns=(1, 1))
    with pytest.raises(ConfigError, match=f"it rests on {paths[0]}, which has changed since"):
        rests_on.check(found, "it")
    Path(paths[0]).unlink()
    with pytest.raises(ConfigError, match="it rests on a file that is gone"):
        rests_on.check(found, "it")


@pytest.mark.parametrize(
    "other",
    [
        {"is_cold": True}, {"snapshot": ID}, {"disks": ("/disk,ro",)}, {"volumes": ("data:/data",)},
        {"vsock": "vhost"}, {"workspace": "/w", "workspace_mode": "rw"},
        {"root": {"init": "/sbin/init"}},
    ],
)  # fmt: skip
def test_who_has_no_template(monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]) -> None:
    assert templates.suits(wanted())
    assert templates.suits(wanted(workspace="/w", workspace_mode="copy", root={"init": ""}))
    assert not templates.suits(wanted(**other))
    monkeypatch.setenv("VOIDBOX_TEMPLATES", "off")
    assert not templates.suits(wanted())


def test_a_template_is_of_one_kind_of_machine(tmp_path: Path) -> None:
    kernel, initramfs, disk = (str(tmp_path / name) for name in ("kernel", "initramfs", "disk"))
    for path in (kernel, initramfs, disk):
        Path(path).write_text(path)
    config = MachineConfig(kernel, initramfs=initramfs, memory_bytes=64 << 20)
    keys = [
        templates.key_of(wanted(), config),
        templates.key_of(wanted(root={"user": "me"}), config),
    ]
    for change in (
        {"memory_bytes": 65 << 20}, {"cpus": 2}, {"balloon": not config.balloon},
        {"cmdline": "quiet"}, {"net": NatConfig()}, {"initramfs": None},
        {"disks": (DiskConfig(disk, is_read_only=True),)},
    ):  # fmt: skip
        keys.append(templates.key_of(wanted(), config._replace(**change)))
    Path(kernel).write_text("another")
    keys.append(templates.key_of(wanted(), config))
    assert None not in keys and len(set(keys)) == len(keys)
    Path(kernel).unlink()
    assert templates.key_of(wanted(), config) is None


def test_a_fork_that_nobody_took_away_is_swept_and_a_snapshot_is_not(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    for id, kind in ((ID, FORK), ("f" * 12, SNAPSHOT)):
        folder = Path(shelf.path, id)
        folder.mkdir(parents=True)
        (folder / records.FILE).write_bytes(snapshot_of()._replace(id=id, kind=kind).encode())
        (folder / records.FILE).chmod(0o600)
        os.utime(folder, (1000, 1000))
    shelf.sweep()
    assert [one.record.id for one in shelf.all()] == ["f" * 12]
    assert [path.name for path in Path(shelf.path).iterdir()] == ["f" * 12]


def test_a_quota_that_is_none_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOIDBOX_SNAPSHOT_QUOTA", "plenty")
    with (
        pytest.raises(ConfigError, match="VOIDBOX_SNAPSHOT_QUOTA: no amount of memory: 'plenty'"),
        Shelf(str(tmp_path)).place(""),
    ):
        pass


def test_which_snapshot_is_meant(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    for id, name in (("aaaa00000000", "base"), ("aaaa11111111", "aaaa"), ("bbbb00000000", "")):
        folder = Path(shelf.path, id)
        folder.mkdir(parents=True)
        (folder / records.FILE).write_bytes(snapshot_of()._replace(id=id, name=name).encode())
    assert shelf.find("base").record.id == "aaaa00000000"
    assert shelf.find("aaaa").record.id == "aaaa11111111"  # a name comes before a beginning
    assert shelf.find("bbbb").record.id == "bbbb00000000"
    shelf.remove("aaaa11111111")
    with pytest.raises(ConfigError, match="no snapshot nothing: voidbox snapshot ls"):
        shelf.find("nothing")
    Path(shelf.path, "aaaa22222222").mkdir()
    moved = snapshot_of()._replace(id="aaaa22222222", name="more")
    Path(shelf.path, "aaaa22222222", records.FILE).write_bytes(moved.encode())
    with pytest.raises(ConfigError, match="aaaa may be any of these snapshots: aaaa00000000, aaaa"):
        shelf.find("aaaa")
