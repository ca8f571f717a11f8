"""A folder of the host becomes a tree, an image, and the same bytes again."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.images.erofs_reader import Image
from tests.unit.images.trees import assert_same, image_of
from voidbox.images import pack
from voidbox.images.errors import ImageError
from voidbox.images.host_folder import Options, read_folder
from voidbox.images.limits import Limits
from voidbox.images.tree import Regular, Special, Symlink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    (folder / "sub" / "large").write_bytes(os.urandom(300_000))
    (folder / "file").chmod(0o4750)
    os.link(folder / "file", folder / "sub" / "same")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    return folder


def test_a_folder_is_kept_as_it_is(folder: Path, tmp_path: Path) -> None:
    with read_folder(str(folder), Options()) as tree:
        assert_same(tree, image_of(tree, tmp_path))
        assert tree.find("file") is tree.find("sub/same")
        file, link, pipe = tree.find("file"), tree.find("link"), tree.find("pipe")
    assert isinstance(file, Regular) and file.mode == 0o4750 and file.uid == os.getuid()
    assert file.mtime_ns == (folder / "file").stat().st_mtime_ns
    assert isinstance(link, Symlink) and link.target == "/etc/passwd"
    assert isinstance(pipe, Special) and pipe.kind == stat.S_IFIFO


def test_owners_and_times_can_be_chosen(folder: Path) -> None:
    with read_folder(str(folder), Options(owner=(7, 8), mtime_ns=9)) as tree:
        assert {(node.uid, node.gid, node.mtime_ns) for _, node in tree.walk()} == {(7, 8, 9)}


def test_modes_that_no_umask_shows_in(folder: Path) -> None:
    (folder / "sub").chmod(0o1730)
    with read_folder(str(folder), Options(are_modes_shared=True)) as tree:
        modes = {path: node.mode for path, node in tree.walk()}
    assert (modes["sub"], modes["file"], modes["link"]) == (0o1755, 0o4755, 0o777)


def test_only_root_keeps_owners(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with read_folder(str(folder)) as tree:
        assert {(node.uid, node.gid) for _, node in tree.walk()} == {(0, 0)}


def test_xattrs(folder: Path) -> None:
    try:
        os.setxattr(folder / "file", "user.note", b"\0\xff")
    except OSError as error:
        pytest.skip(f"this file system has no user xattrs: {error}")
    with read_folder(str(folder)) as tree:
        node = tree.find("file")
        assert node is not None and node.xattrs["user.note"] == b"\0\xff"
    with read_folder(str(folder), Options(are_xattrs_kept=False)) as tree:
        node = tree.find("file")
        assert node is not None and not node.xattrs


def test_holes(folder: Path, tmp_path: Path) -> None:
    with open(folder / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    with read_folder(str(folder)) as tree:
        node = tree.find("sparse")
        assert isinstance(node, Regular) and node.size == 8 << 20
        assert sum(extent.length for extent in node.extents) < 1 << 20
        assert_same(tree, image_of(tree, tmp_path))


def test_sockets_are_left_out_and_said(folder: Path) -> None:
    said: list[tuple[str, str]] = []
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "s"))
        tree = read_folder(str(folder), on_skip=lambda path, why: said.append((path, why)))
    assert tree.find("s") is None
    assert said == [(str(folder / "s"), "a socket")]


def _overwrite(path: Path) -> None:
    path.write_bytes(b"other")


def _remove(path: Path) -> None:
    path.unlink()


def _lead_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", [_overwrite, _remove, _lead_out])
def test_what_changes_meanwhile_is_an_error(
    folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    tree = read_folder(str(folder))
    change(folder / "sub" / "large")
    with pytest.raises(ImageError, match="large"):
        image_of(tree, tmp_path)


def test_what_changes_while_it_is_copied_is_an_error(folder: Path) -> None:
    node = read_folder(str(folder)).find("sub/large")
    assert isinstance(node, Regular)
    with pytest.raises(ImageError, match="large has changed"), node.extents[0].source.open():
        (folder / "sub" / "large").write_bytes(b"other")


def test_a_folder_that_becomes_a_link_is_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "zzz").mkdir()
    real_open = os.open

    def swap(path: bytes, flags: int, **where: int) -> int:
        if path == b"zzz":
            (folder / "zzz").rmdir()
            (folder / "zzz").symlink_to("/etc")
        return real_open(path, flags, **where)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(ImageError, match="folder: (Not a directory|Too many levels)"):
        read_folder(str(folder))


def test_what_may_not_be_read_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse(path: bytes, flags: int, **where: int) -> int:
        if path.endswith(b"file"):
            raise PermissionError(errno.EACCES, "Permission denied")  # root itself may read all
        return real_open(path, flags, **where)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="file: Permission denied"):
        read_folder(str(folder))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere: No such file"):
        read_folder(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="file: Not a directory"):
        read_folder(str(tmp_path / "file"))


@pytest.mark.parametrize("limits", [Limits(entries=3), Limits(total_bytes=1000)])
def test_limits(folder: Path, limits: Limits) -> None:
    with pytest.raises(ImageError):
        read_folder(str(folder), limits=limits)


def test_pack(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.erofs"
    arguments = ["--mtime", "5", "--node", "/dev/console:5:1", "--mode", "/sub:1777"]
    assert pack.main([str(folder), str(output), "--owner", "1:2", *arguments]) == 0
    files = Image(output.read_bytes()).files()
    assert files["dev/console"].device == (5, 1)
    assert stat.S_IMODE(files["sub"].mode) == 0o1777
    assert (files["file"].uid, files["file"].gid, files["file"].mtime_ns) == (1, 2, 5 * 10**9)
    assert pack.main([str(folder), str(output), "--mode", "/nothing:755"]) == 1
    assert "there is no /nothing" in capsys.readouterr().err
    assert not list(tmp_path.glob("*partial*"))
