"""Named volumes, for programs: what `voidbox volume` does. It is `voidbox.volumes`.

from voidbox import Sandbox, volumes

volumes.create("cache", size="20G")
Sandbox.create(volumes=["cache:/home/sandbox/.cache"])
"""

from __future__ import annotations

import builtins

from voidbox.sandbox.volumes.store import SIZE_BYTES_DEFAULT, Volume, VolumeStore
from voidbox.sdk import draft

__all__ = ["Volume", "create", "find", "list", "remove"]


def create(name: str, *, size: int | str | None = None, state_folder: str | None = None) -> Volume:
    """Make a volume, which takes no room yet.

    Args:
        size: what it may come to hold: MiB as a number, or text such as "20G"; 8 GiB.
        state_folder: in place of the user's own.

    Raises:
        ConfigError: the name is none, or is taken; no volume can have this size.
        HostError: it cannot be made; nothing is left then.
    """
    size_bytes = draft.disk_bytes(size)
    size_bytes = SIZE_BYTES_DEFAULT if size_bytes is None else size_bytes
    return VolumeStore(state_folder).create(name, size_bytes)


def list(*, state_folder: str | None = None) -> builtins.list[Volume]:
    """Return all volumes, by name.

    Raises:
        HostError: they cannot be read.
    """
    return VolumeStore(state_folder).list()


def find(name: str, *, state_folder: str | None = None) -> Volume:
    """Return a volume.

    Raises:
        ConfigError: there is none of this name.
    """
    return VolumeStore(state_folder).find(name)


def remove(name: str, *, state_folder: str | None = None) -> None:
    """Delete a volume with all that is on it.

    Raises:
        ConfigError: there is none of this name, or a sandbox has it.
        HostError: it cannot be deleted.
    """
    VolumeStore(state_folder).remove(name)
