"""Put a kernel, its initramfs and its command line into guest memory, and say where to begin."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from voidbox.boot import bzimage, elf, layout, params, payload
from voidbox.errors import ConfigError, GuestError, HostError
from voidbox.memory import MMIO_HOLE_GPA, PAGE_BYTES, GuestMemory
from voidbox.named_tuple import NamedTuple

_CMDLINE_BYTES_MAX = 2047  # Linux's COMMAND_LINE_SIZE on x86, less the terminating zero
_MIB = 1 << 20


class EntryPoint(NamedTuple):
    """Where the first vCPU starts.

    Attributes:
        rip: guest-physical address of the first instruction.
        is_pvh: 32-bit protected mode with RBX = start_info; else 64-bit with RSI = zero page.
    """

    rip: int
    is_pvh: bool


class _LoadedKernel(NamedTuple):
    entry: EntryPoint
    setup_header: bytes
    end_gpa: int
    initrd_addr_max_gpa: int
    cmdline_bytes_max: int


def load(
    memory: GuestMemory,
    kernel: str,
    initramfs: str | None,
    cmdline: str,
    acpi_image: bytes,
    self_extract: bool = False,
    initramfs_tail: bytes = b"",
) -> EntryPoint:
    """Load a bzImage or ELF kernel with everything that it is told.

    Args:
        kernel, initramfs: paths on the host.
        self_extract: enter a bzImage at its own decompressor, which takes longer and places the
            kernel at random (KASLR); else the host unpacks it.
        initramfs_tail: one more archive, put behind the initramfs.
    Raises:
        ConfigError: a file is missing, damaged, no kernel, or too large for the memory; the
            command line is too long.
    """
    with _open(kernel, "kernel") as fd:
        loaded = _load_kernel(memory, fd, kernel, self_extract)
    encoded = _encode_cmdline(cmdline, loaded.cmdline_bytes_max)
    memory.write(layout.CMDLINE_GPA, encoded + b"\0")
    memory.write(layout.ACPI_GPA, acpi_image)
    initrd_gpa, initrd_bytes = 0, 0
    if initramfs is not None:
        with _open(initramfs, "initramfs") as fd:
            initrd_gpa, initrd_bytes = _load_initramfs(
                memory, fd, initramfs, loaded, initramfs_tail
            )
    info = params.BootInfo(
        cmdline_gpa=layout.CMDLINE_GPA,
        cmdline_bytes=len(encoded),
        initrd_gpa=initrd_gpa,
        initrd_bytes=initrd_bytes,
        rsdp_gpa=layout.ACPI_GPA,
        memory_bytes=memory.size_bytes,
    )
    if loaded.entry.is_pvh:
        for gpa, data in params.pvh_start_info(info):
            memory.write(gpa, data)
    else:
        memory.write(layout.ZERO_PAGE_GPA, params.zero_page(info, loaded.setup_header))
    return loaded.entry


@contextmanager
def _open(path: str, what: str) -> Iterator[int]:
    try:
        # NONBLOCK: a FIFO without a writer is refused below, not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the {what} {path}: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"cannot read the {what} {path}: it is a directory or a device")
        yield fd
    except (HostError, OSError) as error:
        raise ConfigError(f"cannot read the {what} {path}: {error}") from error
    finally:
        os.close(fd)


def _encode_cmdline(cmdline: str, bytes_max: int) -> bytes:
    encoded = os.fsencode(cmdline)
    if b"\0" in encoded:
        raise ConfigError("the kernel command line holds a zero byte; remove it")
    if len(encoded) > bytes_max:
        raise ConfigError(
            f"the kernel command line has {len(encoded)} bytes; this kernel takes {bytes_max}: "
            "shorten it"
        )
    return encoded


def _load_kernel(memory: GuestMemory, fd: int, path: str, self_extract: bool) -> _LoadedKernel:
    file_bytes = os.fstat(fd).st_size
    probe = os.pread(fd, bzimage.HEADER_PROBE_BYTES, 0)
    try:
        if probe.startswith(elf.ELF_MAGIC):
            return _load_elf(memory, fd, file_bytes, path)
        if bzimage.is_bzimage(probe):
            image = bzimage.parse(probe, file_bytes, path)
            return _load_bzimage(memory, fd, image, path, self_extract)
    except GuestError as error:
        raise ConfigError(
            f"the kernel {path} does not fit into {memory.size_bytes // _MIB} MiB of memory: "
            "give the VM more"
        ) from error
    raise ConfigError(f"{path} is no Linux kernel: it is neither a bzImage nor an ELF vmlinux")


def _load_bzimage(
    memory: GuestMemory, fd: int, image: bzimage.BzImage, path: str, self_extract: bool
) -> _LoadedKernel:
    # The kernel works in [pref_address, + init_size) before it has read E820: it must be RAM.
    memory.view(image.pref_address_gpa, image.init_size_bytes)
    entry = None if self_extract else _unpack_payload(memory, fd, image, path)
    if entry is None:
        memory.load_file(fd, image.kernel_offset, layout.HIGH_RAM_GPA, image.kernel_bytes)
        entry = layout.HIGH_RAM_GPA + bzimage.ENTRY_64_OFFSET
    end_gpa = max(
        layout.HIGH_RAM_GPA + image.kernel_bytes, image.pref_address_gpa + image.init_size_bytes
    )
    return _LoadedKernel(
        entry=EntryPoint(entry, is_pvh=False),
        setup_header=image.setup_header,
        end_gpa=end_gpa,
        initrd_addr_max_gpa=image.initrd_addr_max_gpa,
        cmdline_bytes_max=min(image.cmdline_bytes_max, _CMDLINE_BYTES_MAX),
    )


def _unpack_payload(memory: GuestMemory, fd: int, image: bzimage.BzImage, path: str) -> int | None:
    """Unpack a bzImage's vmlinux to where it runs; returns its 64-bit entry.

    None where the host cannot unpack it: the kernel's own decompressor then does, and overwrites
    whatever was written here.
    """
    if image.payload_offset + image.payload_bytes > image.kernel_offset + image.kernel_bytes:
        return None
    packed = os.pread(fd, image.payload_bytes, image.payload_offset)
    try:
        unpacked_bytes = payload.unpacked_bytes(packed)
        pieces = payload.unpack(packed)
        first = bytes(next(pieces))
        vmlinux = elf.parse(
            lambda offset, length: first[offset : offset + length] or bytes(length),
            unpacked_bytes,
            path,
        )
        for segment in vmlinux.segments:
            if segment.gpa < layout.HIGH_RAM_GPA:
                return None
            memory.view(segment.gpa, segment.memory_bytes)
        position = 0
        for piece in itertools.chain([first], pieces):
            _place(memory, vmlinux, position, memoryview(piece))
            position += len(piece)
            if position > unpacked_bytes:  # it never ends, or not where it says
                return None
    except (payload.Undecodable, ConfigError, GuestError, StopIteration):
        return None
    return vmlinux.entry_gpa if position >= unpacked_bytes else None


def _place(memory: GuestMemory, vmlinux: elf.Vmlinux, position: int, piece: memoryview) -> None:
    """Copy what of `piece`, found at `position` of the file, belongs to segments."""
    for segment in vmlinux.segments:
        start = max(position, segment.offset)
        end = min(position + len(piece), segment.offset + segment.file_bytes)
        if start < end:
            memory.write(
                segment.gpa + start - segment.offset, piece[start - position : end - position]
            )


def _load_elf(memory: GuestMemory, fd: int, file_bytes: int, path: str) -> _LoadedKernel:
    def read_at(offset: int, length: int) -> bytes:
        return os.pread(fd, length, offset)

    vmlinux = elf.parse(read_at, file_bytes, path)
    end_gpa = 0
    for segment in vmlinux.segments:
        if segment.gpa < layout.HIGH_RAM_GPA:
            raise ConfigError(f"{path}: a segment lies below 1 MiB; use a vmlinux for x86-64")
        memory.view(segment.gpa, segment.memory_bytes)  # .bss: fresh memory is zero
        memory.load_file(fd, segment.offset, segment.gpa, segment.file_bytes)
        end_gpa = max(end_gpa, segment.gpa + segment.memory_bytes)
    pvh_entry_gpa = elf.find_pvh_entry(vmlinux, read_at)
    if pvh_entry_gpa is not None:
        entry = EntryPoint(pvh_entry_gpa, is_pvh=True)
    else:
        entry = EntryPoint(vmlinux.entry_gpa, is_pvh=False)
    return _LoadedKernel(entry, b"", end_gpa, MMIO_HOLE_GPA - 1, _CMDLINE_BYTES_MAX)


def _load_initramfs(
    memory: GuestMemory, fd: int, path: str, kernel: _LoadedKernel, tail: bytes
) -> tuple[int, int]:
    """Load at the top of low RAM, aligned down to a page. Returns (gpa, bytes)."""
    file_bytes = os.fstat(fd).st_size
    if file_bytes == 0:
        raise ConfigError(f"the initramfs {path} is empty: build it again")
    # Documentation/driver-api/early-userspace/buffer-format.rst: archives start at 4n.
    tail_offset = (file_bytes + 3) & ~3
    length = tail_offset + len(tail)
    low_ram_end = memory.regions[0].size_bytes
    end_gpa = min(low_ram_end, kernel.initrd_addr_max_gpa + 1)
    gpa = (end_gpa - length) & ~(PAGE_BYTES - 1)
    if gpa < kernel.end_gpa:
        raise ConfigError(
            f"the initramfs {path} ({length / _MIB:.1f} MiB) does not fit beside the kernel into "
            f"{memory.size_bytes // _MIB} MiB of memory: give the VM more"
        )
    memory.load_file(fd, 0, gpa, file_bytes)
    memory.write(gpa + tail_offset, tail)
    return gpa, length
