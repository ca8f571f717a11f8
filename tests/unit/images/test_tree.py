"""Paths inside a tree lead nowhere else."""

from __future__ import annotations

import pytest

from voidbox.images.errors import ImageError
from voidbox.images.tree import Directory, Regular, Symlink, Tree, decode, encode


def test_links_are_followed_as_in_a_chroot() -> None:
    tree = Tree()
    tree.put("usr/lib/x", Regular())
    tree.put("lib", Symlink(target="usr/lib"))
    tree.put("deep/er/abs", Symlink(target="/lib"))
    tree.put("deep/up", Symlink(target="er/../../lib/."))
    for path in ("lib/x", "/deep/er/abs/x", "deep/up/x", "./usr//lib/./x", "lib/../lib/x"):
        assert tree.find(path) is tree.find("usr/lib/x"), path
    assert isinstance(tree.find("lib"), Symlink)
    assert tree.find("/") is tree.root
    assert tree.find("lib/missing") is tree.find("missing/x") is tree.find("lib/x/below") is None


def test_no_link_leads_out() -> None:
    tree = Tree()
    tree.put("a/out", Symlink(target="../../etc"))
    for path in ("a/out/passwd", "../x", "a/../../x"):
        with pytest.raises(ImageError, match="leads out of the image"):
            tree.find(path)
        with pytest.raises(ImageError, match="leads out of the image"):
            tree.put(path, Regular())


def test_a_loop_of_links_ends() -> None:
    tree = Tree()
    tree.put("a", Symlink(target="b"))
    tree.put("b", Symlink(target="/a"))
    tree.put("self", Symlink(target="self/self"))
    for path in ("a/x", "self/x"):
        with pytest.raises(ImageError, match="too many levels"):
            tree.find(path)


def test_folders_on_the_way_are_made() -> None:
    tree = Tree()
    tree.put("var/run", Symlink(target="/run"))
    tree.put("var/run/lock/x", Regular())
    assert isinstance(tree.find("run/lock/x"), Regular)
    assert isinstance(tree.find("var/run"), Symlink)


def test_a_file_in_the_way_is_said() -> None:
    tree = Tree()
    tree.put("file", Regular())
    with pytest.raises(ImageError, match="in the way"):
        tree.put("file/below", Regular())
    for path in ("", "/", "."):
        with pytest.raises(ImageError):
            tree.put(path, Directory())


def test_any_bytes_are_a_name() -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    assert encode(decode(name)) == name


def test_bytes_are_kept_until_the_tree_is_closed() -> None:
    with Tree() as tree:
        node = tree.add_bytes(b"abc", mode=0o600)
        more = tree.add_bytes(b"defg")
        assert (node.size, node.mode, more.extents[0].offset) == (3, 0o600, 3)
        assert tree.add_bytes(b"").extents == ()
