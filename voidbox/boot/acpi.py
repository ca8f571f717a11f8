"""The ACPI tables: what a distribution kernel learns of the machine (ACPI 6.4 chapter 5.2).

    RSDP ─► XSDT ─┬─► FADT ─► DSDT   hardware-reduced: no PM timer, no PIC, no legacy probing
                  └─► MADT           one local APIC per vCPU, one IOAPIC

The DSDT names the serial ports, the clock, pvpanic and every virtio-mmio device (`LNRO0005`, the
id that Linux's virtio_mmio driver binds to). Hardware-reduced machines have no PM1 registers for
the power button: a Generic Event Device (§5.6.9) turns its interrupt line into a Notify. So does a
second one for the generation id (Microsoft's "Virtual Machine Generation ID"): 16 bytes of memory
that are others in each copy of the machine. The kernel reseeds its random numbers by them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voidbox.boot import aml, layout
from voidbox.named_tuple import NamedTuple

# struct acpi_table_header, ACPI 6.4 §5.2.6
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
assert _HEADER.size == 36
_RSDP_V1 = struct.Struct("<8sB6sBI")
assert _RSDP_V1.size == 20
_RSDP_V2_TAIL = struct.Struct("<IQB3x")
# Generic Address Structure, §5.2.3.2
_GAS = struct.Struct("<BBBBQ")
assert _GAS.size == 12

_OEM_ID = b"VOIDBX"
_OEM_TABLE_ID = b"VOIDBOX "
_CREATOR_ID = b"VBOX"
_GAS_SYSTEM_IO = 1
_GAS_BYTE_ACCESS = 1

_FADT_BYTES = 276
_FADT_DSDT_OFFSET = 40
_FADT_BOOT_FLAGS_OFFSET = 109
_FADT_FLAGS_OFFSET = 112
_FADT_RESET_REG_OFFSET = 116
_FADT_RESET_VALUE_OFFSET = 128
_FADT_X_DSDT_OFFSET = 140
_FADT_SLEEP_CONTROL_OFFSET = 244
_FADT_SLEEP_STATUS_OFFSET = 256
_FADT_MINOR_REVISION_OFFSET = 131
_FADT_REVISION, _FADT_MINOR_REVISION = 6, 4

_ACPI_FADT_NO_VGA = 1 << 2  # in IAPC_BOOT_ARCH; bit 1, the 8042, stays clear: no keyboard
_ACPI_FADT_RESET_REGISTER = 1 << 10
_ACPI_FADT_HW_REDUCED = 1 << 20

_POWER_BUTTON_PRESSED = 0x80
_GENERATION_CHANGED = 0x80

_MADT_LOCAL_APIC = 0
_MADT_IO_APIC = 1
_MADT_ENABLED = 1


class PortDevice(NamedTuple):
    """A device in port space: its ACPI name and id, first port, ports, and line (0 for none)."""

    name: str
    hid: str
    port: int
    ports: int
    gsi: int = 0


class MmioDevice(NamedTuple):
    """A virtio-mmio device: guest-physical address, bytes, interrupt line."""

    gpa: int
    length: int
    gsi: int


class PowerRegisters(NamedTuple):
    """Ports of the sleep control, sleep status and reset registers, and the values they take."""

    sleep_control_port: int
    sleep_status_port: int
    reset_port: int
    reset_value: int
    slp_typ_s5: int


def build(
    cpus: int,
    power: PowerRegisters,
    port_devices: Sequence[PortDevice],
    mmio_devices: Sequence[MmioDevice],
    base_gpa: int = layout.ACPI_GPA,
) -> bytes:
    """Return all tables as one image for `base_gpa`, the RSDP first.

    Raises:
        ValueError: the image does not fit below 1 MiB.
    """
    rsdp_bytes = 64  # the RSDP's 36 bytes, padded
    image = bytearray(rsdp_bytes)

    def place(table: bytes) -> int:
        gpa = base_gpa + len(image)
        image.extend(table + bytes(-len(table) % 16))
        return gpa

    dsdt_gpa = place(_table(b"DSDT", 2, _dsdt(power, port_devices, mmio_devices)))
    fadt_gpa = place(_fadt(dsdt_gpa, power))
    madt_gpa = place(_table(b"APIC", 5, _madt(cpus)))
    xsdt_gpa = place(_table(b"XSDT", 1, struct.pack("<QQ", fadt_gpa, madt_gpa)))
    rsdp = _rsdp(xsdt_gpa)
    image[: len(rsdp)] = rsdp
    if base_gpa + len(image) > layout.ACPI_END_GPA:
        raise ValueError(f"{len(mmio_devices)} devices need too large ACPI tables")
    return bytes(image)


def _checksum(data: bytes) -> int:
    """The byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    fields = (_OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1)
    plain = _HEADER.pack(signature, length, revision, 0, *fields) + body
    return _HEADER.pack(signature, length, revision, _checksum(plain), *fields) + body


