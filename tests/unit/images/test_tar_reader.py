"""Archives as GNU tar writes them, and as nobody should."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.images.archives import apply, archive, file, folder, member, symlink
from tests.unit.images.trees import content, require
from voidbox.images.errors import ImageError
from voidbox.images.limits import Limits
from voidbox.images.tree import Regular, Tree

FORMATS = [
    ["--format=gnu"],
    ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"],
    ["--format=posix", "--sparse-version=1.0"],
]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form[-1])
def test_sparse_files_of_gnu_tar(form: list[str], tmp_path: Path) -> None:
    tar = require("tar", "tar")
    data = {0: b"start", 1 << 20: os.urandom(9000), (3 << 20) - 4: b"ends"}
    for count, name in ((2, "few"), (120, "many" * 30)):
        with open(tmp_path / name, "wb") as sparse:
            for index in range(count):
                sparse.seek(index * 65_536)
                sparse.write(b"%d" % index)
            for position, piece in data.items():
                sparse.seek(position + count * 65_536)
                sparse.write(piece)
            sparse.truncate((16 << 20) + 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    command = [tar, "-C", str(tmp_path), "-S", *form, "-cf", "-", *names, names[0]]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(packed) < 2 << 20
    with Tree() as tree:
        apply(tree, packed)
        for name in names:
            node = tree.find(name)
            assert isinstance(node, Regular) and len(node.extents) > 2
            assert content(node) == (tmp_path / name).read_bytes()


def test_what_gnu_tar_has_where_ustar_has_a_prefix() -> None:
    # --atime and --ctime of an incremental archive (struct oldgnu_header).
    block = bytearray(archive(file("name"), form=tarfile.GNU_FORMAT))
    block[345:369] = b"14561234567\00014561234567\0"
    with Tree() as tree:
        apply(tree, with_checksum(block))
        assert tree.find("name") is not None


def with_checksum(data: bytes | bytearray, at: int = 0) -> bytes:
    """Return an archive whose header at this place says so of itself."""
    header = bytearray(data[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(data[:at]) + bytes(header) + bytes(data[at + 512 :])


def header(name: str = "x", kind: bytes = b"0", size: int = 0, data: bytes = b"") -> bytes:
    """Return a header whose size need not be that of the data after it."""
    info, _ = member(name, kind)
    info.size = size
    block = info.tobuf(tarfile.GNU_FORMAT)
    return block + data + bytes(-len(data) % 512)


def pax(*records: bytes) -> bytes:
    """Return a PAX header of records as they are."""
    data = b"".join(records)
    return header("pax", b"x", len(data), data)


def sparse(*records: bytes) -> bytes:
    """Return a PAX header of records, all shorter than 95 bytes, with GNU.sparse before each."""
    bodies = [b" GNU.sparse." + record + b"\n" for record in records]
    return pax(*(b"%d" % (len(body) + 2) + body for body in bodies))


HUGE = 1 << 60
OLD_SPARSE = bytearray(header("s", b"S", 512, bytes(512)))
OLD_SPARSE[386:410] = b"00000000000\00000000001000"[:24]
OLD_SPARSE[483:495] = b"00000000777\0"
ENDLESS_SPARSE = bytearray(OLD_SPARSE)
ENDLESS_SPARSE[482] = 1

BAD = {
    "no archive": (b"#!/bin/sh\n" * 200, "no tar archive"),
    "short": (b"abc", "cut short"),
    "size": (header(size=HUGE), "cut short"),
    "negative size": (header(size=-1024), "negative size"),
    "long name of any size": (header(kind=b"L", size=HUGE), "headers have more than"),
    "pax of any size": (header(kind=b"x", size=HUGE), "headers have more than"),
    "global pax of any size": (header(kind=b"g", size=HUGE), "headers have more than"),
    "a chain of headers": (header(kind=b"L", size=1, data=b"n") * 2500, "headers have more than"),
    "nothing after a header": (header(kind=b"L", size=1, data=b"n"), "cut short"),
    "zeros after a header": (pax(b"7 a=bc\n"[:7]) + bytes(1024), "damaged at byte"),
    "pax without length": (pax(b"path=x\n"), "no PAX header"),
    "pax of length 0": (pax(b"0 path=x\n"), "no PAX header"),
    "pax past the end": (pax(b"99 path=x\n"), "no PAX header"),
    "pax without =": (pax(b"9 pathxy\n"), "no PAX header"),
    "pax size": (pax(b"11 size=-1\n") + header(), "no number"),
    "pax huge size": (pax(b"28 size=1000000000000000000\n") + header(), "cut short"),
    "pax long number": (pax(b"99999999 size=" + b"9" * 500), "no PAX header"),
    "checksum": (header() + b"\1" + header()[1:], "damaged at byte 512"),
    "octal": (with_checksum(header()[:124] + b"9" * 11 + header()[135:]), "no tar archive"),
    "sparse map": (with_checksum(OLD_SPARSE), "map is wrong"),
    "endless sparse map": (with_checksum(ENDLESS_SPARSE) + b"1" * 4096, "damaged|wrong|map"),
    "sparse beyond its data": (
        sparse(b"major=1", b"realsize=999999") + header(size=512, data=b"1\n0\n4096\n"),
        "map is wrong",
    ),
    "sparse map longer than the file": (
        sparse(b"major=1", b"realsize=9") + header(size=0, data=b"0\n"),
        "map is wrong",
    ),
    "sparse map of any size": (
        sparse(b"major=1") + header(size=HUGE, data=b"999999999\n" + b"0\n" * 700_000),
        "headers have more than",
    ),
    "sparse map without numbers": (
        sparse(b"major=1") + header(size=2048, data=b"x" * 2048),
        "no map",
    ),
    "sparse map of half a pair": (sparse(b"map=1,2,3", b"size=9") + header(), "no map"),
    "sparse without a size": (sparse(b"map=0,1") + header(size=1, data=b"1"), "map is wrong"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_archives_are_refused(case: str) -> None:
    data, why = BAD[case]
    started = time.process_time()
    with Tree() as tree, pytest.raises(ImageError, match=why):
        apply(tree, data)
    assert time.process_time() - started < 0.5


def test_digits_take_no_time() -> None:
    # CVE-2024-6232: tarfile's own search takes hours for this.
    data = pax(b"1" * 1_000_000)
    started = time.process_time()
    with Tree() as tree, pytest.raises(ImageError, match="no PAX header"):
        apply(tree, data)
    assert time.process_time() - started < 0.5


def test_global_headers() -> None:
    info = tarfile.TarInfo()
    info.size = 1
    records = {"uid": "7", "comment": "c", "SCHILY.xattr.user.x": "y", "GNU.sparse.map": "0,1"}
    data = info.create_pax_global_header(records) + archive(file("x"))
    with Tree() as tree:
        apply(tree, data)
        node = tree.find("x")
        assert isinstance(node, Regular) and (node.uid, node.xattrs, node.size) == (7, {}, 0)
        with pytest.raises(ImageError, match="global headers have more than"):
            apply(tree, (info.create_pax_global_header({"k": "v" * 1000}) + header()) * 50)


def test_what_is_kept_of_entries_is_bounded() -> None:
    xattrs = {f"SCHILY.xattr.user.{index}": "v" for index in range(100)}
    holes = b"map=" + b",".join(b"%d,1" % (2 * index) for index in range(10))
    for data in (
        archive(*(file(f"f{index}", pax_headers=xattrs) for index in range(10))),
        (sparse(holes, b"size=20") + header(size=10, data=bytes(10))) * 60,
        archive(*(symlink(f"s{index}", "t" * 4000) for index in range(30))),
    ):
        with Tree() as tree, pytest.raises(ImageError, match="too many names"):
            apply(tree, data, limits=Limits(metadata_bytes=100_000))


WHOLE = archive(
    folder("d"), file("d/x", b"12345" * 300), file("n" * 200, b"y", uid=1 << 30), file("z", b"z")
)


def test_an_archive_cut_short_anywhere() -> None:
    for length in range(0, len(WHOLE), 64):
        with Tree() as tree:
            try:
                apply(tree, WHOLE[:length])
            except ImageError:
                continue
            # Between entries there is no telling; nor is there where only padding is missing.
            assert not any(WHOLE[length : -(-length // 512) * 512])


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    is_checksum_right=st.booleans(),
)
def test_any_damage_is_an_error_of_ours(
    changes: list[tuple[int, int]], is_checksum_right: bool
) -> None:
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    if is_checksum_right:
        for position, _ in changes:
            data = bytearray(with_checksum(data, position // 512 * 512))
    with Tree() as tree:
        try:
            apply(tree, bytes(data), limits=Limits(total_bytes=1 << 20))
        except ImageError as error:
            assert "\n" not in str(error)
