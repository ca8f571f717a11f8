"""A user of one's own in an image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from voidbox.errors import ConfigError
from voidbox.images.tree import Directory, Tree
from voidbox.setup.new_user import add_user, check_user_name
from voidbox.setup.tree_edit import put_bytes, read


@pytest.fixture
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory() as folder, Tree(folder) as tree:
        put_bytes(tree, "etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
        put_bytes(tree, "etc/group", "root:x:0:\n")
        put_bytes(tree, "etc/shadow", "root:*:19000:0:99999:7:::\n", 0o640)
        put_bytes(tree, "etc/skel/.bashrc", "# of all\n")
        yield tree


def test_a_user_with_a_home(tree: Tree) -> None:
    add_user(tree, "user")
    assert read(tree, "etc/passwd").endswith(b"user:x:1000:1000:user:/home/user:/bin/bash\n")
    assert read(tree, "etc/group").endswith(b"user:x:1000:\n")
    assert (
        b"\nuser:*:" in read(tree, "etc/shadow") and tree.find("etc/shadow").mode & 0o777 == 0o640
    )
    assert read(tree, "home/user/.bashrc") == b"# of all\n"
    assert tree.find("home/user").uid == tree.find("home/user/.bashrc").uid == 1000
    assert tree.find("etc/sudoers.d") is None


def test_sudo_where_it_is(tree: Tree) -> None:
    tree.make_folder(["etc", "sudoers.d"])
    assert isinstance(tree.find("etc/sudoers.d"), Directory)
    add_user(tree, "user")
    assert read(tree, "etc/sudoers.d/user") == b"user ALL=(ALL) NOPASSWD: ALL\n"
    assert tree.find("etc/sudoers.d/user").mode & 0o777 == 0o440


@pytest.mark.parametrize("name", ["root2", "twice"])
def test_one_that_there_is(tree: Tree, name: str) -> None:
    add_user(tree, "twice")
    with pytest.raises(ConfigError, match="has such a user already"):
        add_user(tree, name)


@pytest.mark.parametrize("name", ["", "root", "A", "a:b", "a\nb", "1", "x" * 40])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a user"):
        check_user_name(name)
