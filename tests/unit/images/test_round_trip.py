"""Random trees: as an archive, applied, as an image, read again, and looked at by fsck."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.images.archives import Member, apply, archive, folder, member
from tests.unit.images.trees import assert_same, check_with_fsck, content, image_of, require
from voidbox.images.tree import Directory, Regular, Tree

NAMES = st.binary(min_size=1, max_size=40).map(
    lambda name: name.translate(None, b"/\0").decode("utf-8", "surrogateescape") or "n"
).filter(lambda name: name not in (".", "..") and not name.startswith(".wh."))  # fmt: skip
OWNERS = st.integers(0, (1 << 32) - 2)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE,
     tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)  # fmt: skip
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "trusted.c", "security.d"]),
    st.binary(max_size=100).map(lambda value: value.decode("utf-8", "surrogateescape")),
    max_size=2,
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[list[Member], dict[str, bytes]]:
    """Draw an archive's entries, and the content of its regular files."""
    folders = [""]
    contents: dict[str, bytes] = {}
    members: dict[str, Member] = {}
    for _ in range(draw(st.integers(0, 25))):
        name = draw(st.sampled_from(folders)) + draw(NAMES)
        if name in members:
            continue
        kind = draw(KINDS)
        data = b""
        if kind == tarfile.REGTYPE:
            data = draw(st.binary(max_size=30)) * draw(st.sampled_from([0, 1, 137, 500]))
            contents[name] = data
        xattrs = {f"SCHILY.xattr.{key}": value for key, value in draw(XATTRS).items()}
        members[name] = member(
            name,
            kind,
            data,
            mode=draw(st.integers(0, 0o7777)),
            uid=draw(OWNERS),
            gid=draw(OWNERS),
            mtime=draw(st.integers(-(1 << 33), 1 << 34)),
            linkname="target" * 50 if kind == tarfile.SYMTYPE else "",
            devmajor=draw(st.integers(0, 4095)),
            devminor=draw(st.integers(0, (1 << 20) - 1)),
            pax_headers=xattrs,
        )
        if kind == tarfile.DIRTYPE:
            folders.append(f"{name}/")
    if contents and "link" not in members and draw(st.booleans()):
        target = draw(st.sampled_from(sorted(contents)))
        members["link"] = member("link", tarfile.LNKTYPE, linkname=target)
        contents["link"] = contents[target]
    return list(members.values()), contents


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(drawn=entries())
def test_random_trees(drawn: tuple[list[Member], dict[str, bytes]]) -> None:
    members, contents = drawn
    with tempfile.TemporaryDirectory() as scratch, Tree() as tree:
        apply(tree, archive(*members))
        for name, data in contents.items():
            node = tree.find(name)
            assert isinstance(node, Regular) and content(node) == data
        for info, _ in members:
            node = tree.find(info.name)
            assert node is not None
            if info.type != tarfile.LNKTYPE:
                mode = 0o777 if info.type == tarfile.SYMTYPE else info.mode
                assert (node.mode, node.uid, node.gid) == (mode, info.uid, info.gid)
                assert node.mtime_ns == info.mtime * 10**9
                assert len(node.xattrs) == len(info.pax_headers)
        assert_same(tree, image_of(tree, Path(scratch)))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(first=entries(), second=entries(), opaque=st.booleans())
def test_a_layer_over_another(
    first: tuple[list[Member], dict[str, bytes]],
    second: tuple[list[Member], dict[str, bytes]],
    opaque: bool,
) -> None:
    upper = [member(".wh..wh..opq"), *second[0]] if opaque else second[0]
    with tempfile.TemporaryDirectory() as scratch, Tree() as tree, Tree() as alone:
        below = [folder("below"), *(with_prefix(one, "below/") for one in first[0])]
        apply(tree, archive(*below), archive(*upper))
        apply(alone, archive(*second[0]))
        found = {path for path, _ in tree.walk()}
        kept = found - {path for path, _ in alone.walk()}
        if opaque:
            assert not kept
        else:
            assert "below" in found and all(path.startswith("below") for path in kept)
        assert bool(kept) != opaque
        assert_same(tree, image_of(tree, Path(scratch)))


def with_prefix(one: Member, prefix: str) -> Member:
    info, data = one
    info.name = prefix + info.name
    if info.type == tarfile.LNKTYPE:
        info.linkname = prefix + info.linkname
    return info, data


def test_a_folder_by_gnu_tar_and_back(tmp_path: Path) -> None:
    tar = require("tar", "tar")
    source = Path(__file__).parents[1]
    command = [tar, "-C", source, "--exclude=__pycache__", "-czf", "-", "."]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    with Tree() as tree:
        apply(tree, packed)
        assert_same(tree, image_of(tree, tmp_path))
        for path, node in tree.walk():
            there = source / path
            assert node.mode == there.stat().st_mode & 0o7777
            assert isinstance(node, Directory) == there.is_dir()
            if isinstance(node, Regular):
                assert content(node) == there.read_bytes()
    check_with_fsck(tmp_path / "image.erofs")
