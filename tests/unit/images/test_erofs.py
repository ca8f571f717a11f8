"""The writer of EROFS images, against a reader that shares no code and the real checker."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.images.trees import assert_same, check_with_fsck, image_of
from voidbox.images import erofs_format
from voidbox.images.erofs import write_erofs
from voidbox.images.errors import ImageError
from voidbox.images.tree import Directory, Extent, Regular, Special, SpoolSource, Symlink, Tree


def every_kind() -> Tree:
    """A tree with one of each."""
    tree = Tree()
    tree.root.mode = 0o1777
    tree.put("etc/passwd", tree.add_bytes(b"root:x:0:0\n", uid=4_000_000_000, gid=70_000))
    tree.put("bin/su", tree.add_bytes(bytes(range(256)) * 40, mode=0o4755, mtime_ns=-5_500_000_000))
    tree.put("bin/link", Symlink(target="../etc/passwd"))
    tree.put("bin/long", Symlink(target="x" * 4095))
    tree.put("dev/tty", Special(kind=stat.S_IFCHR, device=(5, 0), mode=0o666))
    tree.put("dev/disk", Special(kind=stat.S_IFBLK, device=(4095, (1 << 20) - 1)))
    tree.put("run/pipe", Special(kind=stat.S_IFIFO))
    tree.put("run/socket", Special(kind=stat.S_IFSOCK))
    tree.put("empty", Regular())
    tree.put("bytes-\udcff", Regular(mtime_ns=1_700_000_000_123_456_789))
    file = tree.add_bytes(b"shared")
    file.xattrs = {"user.a": b"1", "security.capability": bytes(20)}
    tree.put("a/one", file)
    tree.put("b/two", file)
    return tree


def test_every_kind_of_file(tmp_path: Path) -> None:
    with every_kind() as tree:
        image = image_of(tree, tmp_path)
        assert_same(tree, image)
    assert image.root_nid == 128  # the first slot behind the superblock's block
    check_with_fsck(tmp_path / "image.erofs")


@pytest.mark.parametrize("size", [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12_289, 200_000])
def test_sizes_around_a_block(size: int, tmp_path: Path) -> None:
    with Tree() as tree:
        tree.put("file", tree.add_bytes(os.urandom(size)))
        tree.put("next", tree.add_bytes(b"next"))
        image = image_of(tree, tmp_path)
        assert_same(tree, image)
    # No more than the superblock, the inodes and the content, each in whole blocks.
    assert image.blocks <= 3 + size // 4096


def test_large_folders_are_sorted_over_blocks(tmp_path: Path) -> None:
    with Tree() as tree:
        for index in range(1500):
            tree.put(f"{'+-.!'[index % 4]}{index}{'x' * (index % 255 // 2)}", Regular())
        tree.put("sub/.hidden", Directory())
        tree.put("n" * 255, Regular())
        assert_same(tree, image_of(tree, tmp_path))
    check_with_fsck(tmp_path / "image.erofs")


def test_a_folder_that_fills_its_blocks_exactly(tmp_path: Path) -> None:
    used = 2 * erofs_format.DIRENT.size + len(b"...")
    with Tree() as tree:
        for index in range(20):
            left = 4096 - used - erofs_format.DIRENT.size
            name = f"{index:02}".ljust(min(left, 255) if left < 2 * 255 else 200, "n")
            used += erofs_format.DIRENT.size + len(name)
            tree.put(f"sub/{name}", Regular())
            if used == 4096:
                break
        assert used == 4096
        image = image_of(tree, tmp_path)
        assert len(image.files()["sub"].content) == 4096
        assert_same(tree, image)


def test_xattrs_larger_than_a_block(tmp_path: Path) -> None:
    with Tree() as tree:
        file = tree.add_bytes(b"content" * 1000)
        file.xattrs = {
            "user.large": os.urandom(65_535),
            "trusted.x": b"",
            "system.posix_acl_access": b"\2\0\0\0",
            "user." + "n" * 250: b"v",
        }
        tree.put("file", file)
        tree.put("other", tree.add_bytes(b"other"))
        assert_same(tree, image_of(tree, tmp_path))
    check_with_fsck(tmp_path / "image.erofs")


def test_xattrs_that_no_erofs_has_are_left_out() -> None:
    names = (b"com.apple.x", b"system.nfs4_acl", b"user.", b"security", b"user.ok")
    assert erofs_format.encode_xattrs((name, b"") for name in names)[12:] == b"\2\1\0\0ok\0\0"


def test_holes_stay_holes(tmp_path: Path) -> None:
    with Tree() as tree:
        spool = tree.new_spool()
        spool.write(b"abcdef")
        spool.flush()
        source = SpoolSource(spool)
        extents = (Extent(1 << 20, 3, source, 0), Extent((16 << 20) - 2, 3, source, 3))
        tree.put("sparse", Regular(size=(16 << 20) + 5, extents=extents))
        path = tmp_path / "image"
        with open(path, "wb") as file:
            write_erofs(tree, file)
    assert path.stat().st_size > 16 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    image = path.read_bytes()
    assert image.count(b"abc") == image.count(b"de") == 1


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    images = []
    for is_reversed in (False, True):
        with every_kind() as tree:
            if is_reversed:
                for _, node in list(tree.walk()):
                    if isinstance(node, Directory):
                        node.children = dict(reversed(node.children.items()))
            images.append(image_of(tree, tmp_path).data)
    assert images[0] == images[1]
    with every_kind() as tree:
        tree.root.uid = 1
        other = image_of(tree, tmp_path)
    assert other.uuid != images[0][1072:1088]


def test_what_was_in_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff" * 100_000)
    with open(path, "r+b") as file, every_kind() as tree:
        size = write_erofs(tree, file)
    with open(tmp_path / "new", "wb") as file, every_kind() as tree:
        write_erofs(tree, file)
    assert path.stat().st_size == size
    assert path.read_bytes() == (tmp_path / "new").read_bytes()


def test_a_source_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    with Tree() as tree, open(tmp_path / "image", "wb") as file:
        node = tree.add_bytes(b"x" * 100_000)
        extent = node.extents[0]
        node.extents = (extent._replace(length=200_000),)
        node.size = 200_000
        tree.put("file", node)
        with pytest.raises(ImageError, match="shorter"):
            write_erofs(tree, file)


def test_names_that_erofs_has_no_room_for(tmp_path: Path) -> None:
    with Tree() as tree, open(tmp_path / "image", "wb") as file:
        tree.root.children["n" * 256] = Regular()
        with pytest.raises(ImageError, match="256"):
            write_erofs(tree, file)


def test_a_folder_in_two_places_is_refused(tmp_path: Path) -> None:
    with Tree() as tree, open(tmp_path / "image", "wb") as file:
        tree.put("a", tree.make_folder(["b"]))
        with pytest.raises(ImageError, match="two places"):
            write_erofs(tree, file)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with Tree() as tree, open(tmp_path / "image", "wb") as file:
        for index in range(3):
            tree.put(str(index), tree.add_bytes(b"x" * 1000))
        write_erofs(tree, file, progress=lambda done, total: told.append((done, total)))
    assert told == [(1000, 3000), (2000, 3000), (3000, 3000)]


def test_slots_waste_little() -> None:
    slots = erofs_format.Slots(first_block=1)
    sizes = [64 + index * 37 % 3900 for index in range(2000)] + [9000, 64]
    places = sorted((slots.place(size), size) for size in sizes)
    for (offset, size), (following, _) in pairwise(places):
        assert offset % 32 == 0 and offset + size <= following
        assert size > 4096 or offset // 4096 == (offset + size - 1) // 4096
    assert slots.end_block * 4096 < 1.15 * sum(sizes)
