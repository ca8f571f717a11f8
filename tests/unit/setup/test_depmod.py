"""The tables of a kernel's modules: read back, and beside depmod's own where the host has it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.setup.kernel_folder import RELEASE, Kernel
from voidbox.defaults import MODULES_DISK
from voidbox.setup.depmod import _Entry, index, tables
from voidbox.setup.modules import Modules
from voidbox.setup.modules_disk import make_modules_disk

DEPMOD = shutil.which("depmod", path="/usr/sbin:/sbin")


def read_index(content: bytes) -> dict[bytes, list[tuple[int, bytes]]]:
    """Walk an index as kmod does; key to its values."""
    magic, version, root = struct.unpack_from(">III", content)
    assert (magic, version) == (0xB007F457, 0x00020001)
    found: dict[bytes, list[tuple[int, bytes]]] = {}

    def text(at: int) -> tuple[bytes, int]:
        end = content.index(b"\0", at)
        return content[at:end], end + 1

    def walk(offset: int, key: bytes) -> None:
        at = offset & 0x0FFFFFFF
        if offset & 0x80000000:
            prefix, at = text(at)
            key += prefix
        if offset & 0x20000000:
            first, last = content[at : at + 2]
            at += 2
            for letter in range(first, last + 1):
                (child,) = struct.unpack_from(">I", content, at)
                at += 4
                if child:
                    walk(child, key + bytes((letter,)))
        if offset & 0x40000000:
            (count,) = struct.unpack_from(">I", content, at)
            at += 4
            for _ in range(count):
                (priority,) = struct.unpack_from(">I", content, at)
                value, at = text(at + 4)
                found.setdefault(key, []).append((priority, value))

    walk(root, b"")
    return found


WORDS = st.binary(min_size=1, max_size=6).map(lambda word: bytes(b % 4 + 97 for b in word))


@given(st.sets(st.tuples(WORDS, st.integers(0, 9), WORDS)))
def test_all_that_is_put_into_an_index_is_found(entries: set[tuple[bytes, int, bytes]]) -> None:
    expected: dict[bytes, list[tuple[int, bytes]]] = {}
    for key, priority, value in sorted(entries):
        expected.setdefault(key, []).append((priority, value))
    assert read_index(index(_Entry(*entry) for entry in entries)) == expected


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    kernel = Kernel(tmp_path)
    kernel.add("net/a-b.ko", "depends=c,d", "alias=net-pf-16[a-c]-x", "softdep=pre: e post: c")
    kernel.add("net/c.ko", "depends=d", "alias=net-pf-16*")
    kernel.add("net/d.ko", "depends=")
    kernel.add("fs/fuse.ko", "depends=", "alias=devname:fuse", "alias=char-major-10-229")
    kernel.add("drivers/loop.ko.xz", "alias=devname:loop-control", "alias=char-major-10-237")
    order = "kernel/net/c.ko\nkernel/net/a-b.ko\nkernel/fs/fuse.ko\nkernel/drivers/loop.ko\n"
    (kernel.modules / "modules.order").write_text(order)
    (kernel.modules / "modules.builtin").write_text("kernel/fs/ext-4.ko\n")
    (kernel.modules / "modules.builtin.modinfo").write_bytes(
        b"ext_4.alias=fs-ext4\0ext_4.license=GPL\0ext_4.file=fs/ext-4\0"
    )
    return kernel


def test_what_modprobe_reads(kernel: Kernel) -> None:
    found = tables(Modules(kernel.modules))
    assert found["modules.dep"].decode().splitlines() == [
        "kernel/net/c.ko: kernel/net/d.ko",
        "kernel/net/a-b.ko: kernel/net/c.ko kernel/net/d.ko",
        "kernel/fs/fuse.ko:",
        "kernel/drivers/loop.ko.xz:",
        "kernel/net/d.ko:",
    ]
    assert found["modules.softdep"] == b"softdep a_b pre: e post: c\n"
    assert found["modules.devname"].splitlines()[1:] == [
        b"fuse fuse c10:229", b"loop loop-control c10:237"
    ]  # fmt: skip
    aliases = read_index(found["modules.alias.bin"])
    assert aliases[b"net_pf_16*"] == [(0, b"c")]
    assert aliases[b"net_pf_16[a-c]_x"] == [(1, b"a_b")]
    dependencies = read_index(found["modules.dep.bin"])
    assert dependencies[b"a_b"] == [(1, b"kernel/net/a-b.ko: kernel/net/c.ko kernel/net/d.ko")]
    assert read_index(found["modules.builtin.bin"]) == {b"ext_4": [(0, b"")]}
    assert read_index(found["modules.builtin.alias.bin"]) == {b"fs_ext4": [(0, b"ext_4")]}


@pytest.mark.skipif(DEPMOD is None, reason="no depmod here: apt-get install kmod")
def test_they_are_what_depmod_writes(kernel: Kernel) -> None:
    found = tables(Modules(kernel.modules))
    assert DEPMOD is not None
    subprocess.run([DEPMOD, "-b", str(kernel.folder), RELEASE], check=True, timeout=60)
    for name in ("modules.devname", "modules.alias.bin", "modules.builtin.bin"):
        assert found[name] == (kernel.modules / name).read_bytes(), name
    name = "modules.builtin.alias.bin"
    assert found[name] == (kernel.modules / name).read_bytes()


def test_a_disk_is_made_once_and_holds_all(kernel: Kernel, tmp_path: Path) -> None:
    make_modules_disk(str(kernel.folder))
    disk = tmp_path / MODULES_DISK
    content = disk.read_bytes()
    assert content[1024:1028] == b"\xe2\xe1\xf5\xe0"
    make_modules_disk(str(kernel.folder))
    assert disk.read_bytes() == content
    disk.unlink()
    make_modules_disk(str(kernel.folder))
    assert disk.read_bytes() == content
    assert [path.name for path in tmp_path.glob("*partial*")] == []
