"""From what a user says of a disk to its backend."""

from __future__ import annotations

from voidbox.block.backend import Backend, RawBackend
from voidbox.block.image import open_image
from voidbox.errors import ConfigError


def open_backend(path: str, is_read_only: bool = False, overlay: str | None = None) -> Backend:
    """Open a disk.

    Args:
        overlay: the file that gets what is written; `path` is then only read.
    Raises:
        ConfigError: a file cannot be used; the message says what to do.
    """
    if overlay is not None:
        raise ConfigError(f"disk {path}: overlays come next")
    return RawBackend(open_image(path, is_read_only), is_read_only)
