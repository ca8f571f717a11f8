"""The store of images: found by name and ID, removed, whole whatever happens."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from tests.unit.images.made import StoreFolder, record_of
from voidbox.errors import ConfigError, HostError
from voidbox.images import pins
from voidbox.images.errors import ImageError
from voidbox.images.pruning import prune
from voidbox.images.reference import parse_reference
from voidbox.images.store import ImageStore


def test_an_image_is_found_by_any_of_its_names(stored: StoreFolder) -> None:
    made = stored.add("python:3.12", b"root")
    for name in ("python:3.12", "docker.io/library/python:3.12", made.id, made.id[7:19]):
        found = ImageStore(str(stored.path)).find(name)
        assert (found.id, found.config.cmd) == (made.id, ("sh",))
        assert found.names == ("docker.io/library/python:3.12",)
        assert Path(found.path).read_bytes() == b"root" and found.record.size_bytes == 4
    for name in ("python", "other", made.id[7:10], "0000"):
        with pytest.raises(ConfigError, match=f"no image {name}: voidbox image pull"):
            stored.store.find(name)
    assert not stored.leftovers()


def test_a_name_that_moves_leaves_its_image_without_one(stored: StoreFolder) -> None:
    old = stored.add("a", b"old")
    new = stored.add("a", b"new")
    assert stored.store.find("a").id == new.id
    assert stored.store.find(old.id).names == ()
    images, wrong = stored.store.list()
    assert {image.id for image in images} == {old.id, new.id} and not wrong


def test_an_image_with_several_names_goes_with_the_last(stored: StoreFolder) -> None:
    made = stored.add("a")
    assert stored.add("b").id == made.id
    assert stored.store.remove("a") == (made.id, False)
    assert stored.names() == {"docker.io/library/b:latest": "root"}
    assert stored.store.remove("b") == (made.id, True)
    with pytest.raises(ConfigError, match="no image b"):
        stored.store.remove("b")
    stored.add("a"), stored.add("b")
    assert stored.store.remove(made.id[7:15]) == (made.id, True)  # by its ID, with all its names
    assert not stored.names() and not list((stored.images / "refs").iterdir())


def test_an_image_that_a_snapshot_needs_stays(stored: StoreFolder, tmp_path: Path) -> None:
    made = stored.add("a")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    pins.pin(made.path, str(snapshot))
    with pytest.raises(ConfigError, match=f"a is needed by {snapshot}: remove that first"):
        stored.store.remove("a")
    assert prune(store=stored.store).images == ()
    assert stored.store.find("a").id == made.id
    assert stored.store.remove("a", force=True) == (made.id, True)
    stored.add("a")
    pins.pin(made.path, str(snapshot))
    snapshot.rmdir()
    assert stored.store.remove("a") == (made.id, True)


def test_an_image_in_use_stays(stored: StoreFolder) -> None:
    made = stored.add("a")
    with open(made.path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(ConfigError, match="a sandbox runs a: stop it first"):
            stored.store.remove("a")
        assert stored.store.find("a").id == made.id
        assert stored.store.remove("a", force=True) == (made.id, True)
        assert file.read() == b"root"
    assert not stored.leftovers()


def test_what_is_half_made_has_no_name_and_is_deleted(stored: StoreFolder) -> None:
    with stored.store.draft() as draft:
        Path(draft.rootfs).write_bytes(b"half")
        assert stored.leftovers()
        with stored.store.draft():  # somebody else's, who does not touch what lives
            assert len(stored.leftovers()) == 2
        assert len(stored.leftovers()) == 1
    (stored.images / ".new-dead").mkdir()
    (stored.images / ".removed-dead").mkdir()
    (stored.images / "refs/x.json.new").touch()
    with stored.store.draft():
        assert len(stored.leftovers()) == 1
    assert not stored.leftovers() and not stored.names()


def test_damage_is_one_clear_line_and_harms_nothing_else(stored: StoreFolder) -> None:
    stored.add("good", b"good")
    made = stored.add("bad", b"bad")
    config = Path(made.path).parent / "config.json"
    whole = json.loads(config.read_text())
    for content in (
        "", "{", "[]", "{}", '{"version": 1}', json.dumps({**whole, "id": "sha256:" + "0" * 64}),
        json.dumps({**whole, "layers": [1]}), json.dumps({**whole, "config": {"env": [1]}}),
        json.dumps({**whole, "added_at": "x"}), "[" * 100_000,
    ):  # fmt: skip
        config.write_text(content)
        with pytest.raises(ImageError, match="is damaged: .*; voidbox image rm") as error:
            stored.store.find("bad")
        assert "\n" not in str(error.value)
        found, (wrong,) = stored.store.list()
        assert [image.names for image in found] == [("docker.io/library/good:latest",)]
        assert str(wrong) == str(error.value)
    config.write_text(json.dumps({**whole, "version": 99}))
    with pytest.raises(ConfigError, match="was written by a newer voidbox"):
        stored.store.find("bad")
    stored.store.remove("bad")
    assert list(stored.names().values()) == ["good"]


def test_a_damaged_name(stored: StoreFolder) -> None:
    stored.add("good", b"good")
    stored.add("bad", b"bad")
    (path,) = (p for p in (stored.images / "refs").iterdir() if "bad" in p.read_text())
    path.write_text("{")
    with pytest.raises(ImageError, match="is damaged"):
        stored.store.find("bad")
    found, wrong = stored.store.list()
    assert len(found) == 2 and len(wrong) == 1
    stored.add("bad", b"bad")
    assert len(stored.names()) == 2


def test_what_is_refused_while_adding_changes_nothing(stored: StoreFolder) -> None:
    (stored.images / "refs").chmod(0o500)
    try:
        with stored.store.draft() as draft:
            Path(draft.rootfs).write_bytes(b"x")
            record = record_of(b"x", source="\0" * (17 << 20))
            with pytest.raises(ConfigError):
                stored.store.add(draft, parse_reference("a"), record)
        with stored.store.draft() as draft, pytest.raises(HostError):
            stored.store.add(draft, parse_reference("a"), record_of(b"x"))  # it has no rootfs
    finally:
        (stored.images / "refs").chmod(0o700)
    assert not stored.leftovers() and not stored.names()
