"""The bzImage format: its setup header, read once and validated.

Linux Documentation/arch/x86/boot.rst. The file is a real-mode part, which a 64-bit loader skips,
followed by the protected-mode kernel, entered 0x200 bytes into it.
"""

from __future__ import annotations

import struct

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

SECTOR_BYTES = 512
SETUP_HEADER_OFFSET = 0x1F1
HEADER_PROBE_BYTES = 0x280  # all of the setup header up to version 2.15
ENTRY_64_OFFSET = 0x200

_BOOT_FLAG = 0xAA55
_MAGIC = b"HdrS"
_MIN_VERSION = 0x020C  # xloadflags, hence the 64-bit entry
_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0
_DEFAULT_SETUP_SECTS = 4

# Fields of struct setup_header, offsets from the start of the file.
_SETUP_SECTS = struct.Struct("<B")  # 0x1f1
_SYSSIZE = struct.Struct("<I")  # 0x1f4, in 16-byte units
_VERSION = struct.Struct("<H")  # 0x206
_LOADFLAGS = struct.Struct("<B")  # 0x211
_INITRD_ADDR_MAX = struct.Struct("<I")  # 0x22c
_XLOADFLAGS = struct.Struct("<H")  # 0x236
_CMDLINE_SIZE = struct.Struct("<I")  # 0x238
_PAYLOAD_OFFSET = struct.Struct("<I")  # 0x248, from the protected-mode kernel's start
_PAYLOAD_LENGTH = struct.Struct("<I")  # 0x24c
_PREF_ADDRESS = struct.Struct("<Q")  # 0x258
_INIT_SIZE = struct.Struct("<I")  # 0x260


class BzImage(NamedTuple):
    """What a loader needs to know of a bzImage.

    Attributes:
        setup_header: the bytes to copy into the zero page at 0x1f1.
        kernel_offset, kernel_bytes: the protected-mode kernel in the file.
        payload_offset, payload_bytes: the compressed vmlinux in the file.
        pref_address_gpa, init_size_bytes: memory that the kernel uses before it can read E820.
        initrd_addr_max_gpa: the highest address of the initramfs's last byte.
        cmdline_bytes_max: longest command line, without its terminating zero.
    """

    setup_header: bytes
    kernel_offset: int
    kernel_bytes: int
    payload_offset: int
    payload_bytes: int
    pref_address_gpa: int
    init_size_bytes: int
    initrd_addr_max_gpa: int
    cmdline_bytes_max: int


def is_bzimage(probe: bytes) -> bool:
    """Whether a file's first bytes carry a Linux boot header."""
    return len(probe) >= HEADER_PROBE_BYTES and probe[0x202:0x206] == _MAGIC


def parse(probe: bytes, file_bytes: int, path: str) -> BzImage:
    """Parse a bzImage's first HEADER_PROBE_BYTES.

    Raises:
        ConfigError: too old, not 64-bit, or the file is shorter than its header says.
    """

    def field(layout: struct.Struct, offset: int) -> int:
        return int(layout.unpack_from(probe, offset)[0])

    if struct.unpack_from("<H", probe, 0x1FE)[0] != _BOOT_FLAG:
        raise ConfigError(f"{path}: the boot sector's signature is wrong; is the file damaged?")
    version = field(_VERSION, 0x206)
    if version < _MIN_VERSION:
        raise ConfigError(
            f"{path}: boot protocol {version >> 8}.{version & 0xFF:02} is too old; "
            "use Linux 3.8 or newer"
        )
    if not field(_LOADFLAGS, 0x211) & _LOADED_HIGH or not (
        field(_XLOADFLAGS, 0x236) & _XLF_KERNEL_64
    ):
        raise ConfigError(f"{path}: not a 64-bit bzImage; use a kernel built for x86-64")
    setup_sects = field(_SETUP_SECTS, 0x1F1) or _DEFAULT_SETUP_SECTS
    kernel_offset = (setup_sects + 1) * SECTOR_BYTES
    kernel_bytes = field(_SYSSIZE, 0x1F4) * 16
    if kernel_bytes <= ENTRY_64_OFFSET or kernel_offset + kernel_bytes > file_bytes:
        raise ConfigError(
            f"{path}: truncated: its header promises {kernel_offset + kernel_bytes} bytes, "
            f"the file has {file_bytes}; copy or download it again"
        )
    header_end = 0x202 + probe[0x201]  # the jump's displacement is the header's length
    return BzImage(
        setup_header=probe[SETUP_HEADER_OFFSET : min(header_end, HEADER_PROBE_BYTES)],
        kernel_offset=kernel_offset,
        kernel_bytes=kernel_bytes,
        payload_offset=kernel_offset + field(_PAYLOAD_OFFSET, 0x248),
        payload_bytes=field(_PAYLOAD_LENGTH, 0x24C),
        pref_address_gpa=field(_PREF_ADDRESS, 0x258),
        init_size_bytes=field(_INIT_SIZE, 0x260),
        initrd_addr_max_gpa=field(_INITRD_ADDR_MAX, 0x22C),
        cmdline_bytes_max=field(_CMDLINE_SIZE, 0x238),
    )
