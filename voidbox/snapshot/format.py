"""machine.bin: everything of a machine but its memory and its disks.

    0    magic, "VoidboxM"
    8    u32 version of this format
    12   u64 length of the payload
    20   32 bytes BLAKE2b of the payload
    52   the payload: one value of MessagePack

Length and digest are checked before a byte is decoded, and the version before both: a file of
another voidbox is called that, and not damaged.
"""

from __future__ import annotations

import os
import stat
import struct
from hashlib import blake2b
from typing import Any

from voidbox.agent.packing import PackingError, pack, unpack
from voidbox.errors import ConfigError
from voidbox.storage import durable

MAGIC = b"VoidboxM"
VERSION = 1
PAYLOAD_BYTES_MAX = 64 << 20
NAME = "machine.bin"

_HEADER = struct.Struct("<8sIQ32s")
assert _HEADER.size == 52


def encode(values: dict[str, Any]) -> bytes:
    """Return the file that holds `values`."""
    payload = pack(values)
    return _HEADER.pack(MAGIC, VERSION, len(payload), _digest(payload)) + payload


def decode(data: bytes, what: str) -> dict[str, Any]:
    """Return what a file holds.

    Args:
        what: the file, for errors.
    Raises:
        ConfigError: it is no such file, of a newer voidbox, cut short or damaged.
    """
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise ConfigError(f"{what}: it is no snapshot of voidbox")
    _, version, length, digest = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ConfigError(
            f"{what}: it is of version {version}, and this voidbox reads {VERSION}: "
            f"{'use the newer voidbox that made it' if version > VERSION else 'make it anew'}"
        )
    payload = data[_HEADER.size :]
    if len(payload) != length:
        raise ConfigError(f"{what}: it has {len(payload)} bytes of {length}: it was cut short")
    if _digest(payload) != digest:
        raise ConfigError(f"{what}: it is damaged: its checksum is wrong; make the snapshot anew")
    try:
        values = unpack(payload)
    except PackingError as error:
        raise ConfigError(f"{what}: it is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: it is damaged: it holds no machine")
    return values


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=32).digest()


def read(folder: str) -> dict[str, Any]:
    """Return what a snapshot's machine.bin holds.

    Raises:
        ConfigError, HostError: see read_file.
    """
    return read_file(os.path.join(folder, NAME))


def read_file(path: str) -> dict[str, Any]:
    """Return what a snapshot's file of this format holds.

    Raises:
        ConfigError: as decode(); it is not there, or somebody else's.
        HostError: the disk does not give it.
    """
    fd = open_own(path)
    try:
        with open(fd, "rb") as file:
            data = file.read(_HEADER.size + PAYLOAD_BYTES_MAX + 1)
    except OSError as error:
        raise durable.failure("read", path, error) from error
    return decode(data, f"snapshot {path}")


def open_own(path: str) -> int:
    """Open a snapshot's file for reading: a file, no link, and this user's or root's.

    Whoever can write a snapshot decides what a machine does when it is restored.

    Raises:
        ConfigError: it is not.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"snapshot {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"snapshot {path}: it is no file")
        if status.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"snapshot {path}: it belongs to another user: copy it to be yours")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"snapshot {path}: others may write it: chmod go-w {path}")
    except BaseException:
        os.close(fd)
        raise
    return fd
