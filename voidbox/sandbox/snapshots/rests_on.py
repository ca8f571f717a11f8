"""The files that a snapshot cannot do without: the images and disks that its guest reads."""

from __future__ import annotations

import os
from collections.abc import Mapping

from voidbox.errors import ConfigError
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.vmm.config import MachineConfig, parse_disk


def identify(path: str) -> str:
    """Return what changes when a file is another: its size, and when it was written.

    Raises:
        ConfigError: it cannot be looked at.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from error
    return f"{found.st_size}:{found.st_mtime_ns}"


def files_of(config: MachineConfig) -> dict[str, str]:
    """Return the files that a machine only reads, and what each is now. Raises as identify()."""
    paths = [d.path for d in config.disks if d.is_read_only or d.overlay is not None]
    return {path: identify(path) for path in paths}


def check(files: Mapping[str, str], what: str) -> None:
    """Refuse to restore what rests on files that are gone, or are others now.

    Args:
        what: the snapshot, for the message.
    Raises:
        ConfigError: which file.
    """
    for path, expected in files.items():
        try:
            found = identify(path)
        except ConfigError as error:
            raise ConfigError(f"{what} rests on a file that is gone: {error}") from error
        if found != expected:
            raise ConfigError(
                f"{what} rests on {path}, which has changed since: restore that file, or make the "
                "snapshot again"
            )


def refuse(record: SandboxRecord) -> None:
    """Refuse a snapshot of a sandbox that shares with the host what no copy could keep.

    Raises:
        ConfigError: says what, and the way out.
    """
    if record.workspace is not None and record.workspace_mode != "copy":
        raise ConfigError(
            f"{record.name} shares {record.workspace} live, which a snapshot cannot hold: give it "
            'the workspace as a copy, with workspace_mode="copy" or --workspace DIR:copy'
        )
    if record.volumes:
        raise ConfigError(
            f"{record.name} has volumes ({', '.join(record.volumes)}), which a snapshot cannot "
            "hold: copy what it needs into it, and create it without them"
        )
    for text in record.disks:
        disk = parse_disk(text)
        if not disk.is_read_only and disk.overlay is None:
            raise ConfigError(
                f"{record.name} writes to {disk.path}, which a snapshot would not hold: give the "
                f"disk an overlay, as {disk.path},overlay=FILE, or read-only, as {disk.path},ro"
            )
