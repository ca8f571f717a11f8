"""A package's files, in a tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.setup.fake_archive import ar, make_deb
from voidbox.images.tree import Directory, Regular, Symlink, Tree
from voidbox.setup.deb import read_control, unpack_deb
from voidbox.setup.errors import SetupError


@pytest.mark.parametrize("kind", ["xz", "gz", ""])
def test_files_and_control(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.deb"
    control = {"control": b"Package: x\n", "postinst": b"#!/bin/sh\n"}
    path.write_bytes(make_deb({"etc": None, "etc/x": b"content", "etc/y": "x"}, control, kind))
    with Tree(str(tmp_path)) as tree:
        unpack_deb(tree, str(path))
        node = tree.find("etc/x")
        assert isinstance(node, Regular)
        assert tree.read(node, 100) == b"content"
        assert node.mode == 0o755
        assert read_control(tree, str(path)) == control


def test_a_folder_over_a_link_leaves_the_link(tmp_path: Path) -> None:
    """As dpkg has it: packages that know nothing of a merged /usr land in it."""
    path = tmp_path / "x.deb"
    path.write_bytes(make_deb({"bin": None, "bin/x": b"content", "new": None}))
    with Tree(str(tmp_path)) as tree:
        tree.make_folder(["usr", "bin"])
        tree.put("bin", Symlink(target="usr/bin"))
        tree.put("new", Symlink(target="nowhere"))
        unpack_deb(tree, str(path))
        assert isinstance(tree.root.children["bin"], Symlink)
        assert isinstance(tree.find("usr/bin/x"), Regular)
        assert isinstance(tree.root.children["new"], Directory)


WHOLE = make_deb({"x": b"content" * 100})
BROKEN = {
    "nothing": b"",
    "a web page": b"<html></html>",
    "cut short in its files": WHOLE[:-40],
    "cut short in a header": WHOLE[: WHOLE.index(b"data.tar") + 30],
    "without files": ar({"debian-binary": b"2.0\n", "control.tar.gz": b""}),
    "of another version": ar({"debian-binary": b"3.0\n", "data.tar": b""}),
    "no package": ar({"x": b"2.0\n", "data.tar": b""}),
    "packed strangely": ar({"debian-binary": b"2.0\n", "data.tar.rar": b""}),
    "no xz": ar({"debian-binary": b"2.0\n", "data.tar.xz": b"no xz at all"}),
    "parts without end": ar({"debian-binary": b"2.0\n", **{f"x{idx}": b"" for idx in range(99)}}),
    "a size that is none": WHOLE.replace(b"`\n", b"!\n", 1),
    "links out of the tree": make_deb({"a/../../x": b"content"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_packages_are_told_in_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(BROKEN[case])
    with (
        Tree(str(tmp_path)) as tree,
        pytest.raises(SetupError, match=r"x\.deb is damaged: [^\n]+$"),
    ):
        unpack_deb(tree, str(path))
