"""The ACPI tables, by their checksums, by their pointers, and by Intel's own disassembler."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from voidbox.boot import acpi, aml, layout
from voidbox.devices.serial import COM1_GSI, COM2_GSI

POWER = acpi.PowerRegisters(0x600, 0x601, 0x602, 1, 5)
PORTS = [
    acpi.PortDevice("COM1", "PNP0501", 0x3F8, 8, 4),
    acpi.PortDevice("RTC", "PNP0B00", 0x70, 2),
]


def build(cpus: int = 2, devices: int = 3) -> bytes:
    windows = [
        acpi.MmioDevice(layout.MMIO_DEVICES_GPA + 0x1000 * index, 0x1000, 5 + index)
        for index in range(devices)
    ]
    return acpi.build(cpus, POWER, PORTS, windows)


def table_at(image: bytes, gpa: int) -> bytes:
    offset = gpa - layout.ACPI_GPA
    (length,) = struct.unpack_from("<I", image, offset + 4)
    return image[offset : offset + length]


def tables(image: bytes) -> dict[str, bytes]:
    """Follow the pointers from the RSDP, as an operating system does."""
    (xsdt_gpa,) = struct.unpack_from("<Q", image, 24)
    xsdt = table_at(image, xsdt_gpa)
    found = {"XSDT": xsdt}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = table_at(image, gpa)
        found[table[:4].decode()] = table
    found["DSDT"] = table_at(image, struct.unpack_from("<Q", found["FACP"], 140)[0])
    return found


def test_checksums_and_pointers() -> None:
    image = build()
    assert image[:8] == b"RSD PTR "
    assert sum(image[:20]) & 0xFF == 0
    assert sum(image[:36]) & 0xFF == 0
    found = tables(image)
    assert sorted(found) == ["APIC", "DSDT", "FACP", "XSDT"]
    for signature, table in found.items():
        assert table[:4].decode() == signature
        assert sum(table) & 0xFF == 0


@pytest.mark.parametrize("cpus", [1, 8])
def test_madt_has_every_cpu_and_the_ioapic(cpus: int) -> None:
    body = tables(build(cpus))["APIC"][44:]
    kinds, offset = [], 0
    while offset < len(body):
        kinds.append(body[offset])
        offset += body[offset + 1]
    assert offset == len(body)
    assert kinds == [0] * cpus + [1]


@pytest.mark.skipif(shutil.which("iasl") is None, reason="needs iasl: apt-get install acpica-tools")
@pytest.mark.parametrize("devices", [0, 1, 18])
def test_intels_disassembler_reads_them(tmp_path: Path, devices: int) -> None:
    for name, table in tables(build(devices=devices)).items():
        path = tmp_path / f"{name}.dat"
        path.write_bytes(table)
        result = subprocess.run(
            ["iasl", "-d", path], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert "Disassembly completed" in result.stdout + result.stderr or name != "DSDT"
        assert "Error" not in result.stdout + result.stderr
    source = (tmp_path / "DSDT.dsl").read_text()
    assert source.count('"LNRO0005"') == devices
    assert 'EisaId ("PNP0501")' in source
    assert 'EisaId ("PNP0C0C")' in source
    assert "Notify (PWRB, 0x80)" in source
    assert "Notify (VGEN, 0x80)" in source
    assert source.count('"ACPI0013"') == 2
    assert '"VMGENCTR"' in source
    assert f"0x{layout.VMGENID_GPA:08X}" in source
    compiled = subprocess.run(
        ["iasl", "DSDT.dsl"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "0 Errors" in compiled.stdout + compiled.stderr
    fadt = (tmp_path / "FACP.dsl").read_text()
    assert "Hardware Reduced (V5) : 1" in fadt


def test_every_interrupt_is_one_things_alone() -> None:
    """And none the timer's (0) or the legacy controllers' cascade (2), which no driver can have."""
    virtio = range(layout.MMIO_FIRST_GSI, layout.MMIO_LAST_GSI + 1)
    others = [0, 2, COM1_GSI, COM2_GSI, layout.POWER_BUTTON_GSI, layout.VMGENID_GSI]
    assert len({*virtio, *others}) == len(virtio) + len(others)
    assert max(*virtio, *others) < 24  # KVM_IOAPIC_NUM_PINS


def test_too_many_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="2000 devices"):
        build(devices=2000)


@pytest.mark.parametrize("length", [1, 62, 63, 64, 4000, 4093, 4096, 70_000])
def test_package_lengths_count_themselves(length: int) -> None:
    encoded = aml.scope("\\_SB", bytes(length))[1:]
    extra = encoded[0] >> 6
    total = encoded[0] & (0x3F if not extra else 0x0F)
    for index in range(extra):
        total |= encoded[1 + index] << (4 + 8 * index)
    assert total == len(encoded)


def test_names_and_integers_that_aml_cannot_say() -> None:
    for path in ("", "TOOLONG", "\\"):
        with pytest.raises(ValueError, match="segment"):
            aml.name_string(path)
    with pytest.raises(ValueError, match="integer"):
        aml.integer(1 << 64)
    with pytest.raises(ValueError, match="integer"):
        aml.integer(-1)
    assert aml.integer(0x1234) == b"\x0b\x34\x12"
