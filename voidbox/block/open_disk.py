"""From what a user says of a disk to its backend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from voidbox.block import host_io
from voidbox.block.backend import Backend, RawBackend
from voidbox.block.host_file import HostFile
from voidbox.block.image import Image, open_file, open_image
from voidbox.errors import ConfigError

if TYPE_CHECKING:  # most disks need none
    from voidbox.block.overlay import OverlayBackend
    from voidbox.block.overlay_format import Header


def open_backend(path: str, is_read_only: bool = False, overlay: str | None = None) -> Backend:
    """Open a disk.

    Args:
        overlay: the file that gets what is written, made if it is not there; `path` is then only
            read.
    Raises:
        ConfigError: a file cannot be used; the message says what to do.
    """
    image = open_image(path, is_read_only or overlay is not None)
    if overlay is None:
        file = HostFile(image.fd, image.is_device)
        return RawBackend(file, image.size_bytes, is_read_only)
    try:
        make_overlay(path, overlay)
        return _open_overlay(image, overlay, is_read_only)
    except BaseException:
        os.close(image.fd)
        raise


def make_overlay(base_path: str, path: str) -> None:
    """Make the file of an overlay over a disk, if it is not there.

    Raises:
        ConfigError: the disk cannot be used, or the file cannot be made.
    """
    if os.path.lexists(path):
        return
    from voidbox.block.overlay_format import create, header_for, identify

    base = open_image(base_path, True)
    try:
        create(path, header_for(identify(base)))
    finally:
        os.close(base.fd)


def _open_overlay(base: Image, path: str, is_read_only: bool) -> OverlayBackend:
    from voidbox.block.overlay import OverlayBackend
    from voidbox.block.overlay_format import HEADER_BYTES, identify, parse_header

    identity = identify(base)
    fd = open_file(path, is_read_only, "overlay")
    try:
        file_bytes = os.fstat(fd).st_size
        header = parse_header(path, os.pread(fd, HEADER_BYTES, 0), file_bytes)
        if header.base != identity:
            raise ConfigError(
                f"overlay {path}: it was made over another disk than {base.path}, or that has "
                "changed since: give it the one it was made over, or remove it to begin anew"
            )
        bits = _read_bits(fd, header)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"overlay {path}: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    base_file = HostFile(base.fd, base.is_device)
    return OverlayBackend(base_file, HostFile(fd), header, bits, is_read_only)


def _read_bits(fd: int, header: Header) -> bytearray:
    from voidbox.block.overlay_format import BITMAP_OFFSET

    bits = bytearray(header.bitmap_bytes)
    with memoryview(bits) as view:
        host_io.read_all(fd, [view], BITMAP_OFFSET, len(bits))
    return bits
