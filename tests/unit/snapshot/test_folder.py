"""A snapshot's folder: whole or not there, whatever happens; and whether it is intact."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from voidbox.errors import ConfigError, HostError
from voidbox.snapshot import digests, files, folder
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot.folder import Draft

MIB = 1 << 20


def make(path: Path, memory: bytes = b"x" * 100) -> None:
    draft = Draft(str(path))
    files.write(draft.file("memory"), memory)
    files.write(draft.file(machine_bin.NAME), machine_bin.encode({"a": 1}))
    draft.commit()


def test_nothing_is_there_before_the_commit(tmp_path: Path) -> None:
    draft = Draft(str(tmp_path / "snap"))
    files.write(draft.file("memory"), b"x")
    assert os.listdir(tmp_path) == ["snap.part"]
    draft.commit()
    draft.abort()
    assert os.listdir(tmp_path) == ["snap"]
    assert (tmp_path / "snap").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "snap" / "memory").stat().st_mode & 0o777 == 0o400


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, rename = [], os.rename
    monkeypatch.setattr(
        "os.fsync", lambda fd: done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
    )
    monkeypatch.setattr("os.rename", lambda *names: (done.append("its name"), rename(*names)))
    draft = Draft(str(tmp_path / "snap"))
    (tmp_path / "snap.part" / "disk-0").write_bytes(b"x")
    draft.commit()
    assert done == ["disk-0", "snap.part", "its name", tmp_path.name]
    done.clear()
    digests.seal(str(tmp_path / "snap"))
    assert done == ["digests", "snap"]
    for name in ("disk-0", "digests"):
        assert (tmp_path / "snap" / name).stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("what", ["missing", "symlink", "fifo", "hard link", "the folder"])
def test_what_is_taken_over_are_files(tmp_path: Path, what: str) -> None:
    source, target, other = tmp_path / "source", tmp_path / "target", tmp_path / "other"
    for path in (source, target):
        path.mkdir()
    other.write_bytes(b"of somebody else")
    for name in ("memory", "machine.bin", "disk-0", "snapshot.json"):
        (source / name).write_bytes(b"x")
    memory = source / "memory"
    memory.unlink()
    if what == "symlink":
        memory.symlink_to(other)
    elif what == "fifo":
        os.mkfifo(memory)
    elif what == "hard link":
        os.link(other, memory)
    elif what == "the folder":
        memory.write_bytes(b"x")
        (tmp_path / "link").symlink_to(source)
        source = tmp_path / "link"
    with pytest.raises(OSError):
        folder.take_over(str(source), str(target))


def test_a_machines_files_are_taken_over(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        path.mkdir()
    for name in ("memory", "machine.bin", "disk-0", "snapshot.json"):
        (source / name).write_text(name)
    folder.take_over(str(source), str(target))
    assert sorted(os.listdir(target)) == ["disk-0", "machine.bin", "memory"]


def test_an_aborted_one_leaves_nothing(tmp_path: Path) -> None:
    draft = Draft(str(tmp_path / "snap"))
    files.write(draft.file("memory"), b"x")
    draft.abort()
    draft.abort()
    assert os.listdir(tmp_path) == []


def test_two_makers_of_one(tmp_path: Path) -> None:
    draft = Draft(str(tmp_path / "snap"))
    with pytest.raises(ConfigError, match="right now"):
        Draft(str(tmp_path / "snap"))
    draft.commit()
    with pytest.raises(ConfigError, match="there already"):
        Draft(str(tmp_path / "snap"))


def test_what_a_crash_left_is_swept_and_what_is_being_made_is_not(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    crashed = tmp_path / "crashed.part"
    crashed.mkdir()
    (crashed / "memory").write_bytes(b"x")
    (tmp_path / "file.part").write_bytes(b"x")
    draft = Draft(str(tmp_path / "making"))
    assert folder.sweep(str(tmp_path)) == [str(crashed)]
    assert sorted(os.listdir(tmp_path)) == ["file.part", "making.part", "whole"]
    draft.commit()
    assert folder.sweep(str(tmp_path / "nowhere")) == []


def test_what_a_crash_left_is_no_hindrance(tmp_path: Path) -> None:
    crashed = tmp_path / "snap.part"
    crashed.mkdir()
    (crashed / "memory").write_bytes(b"of the crashed one")
    make(tmp_path / "snap")
    assert (tmp_path / "snap" / "memory").read_bytes() == b"x" * 100


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="snap.part"):
        Draft(str(tmp_path / "nowhere" / "snap"))


def test_it_is_in_use_as_long_as_somebody_has_the_memory(tmp_path: Path) -> None:
    make(tmp_path / "snap")
    path = str(tmp_path / "snap")
    assert not folder.is_in_use(path)
    fd = folder.open_memory(path, 100)
    copy = os.dup(fd)
    os.close(fd)
    assert folder.is_in_use(path)
    os.close(copy)
    assert not folder.is_in_use(path)
    assert not folder.is_in_use(str(tmp_path / "nowhere"))
    assert folder.sizes(path).apparent_bytes > 100


def test_a_copy_is_sparse_and_new(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        file.truncate(64 * MIB)
        os.pwrite(file.fileno(), b"x" * MIB, 7 * MIB)
        os.pwrite(file.fileno(), b"end", 64 * MIB - 3)
    files.clone(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 16
    with pytest.raises(HostError, match="exists"):
        files.clone(str(source), str(target))
    with pytest.raises(HostError, match="No such file"):
        files.clone(str(tmp_path / "nowhere"), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_copy_that_fails_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "share_blocks", lambda source_fd, target_fd: False)
    monkeypatch.setattr(files, "copy_some", fail)
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(HostError, match="No space left"):
        files.clone(str(tmp_path / "source"), str(tmp_path / "target"))
    assert os.listdir(tmp_path) == ["source"]


def test_verify_looks_at_the_machine_and_at_what_was_written_down(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    make(path)
    digests.seal(str(path))
    for name in (machine_bin.NAME, digests.NAME):
        whole = (path / name).read_bytes()
        (path / name).chmod(0o600)
        (path / name).write_bytes(whole[:-1])
        with pytest.raises(ConfigError, match=f"{name}: .* cut short"):
            digests.verify(str(path))
        (path / name).write_bytes(whole)
    (path / digests.NAME).write_bytes(machine_bin.encode({"memory": 5}))
    with pytest.raises(ConfigError, match="digests: it is damaged"):
        digests.verify(str(path))


def test_verify_finds_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    memory = bytearray(8 * MIB)
    memory[3 * MIB + 5 : 3 * MIB + 9] = b"data"
    make(path, bytes(memory))
    with pytest.raises(ConfigError, match="digests"):
        digests.verify(str(path))
    digests.seal(str(path))
    digests.verify(str(path))
    (path / "memory").chmod(0o600)
    for at, message in ((3 * MIB + 6, "3 MiB from its start"), (6 * MIB, "6 MiB")):
        changed = bytearray(memory)
        changed[at] ^= 1
        (path / "memory").write_bytes(changed)
        with pytest.raises(ConfigError, match=message):
            digests.verify(str(path))
    (path / "memory").write_bytes(memory[:-1])
    with pytest.raises(ConfigError, match="bytes of"):
        digests.verify(str(path))
    (path / "memory").unlink()
    with pytest.raises(ConfigError, match="missing"):
        digests.verify(str(path))