def _rsdp(xsdt_gpa: int) -> bytes:
    """Root System Description Pointer, §5.2.5.3: two checksums, of 20 and of 36 bytes."""
    plain = _RSDP_V1.pack(b"RSD PTR ", 0, _OEM_ID, 2, 0)
    first = _RSDP_V1.pack(b"RSD PTR ", _checksum(plain), _OEM_ID, 2, 0)
    length = _RSDP_V1.size + _RSDP_V2_TAIL.size
    extended = _checksum(first + _RSDP_V2_TAIL.pack(length, xsdt_gpa, 0))
    return first + _RSDP_V2_TAIL.pack(length, xsdt_gpa, extended)


def _port_gas(port: int) -> bytes:
    return _GAS.pack(_GAS_SYSTEM_IO, 8, 0, _GAS_BYTE_ACCESS, port)


def _fadt(dsdt_gpa: int, power: PowerRegisters) -> bytes:
    """Fixed ACPI Description Table, §5.2.9."""
    table = bytearray(_FADT_BYTES)
    struct.pack_into("<I", table, _FADT_DSDT_OFFSET, dsdt_gpa)
    struct.pack_into("<H", table, _FADT_BOOT_FLAGS_OFFSET, _ACPI_FADT_NO_VGA)
    flags = _ACPI_FADT_HW_REDUCED | _ACPI_FADT_RESET_REGISTER
    struct.pack_into("<I", table, _FADT_FLAGS_OFFSET, flags)
    for offset, port in (
        (_FADT_RESET_REG_OFFSET, power.reset_port),
        (_FADT_SLEEP_CONTROL_OFFSET, power.sleep_control_port),
        (_FADT_SLEEP_STATUS_OFFSET, power.sleep_status_port),
    ):
        table[offset : offset + _GAS.size] = _port_gas(port)
    table[_FADT_RESET_VALUE_OFFSET] = power.reset_value
    table[_FADT_MINOR_REVISION_OFFSET] = _FADT_MINOR_REVISION
    struct.pack_into("<Q", table, _FADT_X_DSDT_OFFSET, dsdt_gpa)
    return _table(b"FACP", _FADT_REVISION, bytes(table[_HEADER.size :]))


def _madt(cpus: int) -> bytes:
    """Multiple APIC Description Table, §5.2.12: local APIC ids are the vCPU ids."""
    body = struct.pack("<II", layout.LAPIC_GPA, 0)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", _MADT_LOCAL_APIC, 8, cpu, cpu, _MADT_ENABLED)
    return body + struct.pack("<BBBBII", _MADT_IO_APIC, 12, 0, 0, layout.IOAPIC_GPA, 0)


def _dsdt(
    power: PowerRegisters, port_devices: Sequence[PortDevice], mmio_devices: Sequence[MmioDevice]
) -> bytes:
    devices = [_port_device(device) for device in port_devices]
    devices += [_virtio_device(index, device) for index, device in enumerate(mmio_devices)]
    devices += _power_button() + _generation_id()
    s5 = aml.package(*[aml.integer(value) for value in (power.slp_typ_s5, 0, 0, 0)])
    return aml.name("\\_S5", s5) + aml.scope("\\_SB", *devices)


def _port_device(device: PortDevice) -> bytes:
    descriptors = [aml.io_ports(device.port, device.ports)]
    if device.gsi:
        descriptors.append(aml.interrupt(device.gsi))
    is_eisa = device.hid.startswith("PNP")
    return aml.device(
        device.name,
        aml.name("_HID", aml.eisa_id(device.hid) if is_eisa else aml.string(device.hid)),
        aml.name("_UID", aml.integer(device.port)),
        aml.name("_STA", aml.integer(0x0F)),
        aml.name("_CRS", aml.resources(*descriptors)),
    )


def _power_button() -> list[bytes]:
    """The button, and the event device whose only event it is."""
    return [
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C"))),
        _event_device("GED", 0, layout.POWER_BUTTON_GSI, aml.notify("PWRB", _POWER_BUTTON_PRESSED)),
    ]


def _generation_id() -> list[bytes]:
    """The id's place, and the event device that tells of its change.

    A device of its own, since one for both would have to ask which line it was: AML that we do
    without.
    """
    low, high = layout.VMGENID_GPA & 0xFFFF_FFFF, layout.VMGENID_GPA >> 32
    return [
        aml.device(
            "VGEN",
            aml.name("_HID", aml.string("VOID0001")),
            # The second is the specification's, and longer than ACPI has them; Hyper-V has both.
            aml.name("_CID", aml.package(aml.string("VMGENCTR"), aml.string("VM_Gen_Counter"))),
            aml.name("_DDN", aml.string("VM_Gen_Counter")),
            aml.name("ADDR", aml.package(aml.integer(low), aml.integer(high))),
        ),
        _event_device("GED1", 1, layout.VMGENID_GSI, aml.notify("VGEN", _GENERATION_CHANGED)),
    ]


def _event_device(name: str, uid: int, gsi: int, *event: bytes) -> bytes:
    """A Generic Event Device of one line."""
    return aml.device(
        name,
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CRS", aml.resources(aml.interrupt(gsi))),
        aml.method("_EVT", 1, *event),
    )


def _virtio_device(index: int, device: MmioDevice) -> bytes:
    return aml.device(
        f"V{index:03X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CCA", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(aml.memory32_fixed(device.gpa, device.length), aml.interrupt(device.gsi)),
        ),
    )
