"""From what was said of volumes to a machine that has them."""

from __future__ import annotations

from collections.abc import Sequence

from voidbox.sandbox.volumes.spec import VolumeSpec
from voidbox.vmm.config import DiskConfig, MachineConfig, ShareConfig

_TAG = "voidbox-volume{}"  # of shares, and the serial numbers of disks


def attach(
    config: MachineConfig, specs: Sequence[VolumeSpec], state_folder: str | None = None
) -> MachineConfig:
    """Return a machine with these volumes; their disks come after those that it has.

    Args:
        state_folder: where named volumes are; None for the user's own.

    Raises:
        ConfigError: there is no volume of a name, or another machine has it.
    """
    shares, disks = [*config.shares], [*config.disks]
    for number, spec in enumerate(specs):
        tag = _TAG.format(number)
        if spec.is_named:
            from voidbox.sandbox.volumes.store import VolumeStore

            store = VolumeStore(state_folder)
            path = store.check_free(spec.source, is_read_only=spec.is_read_only).path
            disks.append(DiskConfig(path, spec.is_read_only, serial=tag, target=spec.target))
        else:
            shares.append(ShareConfig(spec.source, tag, spec.is_read_only, spec.target))
    return config._replace(shares=tuple(shares), disks=tuple(disks))
