"""Where boot data lies in guest-physical memory. All below 1 MiB but the kernel and the initramfs.

0x000500  GDT, IDT             0x008ff0  stack (grows down)      0x0e0000  RSDP, ACPI tables
0x006000  PVH start_info       0x009000  PML4, PDPT, PD          0x100000  kernel
0x007000  zero page / memmap   0x020000  command line            0x0ff000  generation id
                                                                 top       initramfs
"""

from __future__ import annotations

GDT_GPA = 0x500
IDT_GPA = 0x540
PVH_START_INFO_GPA = 0x6000
PVH_MODLIST_GPA = 0x6040
PVH_MEMMAP_GPA = 0x7000
ZERO_PAGE_GPA = 0x7000
STACK_GPA = 0x8FF0
PML4_GPA = 0x9000
PDPT_GPA = 0xA000
PD_GPA = 0xB000
CMDLINE_GPA = 0x20000
SYSTEM_DATA_GPA = 0x9FC00
ACPI_GPA = 0xE0000
ACPI_END_GPA = 0xFF000
VMGENID_GPA = 0xFF000  # a page of its own: who maps it maps nothing else
HIGH_RAM_GPA = 0x100000

IOAPIC_GPA = 0xFEC0_0000
LAPIC_GPA = 0xFEE0_0000
KVM_IDENTITY_MAP_GPA = 0xFFFB_C000
KVM_TSS_GPA = 0xFFFB_D000

MMIO_DEVICES_GPA = 0xD000_0000
MMIO_DEVICE_BYTES = 0x1000
MMIO_FIRST_GSI = 5
MMIO_LAST_GSI = 22
POWER_BUTTON_GSI = 1  # the keyboard's, of which there is none
VMGENID_GSI = 23
