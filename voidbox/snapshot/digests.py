"""Whether a snapshot's memory and disks are still what was written: a digest for each MiB of data.

Not looked at by a restore, which reads only what the guest touches; `verify` is for doubts, and for
snapshots that came over a network or from an old disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from voidbox.errors import ConfigError
from voidbox.snapshot import files
from voidbox.snapshot import format as machine_bin
from voidbox.snapshot.memory import extents
from voidbox.storage import durable

NAME = "digests"
BLOCK_BYTES = 1 << 20
_DIGEST_BYTES = 32
_NOT_LISTED = frozenset({NAME, machine_bin.NAME, "working-set"})


def seal(folder: str) -> None:
    """Write down what the files of a snapshot hold. Once.

    Raises:
        HostError: that cannot be read, or written.
    """
    try:
        values = {
            name: {"bytes": os.path.getsize(os.path.join(folder, name)), "blocks": blocks}
            for name, blocks in _all_blocks(folder)
        }
        files.write(os.path.join(folder, NAME), machine_bin.encode(values))
        durable.sync_folder(folder)
    except OSError as error:
        raise durable.failure("seal", f"snapshot {folder}", error) from error


def verify(folder: str) -> None:
    """Compare a snapshot with what was written down.

    Raises:
        ConfigError: it was never sealed, or a file is not what it was; the message says which.
        HostError: it cannot be read.
    """
    machine_bin.read(folder)
    path = os.path.join(folder, NAME)
    expected = machine_bin.read_file(path)
    try:
        found = dict(_all_blocks(folder))
        for name, values in expected.items():
            where = os.path.join(folder, name)
            if name not in found:
                raise ConfigError(f"snapshot {where}: it is missing")
            size = os.path.getsize(where)
            if size != values["bytes"]:
                raise ConfigError(f"snapshot {where}: it has {size} bytes of {values['bytes']}")
            _compare(where, values["blocks"], found[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: it is damaged") from error
    except OSError as error:
        raise durable.failure("read", f"snapshot {folder}", error) from error


def _compare(where: str, expected: list[Any], found: list[list[Any]]) -> None:
    blocks = {index: digest for index, digest in found}
    for index, digest in expected:
        if blocks.pop(index, None) != digest:
            raise ConfigError(f"snapshot {where}: it is damaged, {index} MiB from its start")
    if blocks:
        raise ConfigError(f"snapshot {where}: it has data {min(blocks)} MiB from its start")


def _all_blocks(folder: str) -> Iterator[tuple[str, list[list[Any]]]]:
    for name in sorted(os.listdir(folder)):
        if name not in _NOT_LISTED:
            fd = machine_bin.open_own(os.path.join(folder, name))
            try:
                yield name, list(_blocks(fd))
            finally:
                os.close(fd)


def _blocks(fd: int) -> Iterator[list[Any]]:
    """Return index and digest of each block that is not all zeroes."""
    zeroes = bytes(BLOCK_BYTES)
    last = -1
    for at, size in extents(fd, 0, os.fstat(fd).st_size):
        for index in range(max(at // BLOCK_BYTES, last + 1), -(-(at + size) // BLOCK_BYTES)):
            data = os.pread(fd, BLOCK_BYTES, index * BLOCK_BYTES)
            last = index
            if data != zeroes[: len(data)]:
                yield [index, blake2b(data, digest_size=_DIGEST_BYTES).digest()]
