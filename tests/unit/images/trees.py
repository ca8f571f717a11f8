"""Trees for tests: made by hand, made at random, and compared with what an image says."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.unit.images.erofs_reader import File, Image
from voidbox.images.erofs import write_erofs
from voidbox.images.tree import (
    Directory,
    Node,
    Regular,
    Special,
    Symlink,
    Tree,
    encode,
    file_type,
)
from voidbox.lz4 import Compressor


def image_of(tree: Tree, folder: Path, compressor: Compressor | None = None) -> Image:
    """Write a tree as an image and read it."""
    path = folder / "image.erofs"
    with open(path, "wb") as file:
        size = write_erofs(tree, file, compressor=compressor)
    assert path.stat().st_size == size
    return Image(path.read_bytes())


def content(node: Regular) -> bytes:
    """Return a file's content."""
    data = bytearray(node.size)
    for extent in node.extents:
        with extent.source.open() as descriptor, open(descriptor, "rb", closefd=False) as file:
            file.seek(extent.offset)
            data[extent.position : extent.position + extent.length] = file.read(extent.length)
    assert len(data) == node.size
    return bytes(data)


def assert_same(tree: Tree, image: Image) -> None:
    """Compare everything that both know."""
    files = image.files()
    nodes = dict(tree.walk())
    assert set(files) == set(nodes)
    links: dict[int, int] = {}
    for node in nodes.values():
        links[id(node)] = links.get(id(node), 0) + 1
    nids: dict[int, int] = {}
    for path, node in nodes.items():
        file = files[path]
        assert nids.setdefault(id(node), file.nid) == file.nid, "a hard link became a copy"
        assert_same_file(node, file)
        if isinstance(node, Directory):
            folders = sum(isinstance(child, Directory) for child in node.children.values())
            assert file.nlink == 2 + folders
        else:
            assert file.nlink == links[id(node)]
    assert len(set(nids.values())) == len(nids) == image.inodes


def assert_same_file(node: Node, file: File) -> None:
    """Compare one file."""
    assert file.mode == file_type(node) | node.mode
    assert (file.uid, file.gid, file.mtime_ns) == (node.uid, node.gid, node.mtime_ns)
    assert file.xattrs == node.xattrs
    if isinstance(node, Regular):
        assert file.content == content(node)
    if isinstance(node, Symlink):
        assert file.content == encode(node.target)
    if isinstance(node, Special) and node.kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert file.device == node.device


def require(program: str, package: str) -> str:
    """Return a program's path; skip where it is missing."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"no {program}; run: sudo apt-get install {package} (or make)")
    return found


def check_with_fsck(path: Path) -> None:
    """Have the file system's own checker look at an image; skip where there is none."""
    fsck = require("fsck.erofs", "erofs-utils")
    result = subprocess.run([fsck, "--extract", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "<E>" not in result.stdout + result.stderr
