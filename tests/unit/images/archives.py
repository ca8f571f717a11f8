"""Tar archives for tests, and what to do with them."""

from __future__ import annotations

import ctypes
import gzip
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.tar_layers import Applied, apply_layer
from voidbox.images.tree import Tree

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **attributes: Any
) -> Member:
    """Return an entry with its content."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def file(name: str, data: bytes = b"", **attributes: Any) -> Member:
    return member(name, data=data, **attributes)


def folder(name: str, mode: int = 0o755, **attributes: Any) -> Member:
    return member(name, tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(name: str, target: str, **attributes: Any) -> Member:
    return member(name, tarfile.SYMTYPE, linkname=target, **attributes)


def hard_link(name: str, target: str) -> Member:
    return member(name, tarfile.LNKTYPE, linkname=target)


def archive(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of these."""
    output = io.BytesIO()
    with tarfile.open(
        fileobj=output, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return output.getvalue()


def apply(tree: Tree, *layers: bytes, limits: Limits = DEFAULT_LIMITS) -> Applied:
    """Apply layers; returns what the last one was."""
    for layer in layers:
        applied = apply_layer(tree, io.BytesIO(layer), limits)
    return applied


def paths(tree: Tree) -> list[str]:
    """Return what is in a tree, without its root."""
    return [path for path, _ in tree.walk()][1:]


def zstd(data: bytes) -> bytes:
    """Return a frame, by the system's library; skip where there is none."""
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        pytest.skip("no libzstd.so.1; run: sudo apt-get install libzstd1")
    target = ctypes.create_string_buffer(len(data) + len(data) // 128 + 1024)
    library.ZSTD_compress.restype = ctypes.c_size_t
    library.ZSTD_compress.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int,
    ]  # fmt: skip
    size = library.ZSTD_compress(target, len(target), data, len(data), 3)
    return target.raw[:size]


def two_members(data: bytes) -> bytes:
    """Return gzip in two members, and padding after them."""
    middle = len(data) // 2
    return gzip.compress(data[:middle]) + gzip.compress(data[middle:]) + bytes(100)


def as_it_is(data: bytes) -> bytes:
    return data


PACKERS: list[Callable[[bytes], bytes]] = [as_it_is, gzip.compress, two_members, zstd]
