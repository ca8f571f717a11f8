"""Compressed images, against a reader that shares no code, the real checker, and the kernel."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.images.test_erofs import every_kind
from tests.unit.images.trees import assert_same, check_with_fsck, content, image_of, require
from voidbox import lz4
from voidbox.images import erofs_lz4
from voidbox.images.errors import ImageError
from voidbox.images.tree import Extent, Regular, SpoolSource, Tree
from voidbox.lz4 import Compressor, Lz4Error

BLOCK, CHUNK = 4096, erofs_lz4.CHUNK_BYTES


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    try:
        return Compressor()
    except Lz4Error as error:
        pytest.skip(f"{error}: install it")


def words(size: int, seed: int = 0) -> bytes:
    """What compresses about as text does."""
    rand = random.Random(seed)
    found = [rand.randbytes(rand.randrange(2, 9)) for _ in range(500)]
    return b"".join(rand.choices(found, k=size // 2 + 1))[:size]


def every_content() -> Iterator[tuple[str, bytes]]:
    """Yield files of every kind of content, around every size that counts."""
    yield "noise", random.Random(1).randbytes(3 * CHUNK + 17)
    yield "zeros", bytes(2 * CHUNK)
    yield "one byte more", bytes(2 * CHUNK + 1)
    yield "mixed", words(CHUNK) + random.Random(2).randbytes(CHUNK) + words(CHUNK)
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1):
        yield f"words {size}", words(size)
        yield f"noise {size}", random.Random(size).randbytes(size)
    for size in (CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + BLOCK, CHUNK + BLOCK + 1, 5 * CHUNK - 7):
        yield f"words {size}", words(size, size)


def full_tree() -> Tree:
    tree = every_kind()
    for name, data in every_content():
        tree.put(name, tree.add_bytes(data))
    twice = tree.add_bytes(words(3 * BLOCK))
    twice.xattrs = {"user.odd": b"123"}  # the map behind them is aligned
    tree.put("twice", twice)
    tree.put("sub/once more", twice)
    return tree


def test_every_kind_of_content(tmp_path: Path, compressor: Compressor) -> None:
    with full_tree() as tree:
        assert_same(tree, image_of(tree, tmp_path, compressor))
    check_with_fsck(tmp_path / "image.erofs")


def test_it_gets_smaller_and_noise_hardly_larger(tmp_path: Path, compressor: Compressor) -> None:
    with Tree() as tree:
        tree.put("text", tree.add_bytes(words(40 * CHUNK)))
        small = image_of(tree, tmp_path, compressor).blocks
        plain = image_of(tree, tmp_path).blocks
    assert small < 0.75 * plain
    with Tree() as tree:
        tree.put("noise", tree.add_bytes(os.urandom(4 * CHUNK)))
        assert image_of(tree, tmp_path, compressor).blocks <= 4 * CHUNK // BLOCK + 3


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path, compressor: Compressor) -> None:
    images = []
    for _ in range(2):
        with full_tree() as tree:
            images.append(image_of(tree, tmp_path, compressor).data)
    assert images[0] == images[1]


def test_holes_are_zeros(tmp_path: Path, compressor: Compressor) -> None:
    with Tree() as tree:
        spool = tree.new_spool()
        spool.write(b"abcdef")
        spool.flush()
        source = SpoolSource(spool)
        extents = (Extent(CHUNK - 1, 3, source, 0), Extent(2 * CHUNK, 3, source, 3))
        tree.put("sparse", Regular(size=3 * CHUNK, extents=extents))
        assert_same(tree, image_of(tree, tmp_path, compressor))


def test_a_source_that_became_shorter_is_an_error(tmp_path: Path, compressor: Compressor) -> None:
    with Tree() as tree:
        node = tree.add_bytes(b"x" * CHUNK)
        node.extents = (node.extents[0]._replace(length=2 * CHUNK),)
        node.size = 2 * CHUNK
        tree.put("file", node)
        with pytest.raises(ImageError, match="shorter"):
            image_of(tree, tmp_path, compressor)


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lz4, "_LIBRARY", "libnothing.so.1")
    with pytest.raises(Lz4Error, match=r"^libnothing.so.1 is not installed \(Debian: liblz4-1\)$"):
        Compressor()


@pytest.mark.slow
def test_the_kernel_reads_the_same(tmp_path: Path, compressor: Compressor) -> None:
    mount = require("mount", "mount")
    there = tmp_path / "there"
    there.mkdir()
    with full_tree() as tree, contextlib.ExitStack() as stack:
        image_of(tree, tmp_path, compressor)
        path = tmp_path / "image.erofs"
        result = subprocess.run(
            [mount, "-t", "erofs", "-o", "loop,ro", path, there],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode:
            pytest.skip(f"this host mounts no erofs here: {result.stderr.strip()}; run it as root")
        stack.callback(subprocess.run, ["umount", there], check=True)
        for name, node in tree.walk():
            if isinstance(node, Regular):
                assert (there / name).read_bytes() == content(node), name
