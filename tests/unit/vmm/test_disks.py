"""How users write a disk."""

from __future__ import annotations

import pytest

from voidbox.errors import ConfigError
from voidbox.vmm.config import DiskConfig, parse_disk


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d.img", DiskConfig("d.img")),
        ("/dev/loop0,ro", DiskConfig("/dev/loop0", is_read_only=True)),
        ("a,serial=x=y", DiskConfig("a", serial="x=y")),
        ("a,serial=", DiskConfig("a")),
        ("a,overlay=b,serial=c", DiskConfig("a", overlay="b", serial="c")),
        ("a,,b,ro", DiskConfig("a,b", is_read_only=True)),
        ("a,overlay=b,,c", DiskConfig("a", overlay="b,c")),
        ("ro", DiskConfig("ro")),
    ],
)
def test_a_disk_is_read(text: str, expected: DiskConfig) -> None:
    assert parse_disk(text) == expected
    assert parse_disk(str(expected)) == expected


def test_paths_are_taken_from_a_folder() -> None:
    disk = parse_disk("a,overlay=b").at("/f")
    assert (disk.path, disk.overlay) == ("/f/a", "/f/b")
    assert parse_disk("/a,overlay=/b").at("/f") == DiskConfig("/a", overlay="/b")


@pytest.mark.parametrize("text", ["", ",ro", "a,", "a,rw", "a,ro=1", "a,overlay=", "a,overlay"])
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(ConfigError, match=r"disk .*PATH\[,ro\]\[,overlay=FILE\]"):
        parse_disk(text)
