"""From a sandbox's record to the machine that runs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from voidbox.errors import ConfigError
from voidbox.sandbox.mounts import WORKSPACE_PATH, WORKSPACE_TAG
from voidbox.sandbox.root import UPPER_FILE, Root
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import VSOCK
from voidbox.sandbox.state.store import Store
from voidbox.vmm.config import DEFAULT_CMDLINE, MachineConfig, ShareConfig, VsockConfig, parse_disk

if TYPE_CHECKING:  # a sandbox without a network starts sooner
    from voidbox.nat.config import NatConfig
    from voidbox.nat.forwards import Forward

UNIX, VHOST, NO_VSOCK = "unix", "vhost", "none"
_NET_KEYS = frozenset({"allow", "deny", "allow_host_ports", "publish", "rate_bytes_s", "pcap"})

_Item = TypeVar("_Item", str, int)


def kept_config(store: Store, record: SandboxRecord) -> MachineConfig:
    """Return what to build for a sandbox of a state folder.

    Raises:
        ConfigError: see machine_config; or the folder's path is too long for sockets.
    """
    paths = (store.path(record.id, VSOCK), store.path(record.id, UPPER_FILE))
    return machine_config(record, *paths, store.folder)


def machine_config(
    record: SandboxRecord, vsock_path: str, upper_path: str, state_folder: str | None = None
) -> MachineConfig:
    """Return what to build.

    Args:
        upper_path: the file behind the disk that the guest writes, if it has one; see root_of.
        state_folder: where named volumes are; None for the user's own.

    Raises:
        ConfigError: the record asks for what there is not, or for what another machine has.
    """
    if record.vsock not in (UNIX, VHOST, NO_VSOCK):
        raise ConfigError(f"vsock {record.vsock!r}: choose {UNIX}, {VHOST} or {NO_VSOCK}")
    vsock = None
    if record.vsock != NO_VSOCK:
        is_vhost = record.vsock == VHOST
        vsock = VsockConfig(record.cid, None if is_vhost else vsock_path, is_vhost)
    config = MachineConfig(
        kernel=os.path.abspath(record.kernel),
        initramfs=os.path.abspath(record.image),
        cmdline=record.cmdline or DEFAULT_CMDLINE,
        memory_bytes=record.memory_bytes,
        cpus=record.cpus,
        vsock=vsock,
        net=_network(record.net),
        disks=tuple(parse_disk(text).at(os.getcwd()) for text in record.disks),
        shares=_shares(record),
        balloon=True,
    )
    root = root_of(record)
    if root is not None:
        config = root.applied_to(config, upper_path if root.disk_bytes else None)
    if not record.volumes:
        return config
    from voidbox.sandbox.volumes.attach import attach  # few sandboxes have any
    from voidbox.sandbox.volumes.spec import parse_volumes

    return attach(config, parse_volumes(record.volumes), state_folder)


def root_of(record: SandboxRecord) -> Root | None:
    """Return where a sandbox's root is on disks; None if it is an initramfs.

    Raises:
        ConfigError: the record says nothing of sense about it.
    """
    return Root.from_json(record.root) if record.root is not None else None


def _shares(record: SandboxRecord) -> tuple[ShareConfig, ...]:
    """Return the workspace, if it is shared and not copied."""
    mode = record.workspace_mode
    if mode not in ("copy", "ro", "rw"):
        raise ConfigError(f"workspace mode {mode!r}: choose copy, ro or rw")
    if record.workspace is None or mode == "copy":
        return ()
    is_read_only, cache = mode == "ro", record.workspace_cache
    return (ShareConfig(record.workspace, WORKSPACE_TAG, is_read_only, WORKSPACE_PATH, cache),)


def _network(net: dict[str, object] | None) -> NatConfig | None:
    if net is None:
        return None
    from voidbox.nat.config import NatConfig

    unknown = net.keys() - _NET_KEYS
    if unknown:
        raise ConfigError(f"a network has no {', '.join(sorted(unknown))}")
    rate, pcap = net.get("rate_bytes_s"), net.get("pcap")
    if not (rate is None or isinstance(rate, int)) or not (pcap is None or isinstance(pcap, str)):
        raise ConfigError(f"a network's rate is a number and its pcap a path: {rate!r}, {pcap!r}")
    return NatConfig(
        allow=_items(net, "allow", str),
        deny=_items(net, "deny", str),
        allow_host_ports=_items(net, "allow_host_ports", int),
        publish=tuple(forward for forward in _forwards(net) if forward.host_port),
        pcap=os.path.abspath(pcap) if pcap is not None else None,
        rate_bytes_s=rate,
    )


def ports_to_choose(record: SandboxRecord) -> list[Forward]:
    """Return what is to be published on a port that is chosen once the machine runs."""
    forwards = _forwards(record.net) if record.net is not None else ()
    return [forward for forward in forwards if not forward.host_port]


def forwards_of(record: SandboxRecord, is_suspended: bool) -> tuple[Forward, ...]:
    """Return all that is to be published, of a machine that was made without any of it.

    Args:
        is_suspended: what it had published when it was suspended.
    """
    if record.net is None:
        return ()
    return _forwards({"publish": list(record.forwards)} if is_suspended else record.net)


def _forwards(net: dict[str, object]) -> tuple[Forward, ...]:
    from voidbox.nat.forwards import parse_forward

    return tuple(map(parse_forward, _items(net, "publish", str)))


def _items(net: dict[str, object], key: str, kind: type[_Item]) -> tuple[_Item, ...]:
    value = net.get(key) or ()
    if not isinstance(value, list | tuple):
        raise ConfigError(f"a network's {key} is a list: {value!r}")
    for item in value:
        if not isinstance(item, kind):
            raise ConfigError(f"a network's {key} holds no {item!r}")
    return tuple(value)
