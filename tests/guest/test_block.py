"""A disk on a real machine: a driver of a few bytes reads a sector, and nothing is left behind."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from tests.guest import tiny
from voidbox.boot import layout
from voidbox.errors import ConfigError
from voidbox.virtio import mmio_regs as regs
from voidbox.vmm.config import DiskConfig, MachineConfig
from voidbox.vmm.machine import Machine

DEADLINE_S = 60
MEMORY_BYTES = 32 << 20
DISK_SLOT = 1  # behind the rng
DESC_GPA, AVAIL_GPA, USED_GPA = 0x200000, 0x201000, 0x202000
HEADER_GPA, STATUS_GPA, DATA_GPA = 0x203000, 0x203100, 0x204000
QUEUE_SIZE = 8


def driver() -> bytes:
    """Bring the disk up, kick its queue, wait for one used element, power off."""
    base = layout.MMIO_DEVICES_GPA + DISK_SLOT * layout.MMIO_DEVICE_BYTES
    writes = [
        (regs.VIRTIO_MMIO_STATUS, 0), (regs.VIRTIO_MMIO_STATUS, 1), (regs.VIRTIO_MMIO_STATUS, 3),
        (regs.VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1), (regs.VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (regs.VIRTIO_MMIO_STATUS, 11), (regs.VIRTIO_MMIO_QUEUE_SEL, 0),
        (regs.VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE), (regs.VIRTIO_MMIO_QUEUE_DESC_LOW, DESC_GPA),
        (regs.VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL_GPA), (regs.VIRTIO_MMIO_QUEUE_USED_LOW, USED_GPA),
        (regs.VIRTIO_MMIO_QUEUE_READY, 1), (regs.VIRTIO_MMIO_STATUS, 15),
        (regs.VIRTIO_MMIO_QUEUE_NOTIFY, 0),
    ]  # fmt: skip
    code = b""
    for register, value in writes:
        code += b"\xb8" + struct.pack("<I", value) + tiny.store_eax(base + register)
    # mov edi, USED_GPA; mov eax, [edi]; shr eax, 16: used->idx; jz back
    code += b"\xbf" + struct.pack("<I", USED_GPA) + b"\x8b\x07\xc1\xe8\x10\x74\xf4"
    return code + tiny.power_off()


def config_of(tmp_path: Path, code: bytes, *disks: DiskConfig) -> MachineConfig:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", code, pvh=True)
    return MachineConfig(kernel=kernel, memory_bytes=MEMORY_BYTES, disks=disks)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([sector]) * 512 for sector in range(16)))
    return str(path)


def read_a_sector(tmp_path: Path, *disks: DiskConfig) -> bytes:
    """Boot the driver, have it read sector 7 of the first disk."""
    with Machine(config_of(tmp_path, driver(), *disks)) as machine:
        machine.memory.write(HEADER_GPA, struct.pack("<IIQ", 0, 0, 7))
        machine.memory.write(STATUS_GPA, b"\xee")
        descs = struct.pack("<QIHH", HEADER_GPA, 16, 1, 1)
        descs += struct.pack("<QIHH", DATA_GPA, 512, 3, 2) + struct.pack(
            "<QIHH", STATUS_GPA, 1, 2, 0
        )
        machine.memory.write(DESC_GPA, descs)
        machine.memory.write(AVAIL_GPA, struct.pack("<HHH", 0, 1, 0))
        machine.start()
        assert machine.wait(DEADLINE_S) is not None
        assert machine.memory.read(STATUS_GPA, 1) == b"\0"
        assert machine.statistics().disks[0].reads == 1
        return machine.memory.read(DATA_GPA, 512)


@pytest.mark.kvm
def test_a_guest_reads_a_sector(tmp_path: Path, image: str) -> None:
    assert read_a_sector(tmp_path, DiskConfig(image)) == b"\7" * 512
    overlay = DiskConfig(image, overlay=str(tmp_path / "overlay"))
    assert read_a_sector(tmp_path, overlay) == b"\7" * 512


@pytest.mark.kvm
def test_machines_with_disks_leave_nothing_behind(tmp_path: Path, image: str) -> None:
    disks = [
        DiskConfig(image, overlay=str(tmp_path / name), serial=name) for name in ("one", "two")
    ]
    read_a_sector(tmp_path, *disks)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        read_a_sector(tmp_path, *disks)
        with Machine(config_of(tmp_path, tiny.HLT_FOREVER, *disks)):
            pass  # never started
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        (DiskConfig("{}/none"), "there is no such file"),
        (DiskConfig("{}/disk", True, serial="x" * 21), "up to 20 characters"),
        (DiskConfig("{}"), "a folder is no disk"),
        (DiskConfig("{}/disk", overlay="{}/disk"), "in use by another machine"),
    ],
)
def test_a_disk_that_cannot_be_used_is_said_before_anything_is_made(
    tmp_path: Path, image: str, disk: DiskConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidbox.block.image._FREED_S", 0.0)  # nobody is about to end
    before = len(os.listdir("/proc/self/fd"))
    disk = disk._replace(
        path=disk.path.format(tmp_path),
        overlay=disk.overlay and disk.overlay.format(tmp_path),
    )
    with pytest.raises(ConfigError, match=message):
        Machine(
            config_of(tmp_path, b"", DiskConfig(image, is_read_only=True), disk), "/nonexistent"
        )
    assert len(os.listdir("/proc/self/fd")) <= before
