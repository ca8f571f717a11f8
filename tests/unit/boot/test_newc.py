"""The initramfs writer: read back by cpio and by a parser of our own; the same bytes always."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from voidbox.boot import newc


def make_tree(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tool").write_bytes(b"#!x\n")
    (root / "bin" / "tool").chmod(0o755)
    (root / "a-file").write_bytes(b"12345")
    (root / "bin.d").mkdir()
    (root / "link").symlink_to("bin/tool")


def pack(root: Path) -> bytes:
    output = io.BytesIO()
    newc.write(output, [*newc.entries_of(str(root)), newc.device_node("/console", 5, 1)])
    return output.getvalue()


def parse(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read an archive as the format's description says."""
    found, offset = {}, 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        assert fields[2:4] == [0, 0], "owned by root"
        assert fields[5] == 0, "no time"
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        data_at = offset + 110 + name_size + 3 & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[data_at : data_at + size], (fields[9], fields[10]))
        offset = data_at + size + 3 & ~3


def test_everything_is_there(tmp_path: Path) -> None:
    make_tree(tmp_path / "t")
    found = parse(pack(tmp_path / "t"))
    assert list(found) == ["a-file", "bin", "bin/tool", "bin.d", "console", "link"]
    assert found["bin/tool"] == (stat.S_IFREG | 0o755, b"#!x\n", (0, 0))
    assert found["a-file"] == (stat.S_IFREG | 0o644, b"12345", (0, 0))
    assert found["link"][:2] == (stat.S_IFLNK | 0o777, b"bin/tool")
    assert found["console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    archives = []
    for name, mask in (("one", 0o022), ("two", 0o077)):
        before = os.umask(mask)
        make_tree(tmp_path / name)
        os.umask(before)
        os.utime(tmp_path / name / "a-file", (1, mask))
        archives.append(pack(tmp_path / name))
    assert archives[0] == archives[1]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio: apt-get install cpio")
def test_cpio_reads_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "t")
    result = subprocess.run(
        ["cpio", "-t", "--quiet"], input=pack(tmp_path / "t"), capture_output=True, check=True
    )
    assert result.stdout.split() == [b"a-file", b"bin", b"bin/tool", b"bin.d", b"console", b"link"]


def test_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="cannot pack"):
        list(newc.entries_of(str(tmp_path)))


def test_some_permissions_can_be_given(tmp_path: Path) -> None:
    make_tree(tmp_path / "t")
    command = [sys.executable, "-m", "voidbox.boot.newc", tmp_path / "t", tmp_path / "out"]
    subprocess.run([*command, "--mode", "/bin:1777", "--mode", "/a-file:0600"], check=True)
    found = parse((tmp_path / "out").read_bytes())
    assert found["bin"][0] == stat.S_IFDIR | 0o1777
    assert found["a-file"][0] == stat.S_IFREG | 0o600
    assert found["bin/tool"][0] == stat.S_IFREG | 0o755


def test_what_cannot_be_packed_is_told_in_one_line(tmp_path: Path) -> None:
    make_tree(tmp_path / "t")
    command = [sys.executable, "-m", "voidbox.boot.newc", tmp_path / "t"]
    cases = [
        ([tmp_path / "out", "--mode", "/none:0700"], "there is no none"),
        ([tmp_path / "none" / "out"], "No such file"),
        (["/dev/full"], "No space left"),
    ]
    for arguments, expected in cases:
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert expected in result.stderr
