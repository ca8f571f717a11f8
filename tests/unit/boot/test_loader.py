"""Loading kernels: every format, every limit, every way in which a file can be wrong."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.boot import images
from voidbox.boot import layout, loader, params, payload
from voidbox.errors import ConfigError
from voidbox.memory import MMIO_HOLE_END_GPA, GuestMemory

MIB = 1 << 20
PAYLOADS = ["gzip", "xz", "lz4"]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * MIB) as memory:
        yield memory


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    return write(tmp_path, images.elf())


def write(folder: Path, content: bytes, name: str = "kernel") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def load(
    memory: GuestMemory, kernel: str, initramfs: str | None = None, cmdline: str = "quiet"
) -> loader.EntryPoint:
    return loader.load(memory, kernel, initramfs, cmdline, b"RSD PTR ")


def test_elf_is_entered_in_64_bit_mode_with_a_zero_page(memory: GuestMemory, kernel: str) -> None:
    assert load(memory, kernel) == (images.ENTRY_GPA, False)
    assert memory.read(images.ENTRY_GPA, len(images.CODE)) == images.CODE
    assert memory.read(layout.CMDLINE_GPA, 6) == b"quiet\0"
    page = memory.read(layout.ZERO_PAGE_GPA, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<I", page, 0x228)[0] == layout.CMDLINE_GPA
    assert struct.unpack_from("<Q", page, 0x70)[0] == layout.ACPI_GPA


def test_elf_with_the_note_is_entered_by_pvh(memory: GuestMemory, tmp_path: Path) -> None:
    initramfs = write(tmp_path, b"cpio" * 100, "initramfs")
    entry = load(memory, write(tmp_path, images.elf(notes=True)), initramfs)
    assert entry == (images.PVH_ENTRY_GPA, True)
    info = struct.unpack("<IIIIQQQQII", memory.read(layout.PVH_START_INFO_GPA, 56))
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, entries, _ = info
    assert (magic, version, modules) == (0x336EC578, 1, 1)
    assert (cmdline, rsdp) == (layout.CMDLINE_GPA, layout.ACPI_GPA)
    gpa, size, _, _ = struct.unpack("<QQQQ", memory.read(modlist, 32))
    assert memory.read(gpa, size) == b"cpio" * 100
    first = struct.unpack("<QQII", memory.read(memmap, 24))
    assert first == (0, layout.SYSTEM_DATA_GPA, params.E820_TYPE_RAM, 0)
    assert entries == 3


def test_bzimage_that_cannot_be_unpacked_unpacks_itself(
    memory: GuestMemory, tmp_path: Path
) -> None:
    image = images.bzimage(b"????" * 10)
    assert load(memory, write(tmp_path, image)) == (layout.HIGH_RAM_GPA + 0x200, False)
    assert memory.read(layout.HIGH_RAM_GPA, 0x800) == image[1024 : 1024 + 0x800]
    # Its own header is in the zero page, with the loader's fields filled in.
    page = memory.read(layout.ZERO_PAGE_GPA, 4096)
    assert page[0x206:0x208] == image[0x206:0x208]
    assert page[0x210] == 0xFF


@pytest.mark.parametrize("method", PAYLOADS)
def test_a_payload_is_unpacked_to_where_it_runs(
    memory: GuestMemory, tmp_path: Path, method: str
) -> None:
    image = images.bzimage(images.compressed(images.elf(), method))
    assert load(memory, write(tmp_path, image)) == (images.ENTRY_GPA, False)
    assert memory.read(images.ENTRY_GPA, len(images.CODE)) == images.CODE


@pytest.mark.parametrize("method", PAYLOADS)
def test_large_payloads_come_in_pieces(memory: GuestMemory, tmp_path: Path, method: str) -> None:
    code = bytes(range(251)) * 20_000  # 5 MB: more than one piece for gzip and xz
    image = images.bzimage(images.compressed(images.elf(code=code), method), init_size=8 * MIB)
    assert load(memory, write(tmp_path, image)).rip == images.ENTRY_GPA
    assert memory.read(images.ENTRY_GPA, len(code)) == code


@settings(max_examples=200)
@given(data=st.data(), method=st.sampled_from(PAYLOADS))
def test_damaged_payloads_are_undecodable_and_no_more(data: st.DataObject, method: str) -> None:
    packed = bytearray(images.compressed(images.elf(), method))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    del packed[data.draw(st.integers(1, len(packed))) :]
    try:
        payload.unpacked_bytes(bytes(packed))
        for piece in payload.unpack(bytes(packed)):
            assert len(piece) <= 8 * MIB
    except payload.Undecodable:
        pass


def test_self_extract_skips_the_hosts_unpacking(memory: GuestMemory, tmp_path: Path) -> None:
    path = write(tmp_path, images.bzimage(images.compressed(images.elf(), "xz")))
    entry = loader.load(memory, path, None, "", b"", self_extract=True)
    assert entry.rip == layout.HIGH_RAM_GPA + 0x200


@pytest.mark.parametrize("make", [images.elf, lambda: images.elf(notes=True), images.bzimage])
def test_every_truncation_is_a_clear_error(
    memory: GuestMemory, tmp_path: Path, make: object
) -> None:
    whole = make()  # type: ignore[operator]
    for length in [*range(0, 0x300, 7), *range(0x300, len(whole), 331), len(whole) - 1]:
        path = write(tmp_path, whole[:length])
        with pytest.raises(ConfigError, match=r"truncated|no Linux kernel|damaged"):
            load(memory, path)


@pytest.mark.slow
@settings(max_examples=300)
@given(data=st.data(), base=st.sampled_from(["elf", "pvh", "bzimage"]))
def test_damaged_kernels_never_raise_anything_else(data: st.DataObject, base: str) -> None:
    make = {
        "elf": images.elf,
        "pvh": lambda: images.elf(notes=True),
        "bzimage": lambda: images.bzimage(images.compressed(images.elf(), "xz")),
    }
    image = bytearray(make[base]())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, min(len(image) - 1, 0x300)))
        image[position] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file, GuestMemory(32 * MIB) as memory:
        file.write(image)
        file.flush()
        try:
            load(memory, file.name)
        except ConfigError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no Linux kernel"),
        (b"#!/bin/sh\n" * 100, "no Linux kernel"),
        (images.bzimage(version=0x205), "too old"),
        (images.bzimage(xloadflags=0), "64-bit"),
        (images.bzimage(init_size=1 << 30), "does not fit"),
        (images.elf(bss_bytes=1 << 40), "does not fit"),
        (images.elf().replace(b"\x7fELF\x02", b"\x7fELF\x01"), "no x86-64 kernel"),
    ],
)
def test_files_that_are_no_usable_kernel(
    memory: GuestMemory, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(memory, write(tmp_path, content))


def test_missing_and_unreadable_files(memory: GuestMemory, tmp_path: Path, kernel: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the kernel .*No such file"):
        load(memory, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot read the kernel .*directory"):
        load(memory, str(tmp_path))
    with pytest.raises(ConfigError, match="cannot read the initramfs .*No such file"):
        load(memory, kernel, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot read the initramfs .*directory"):
        load(memory, kernel, str(tmp_path))


def test_the_initramfs_lies_at_the_top(memory: GuestMemory, tmp_path: Path, kernel: str) -> None:
    load(memory, kernel, write(tmp_path, b"x" * 5000, "initramfs"))
    page = memory.read(layout.ZERO_PAGE_GPA, 4096)
    gpa, size = struct.unpack_from("<II", page, 0x218)
    assert (gpa, size) == (64 * MIB - 8192, 5000)
    assert memory.read(gpa, size) == b"x" * 5000


def test_initrd_addr_max_is_kept(memory: GuestMemory, tmp_path: Path) -> None:
    image = images.bzimage(initrd_addr_max=32 * MIB - 1)
    load(memory, write(tmp_path, image), write(tmp_path, b"x" * 100, "initramfs"))
    page = memory.read(layout.ZERO_PAGE_GPA, 4096)
    assert struct.unpack_from("<I", page, 0x218)[0] == 32 * MIB - 4096


def test_initramfs_limits(memory: GuestMemory, tmp_path: Path, kernel: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        load(memory, kernel, write(tmp_path, b"", "initramfs"))
    with pytest.raises(ConfigError, match="does not fit beside the kernel"):
        load(memory, kernel, write(tmp_path, bytes(60 * MIB), "initramfs"))


def test_command_line_limits(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel, cmdline="x" * 2047)
    with pytest.raises(ConfigError, match="2048 bytes; this kernel takes 2047"):
        load(memory, kernel, cmdline="x" * 2048)
    with pytest.raises(ConfigError, match="zero byte"):
        load(memory, kernel, cmdline="a\0b")


@pytest.mark.parametrize("size", [256 * MIB, 3 << 30, 4 << 30])
def test_e820_covers_all_ram_but_what_is_reserved(size: int) -> None:
    entries = params.e820(size)
    ram = sum(length for _, length, kind in entries if kind == params.E820_TYPE_RAM)
    reserved = layout.HIGH_RAM_GPA - layout.SYSTEM_DATA_GPA
    assert ram == size - reserved
    assert all(gpa + length <= entries[i + 1][0] for i, (gpa, length, _) in enumerate(entries[:-1]))
    assert (entries[-1][0] == MMIO_HOLE_END_GPA) == (size > 3 << 30)
