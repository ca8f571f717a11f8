"""What becomes of layers: each rule of the OCI's layer.md, and who must not get in."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from pathlib import Path

import pytest

from tests.unit.images import archives
from tests.unit.images.archives import (
    apply,
    archive,
    file,
    folder,
    hard_link,
    member,
    paths,
    symlink,
)
from tests.unit.images.trees import assert_same, content, image_of
from voidbox.images.errors import ImageError
from voidbox.images.host_folder import read_folder
from voidbox.images.limits import DEPTH_MAX, Limits
from voidbox.images.tar_layers import apply_layer
from voidbox.images.tree import Directory, Regular, Special, Symlink, Tree

BASE = archive(
    folder("etc"),
    file("etc/a", b"base a"),
    file("etc/b", b"base b"),
    folder("etc/sub"),
    file("etc/sub/c", b"base c"),
    folder("usr"),
    folder("usr/lib"),
    file("usr/lib/old", b"old"),
    symlink("lib", "usr/lib"),
)


def read(tree: Tree, path: str) -> bytes:
    node = tree.find(path)
    assert isinstance(node, Regular), path
    return content(node)


# --- what an entry is ---------------------------------------------------------------------------


def test_every_kind_of_entry(tmp_path: Path) -> None:
    long = "n" * 200 + "/" + "é" * 100
    layer = archive(
        folder(".", mode=0o1777, uid=3),
        file("file", b"data" * 2000, mode=0o4755, uid=3_000_000_000, gid=2_097_152, mtime=1.5),
        file(long, b"long"),
        symlink("link", "/etc/" + "x" * 300),
        hard_link("hard", "file"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("disk", tarfile.BLKTYPE, devmajor=259, devminor=70_000),
        member("pipe", tarfile.FIFOTYPE),
        member("contiguous", tarfile.CONTTYPE, b"c"),
        file("caps", b"", pax_headers={"SCHILY.xattr.security.capability": "\1\0\udcff=\n"}),
        file("old", b"", mtime=-1000),
    )
    with Tree() as tree:
        apply(tree, layer)
        node = tree.find("file")
        assert isinstance(node, Regular) and tree.find("hard") is node
        assert (node.mode, node.uid, node.gid) == (0o4755, 3_000_000_000, 2_097_152)
        assert node.mtime_ns == 1_500_000_000
        assert (tree.root.mode, tree.root.uid) == (0o1777, 3)
        caps, disk, old = tree.find("caps"), tree.find("disk"), tree.find("old")
        assert caps and caps.xattrs == {"security.capability": b"\1\0\xff=\n"}
        assert isinstance(disk, Special)
        assert (disk.kind, disk.device) == (stat.S_IFBLK, (259, 70_000))
        assert old and old.mtime_ns == -1000 * 10**9
        assert read(tree, long) == b"long"
        assert_same(tree, image_of(tree, tmp_path))


def test_links_have_the_mode_that_linux_gives_them() -> None:
    with Tree() as tree:
        apply(tree, archive(symlink("link", "x", mode=0o644)))
        node = tree.find("link")
        assert node and node.mode == 0o777


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_both_kinds_of_long_names(form: int) -> None:
    name, target = "d" * 90 + "/" + "n" * 180, "t" * 250
    layer = archive(
        folder("d" * 150), file(name, b"x"), hard_link("h", name), symlink("s", target), form=form
    )
    with Tree() as tree:
        apply(tree, layer)
        assert tree.find("h") is tree.find(name)
        link = tree.find("s")
        assert isinstance(link, Symlink) and link.target == target
        assert isinstance(tree.find("d" * 150), Directory)


def test_numbers_in_base_256() -> None:
    with Tree() as tree:
        entry = file("big", b"", uid=4_000_000_000, gid=1 << 31, mtime=-5)
        apply(tree, archive(entry, form=tarfile.GNU_FORMAT))
        node = tree.find("big")
        assert node and (node.uid, node.gid) == (4_000_000_000, 1 << 31)
        assert node.mtime_ns == -5 * 10**9


@pytest.mark.parametrize("pack", archives.PACKERS)
def test_packed_in_every_way(pack: object) -> None:
    with Tree() as tree:
        applied = apply(tree, pack(BASE))  # type: ignore[operator]
        assert read(tree, "etc/sub/c") == b"base c"
    assert applied.diff_id == f"sha256:{hashlib.sha256(BASE).hexdigest()}"
    assert (applied.unpacked_bytes, applied.entry_count) == (len(BASE), 9)


def test_an_archive_without_an_end_is_whole() -> None:
    with Tree() as tree:
        apply(tree, archive(file("x", b"1"))[:1024], b"", bytes(1024))
        assert read(tree, "x") == b"1"


def test_what_an_overlay_noted_is_left_out() -> None:
    notes = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.ok": "1"}
    with Tree() as tree:
        apply(tree, archive(folder("d", pax_headers=notes)))
        node = tree.find("d")
        assert node and node.xattrs == {"user.ok": b"1"}


# --- what it does to what is there --------------------------------------------------------------


def test_later_layers_win() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(file("etc/a", b"new", uid=5), folder("etc", mode=0o700, uid=6)))
        assert read(tree, "etc/a") == b"new"
        assert read(tree, "etc/b") == b"base b"
        node = tree.find("etc")
        assert node and (node.mode, node.uid) == (0o700, 6)


def test_whiteouts() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(file("etc/.wh.a"), file("etc/.wh.sub"), file("etc/.wh.none")))
        assert paths(tree) == ["etc", "etc/b", "lib", "usr", "usr/lib", "usr/lib/old"]
        apply(tree, archive(file(".wh.etc"), file(".wh.lib"), file("no/such/.wh.x")))
        assert paths(tree) == ["usr", "usr/lib", "usr/lib/old"]


NEW = [file("etc/new", b"new"), folder("etc/sub"), file("etc/sub/d", b"new d")]


@pytest.mark.parametrize("is_last", [False, True])
def test_an_opaque_folder_keeps_what_its_own_layer_brings(is_last: bool) -> None:
    opaque = [folder("etc"), file("etc/.wh..wh..opq")]
    layer = [*NEW, *opaque] if is_last else [*opaque, *NEW]
    with Tree() as tree:
        apply(tree, BASE, archive(*layer))
        kept = [path for path in paths(tree) if path.startswith("etc")]
        assert kept == ["etc", "etc/new", "etc/sub", "etc/sub/d"]


@pytest.mark.parametrize("is_last", [False, True])
def test_a_whiteout_beside_what_takes_its_place(is_last: bool) -> None:
    new = [folder("etc"), file("etc/new", b"")]
    layer = [*new, file(".wh.etc")] if is_last else [file(".wh.etc"), *new]
    with Tree() as tree:
        apply(tree, BASE, archive(*layer))
        assert [path for path in paths(tree) if path.startswith("etc")] == ["etc", "etc/new"]


def test_an_opaque_folder_in_place_of_a_link() -> None:
    # What was behind the link is another folder, and stays.
    with Tree() as tree:
        apply(tree, BASE, archive(folder("lib"), file("lib/.wh..wh..opq"), file("lib/x")))
        assert read(tree, "usr/lib/old") == b"old"
        assert [path for path in paths(tree) if "lib" in path] == [
            "lib", "lib/x", "usr/lib", "usr/lib/old",
        ]  # fmt: skip


def test_the_bookkeeping_of_aufs_is_left_out() -> None:
    with Tree() as tree:
        apply(
            tree, archive(folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b""), file(".wh..wh.x"))
        )
        assert paths(tree) == []


@pytest.mark.parametrize(
    "entry", [file("etc", b"f"), symlink("etc", "usr"), hard_link("etc", "lib")]
)
def test_anything_in_place_of_a_folder(entry: archives.Member) -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(entry))
        assert not isinstance(tree.find("etc"), Directory)
        assert not any(path.startswith("etc/") for path in paths(tree))


def test_a_folder_in_place_of_a_file_and_of_a_link() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(folder("etc/a"), file("etc/a/x"), folder("lib")))
        assert isinstance(tree.find("etc/a"), Directory)
        assert isinstance(tree.find("lib"), Directory) and tree.find("lib/old") is None


def test_a_merged_usr_is_written_through() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(file("lib/new", b"new"), file("lib/.wh.old")))
        assert read(tree, "usr/lib/new") == b"new"
        assert tree.find("usr/lib/old") is None
        assert isinstance(tree.find("lib"), Symlink)


def test_an_absolute_link_is_followed_inside() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(symlink("evil", "/etc"), file("evil/passwd", b"inside")))
        assert read(tree, "etc/passwd") == b"inside"


def test_hard_links_to_layers_below(tmp_path: Path) -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(hard_link("x", "etc/a"), hard_link("y", "./lib/old")))
        assert tree.find("x") is tree.find("etc/a")
        assert tree.find("y") is tree.find("usr/lib/old")
        apply(tree, archive(file("etc/a", b"replaced")))
        assert read(tree, "x") == b"base a"
        assert_same(tree, image_of(tree, tmp_path))


def test_names_and_hard_links_are_cleaned_as_other_tools_do() -> None:
    with Tree() as tree:
        apply(tree, archive(
            file("/nix/x", b"1"), hard_link("/nix/y", "/nix/x"), folder("/", mode=0o711),
            file("a/../b/./c", b"2"), hard_link("d", "b/e/../c"), hard_link("//f", "/b/c"),
            symlink("/up", "../../etc"), folder("/b/../", mode=0o700),
        ))  # fmt: skip
        assert paths(tree) == ["b", "b/c", "d", "f", "nix", "nix/x", "nix/y", "up"]
        assert tree.find("nix/y") is tree.find("nix/x")
        assert tree.find("b/c") is tree.find("d") and tree.find("d") is tree.find("f")
        assert tree.root.mode == 0o700
        link = tree.find("up")
        assert isinstance(link, Symlink) and link.target == "../../etc"
        apply(tree, archive(file("/nix/../b/.wh.c"), file("/x/../nix/.wh..wh..opq")))
        assert paths(tree) == ["b", "d", "f", "nix", "up"]


def test_a_name_is_clean_before_links_in_it_are_followed() -> None:
    with Tree() as tree:
        apply(tree, BASE, archive(symlink("deep", "usr/lib"), file("deep/../x", b"at the root")))
        assert read(tree, "x") == b"at the root" and tree.find("usr/x") is None


def test_folders_that_no_entry_tells_of_are_made() -> None:
    with Tree() as tree:
        apply(tree, archive(file("a/b/c", b"", uid=9)))
        node = tree.find("a/b")
        assert isinstance(node, Directory) and (node.mode, node.uid) == (0o755, 0)


# --- who must not get in ------------------------------------------------------------------------

DEEP = "/".join("d" * 300)
BAD = {
    "..": (file("../x"), "leads out of the image"),
    "only ..": (folder(".."), "leads out of the image"),
    "inner ..": (file("a/../../x"), "leads out of the image"),
    "absolute ..": (file("/../x"), "leads out of the image"),
    "out and back": (file("../etc/x"), "leads out of the image"),
    "whiteout of ../x": (file("etc/../../.wh.x"), "leads out of the image"),
    "link to ..": (hard_link("x", "../etc/passwd"), "leads out of the image"),
    "link to absolute ..": (hard_link("x", "/etc/../../etc/a"), "leads out of the image"),
    "link by absolute to nothing": (hard_link("x", "/etc/passwd"), "which is not there"),
    "link to nothing": (hard_link("x", "missing"), "which is not there"),
    "link to folder": (hard_link("x", "etc"), "which is a folder"),
    "empty symlink": (symlink("x", ""), "to no path"),
    "long symlink": (symlink("x", "t" * 4096), "to no path"),
    "file in the way": (file("etc/a/x"), "in the way"),
    "long name": (file("n" * 256), "a name of more than 255"),
    "long path": (file("/".join(["n" * 200] * 30)), "a path of more than 4095"),
    "deep": (file(DEEP), "folders deep"),
    "root as a file": (file("."), "must be a folder"),
    "root as a link": (symlink("./", "etc"), "must be a folder"),
    "whiteout of nothing": (file("etc/.wh."), "a whiteout of no name"),
    "whiteout of .": (file("etc/.wh.."), "a whiteout of no name"),
    "whiteout of ..": (file("etc/.wh..."), "a whiteout of no name"),
    "unknown type": (member("x", b"V"), "unknown type of entry"),
    "nobody": (file("x", uid=0xFFFFFFFF), "nobody can be"),
    "negative owner": (file("x", gid=1 << 40), "nobody can be"),
    "device": (member("x", tarfile.CHRTYPE, devmajor=4096), "no device can be"),
    "long xattr": (file("x", pax_headers={"SCHILY.xattr.user.x": "v" * 65_536}), "attributes of"),
    "xattr of no name": (file("x", pax_headers={"SCHILY.xattr.": "v"}), "of no name"),
    "xattrs": (
        file("x", pax_headers={f"SCHILY.xattr.user.{i}": "v" * 60_000 for i in range(3)}),
        "attributes of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_entries_are_refused_by_name(case: str) -> None:
    (info, data), why = BAD[case]
    with Tree() as tree, pytest.raises(ImageError, match=why) as caught:
        apply(tree, BASE, archive((info, data)))
    assert str(caught.value).startswith("layer entry '")
    assert info.name.strip("/")[:100] in str(caught.value)


def test_links_that_lead_out_are_not_followed() -> None:
    with Tree() as tree, pytest.raises(ImageError, match="'out/x'.*leads out of the image"):
        apply(tree, BASE, archive(symlink("out", "../../etc"), file("out/x")))
    with Tree() as tree, pytest.raises(ImageError, match="'out/.wh.x'.*leads out"):
        apply(tree, archive(symlink("out", ".."), file("out/.wh.x")))
    with Tree() as tree, pytest.raises(ImageError, match="too many levels"):
        apply(tree, archive(symlink("a", "b"), symlink("b", "a"), file("a/x")))


def test_links_do_not_make_folders_deeper_than_names_can() -> None:
    with Tree() as tree, pytest.raises(ImageError, match="folders deep"):
        for index in range(9):
            deep = f"l{index}/" + "/".join("d" * 50)
            apply(tree, archive(folder(deep), symlink(f"l{index + 1}", deep)))


def test_folders_as_deep_as_can_be(tmp_path: Path) -> None:
    deep = "/".join("d" * DEPTH_MAX)
    with Tree() as tree:
        apply(tree, archive(folder(deep)))
        assert_same(tree, image_of(tree, tmp_path))
        apply(tree, archive(file(".wh..wh..opq"), file("kept")))
        assert paths(tree) == ["kept"]
    (tmp_path / "host" / deep).mkdir(parents=True)
    with read_folder(str(tmp_path / "host")) as tree:
        assert len(paths(tree)) == DEPTH_MAX
    (tmp_path / "host" / deep / "d").mkdir()
    with pytest.raises(ImageError, match="folders deep"):
        read_folder(str(tmp_path / "host"))


def test_names_are_shown_without_what_a_terminal_would_obey() -> None:
    with Tree() as tree, pytest.raises(ImageError) as caught:
        apply(tree, archive(file("../\x1b[2J" + "n" * 3000)))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_limits_hold_over_layers() -> None:
    for limits, why in (
        (Limits(entries=12), "more than 12 entries"),
        (Limits(total_bytes=len(BASE) * 3 // 2), "unpacks to more than"),
    ):
        with Tree() as tree, pytest.raises(ImageError, match=why):
            apply(tree, BASE, BASE, limits=limits)


def test_folders_without_an_entry_count() -> None:
    deep = [file(f"{index}/" + "d/" * 100 + "f") for index in range(3)]
    with Tree() as tree, pytest.raises(ImageError, match="more than 200 entries"):
        apply(tree, archive(*deep), limits=Limits(entries=200))


def test_holes_count() -> None:
    info, _ = file("sparse")
    info.pax_headers = {"GNU.sparse.size": str(1 << 50), "GNU.sparse.map": "0,0"}
    with Tree() as tree, pytest.raises(ImageError, match="'sparse'.*bytes of files"):
        apply(tree, archive((info, b"")))


def test_many_opaque_folders_take_no_longer_than_one() -> None:
    opaque = [file("d/.wh..wh..opq") for _ in range(300)]
    with Tree() as tree:
        apply(tree, archive(*(file(f"d/{index}") for index in range(300)), *opaque))
        assert len(paths(tree)) == 301


def test_a_stream_of_short_reads() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 7, 7))

    with Tree() as tree:
        apply_layer(tree, Slow(archives.two_members(BASE)))
        assert read(tree, "etc/b") == b"base b"
