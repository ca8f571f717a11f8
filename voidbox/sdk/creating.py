"""From create()'s arguments to the record of a sandbox that boots, or is restored."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk import draft, snapshots
from voidbox.sdk.snapshots import SnapshotInfo

if TYPE_CHECKING:  # few sandboxes have any
    from voidbox.secrets.spec import Secret


class CreateOptions(TypedDict, total=False):
    """What the sandbox is, of AsyncSandbox.create()'s arguments: see there."""

    kernel: str | os.PathLike[str] | None
    image: str | os.PathLike[str] | None
    disk_size: int | str | None
    init: str | None
    memory: int | str | None
    cpus: int
    envs: Mapping[str, str] | None
    secret_envs: Mapping[str, str] | None
    secrets: Sequence[Secret] | None
    http: Sequence[str] | None
    metadata: Mapping[str, str] | None
    timeout: float | None
    idle_timeout: float | None
    name: str | None
    workdir: str | None
    user: str | None
    disks: Sequence[str] | None
    allow: Sequence[str] | None
    deny: Sequence[str] | None
    allow_host_ports: Sequence[int] | None
    publish: Sequence[str] | None
    rate_bytes_s: int | None
    pcap: str | None
    block_network: bool
    outbound_domain_allowlist: Sequence[str] | None
    vsock: Literal["unix", "vhost", "none"]
    team: str | None
    cmdline: str | None
    workspace: str | os.PathLike[str] | None
    workspace_mode: Literal["copy", "ro", "rw"]
    workspace_cache: Literal["auto", "always", "none"]
    cpu_limit: float | None
    host_memory_bytes: int | None
    pids: int | None
    disk_bytes_s: int | None
    disk_ops_s: int | None
    jail: Literal["default", "strict", "off"] | None
    volumes: Sequence[str] | None
    snapshot: str | SnapshotInfo | None
    cold: bool


DEFAULTS: CreateOptions = {
    **dict.fromkeys(CreateOptions.__annotations__),  # type: ignore[typeddict-item]
    "cpus": 1,
    "block_network": False,
    "vsock": "unix",
    "workspace_mode": "copy",
    "workspace_cache": "auto",
    "cold": False,
}
_NET = (
    *("allow", "deny", "allow_host_ports", "rate_bytes_s", "pcap", "block_network"),
    "outbound_domain_allowlist",
)
# Of a restored sandbox, what the snapshot has said already; what these are by default.
_FIXED: dict[str, object] = {
    **dict.fromkeys(
        ("kernel", "image", "disk_size", "init", "memory", "disks", "cmdline", "volumes")
    ),
    **{"cpus": 1, "vsock": "unix"},
}
_OF_BOTH = (
    *("publish", "envs", "secret_envs", "metadata", "timeout", "idle_timeout", "name", "workdir"),
    *("user", "team", "workspace", "workspace_mode", "jail"),
)
_LIMITS = {
    "cpu": "cpu_limit",
    **{name: name for name in ("host_memory_bytes", "pids", "disk_bytes_s", "disk_ops_s")},
}


async def make_record(store: Store, options: CreateOptions, is_owned: bool) -> SandboxRecord:
    """Return what Store.create() takes.

    Args:
        options: all of them.
        is_owned: whether it ends with this program.
    Raises:
        ConfigError: an argument makes no sense, or there is no kernel, image or snapshot.
    """
    given: dict[str, Any] = {**options}
    net = {name: given[name] for name in _NET}
    both = {name: given[name] for name in _OF_BOTH}
    limits = {name: given[option] for name, option in _LIMITS.items()}
    snapshot = given["snapshot"]
    if snapshot is not None:
        found = await asyncio.to_thread(snapshots.find, store, snapshot)
        return snapshots.make_record(
            found.record,
            fixed={key: given[key] for key, usual in _FIXED.items() if given[key] != usual},
            net_given={
                key: value for key, value in net.items() if value is not None and value is not False
            },
            limits={name: value for name, value in limits.items() if value is not None},
            is_owned=is_owned,
            **both,
        )
    publish = both.pop("publish")
    record = draft.make_record(
        **{key: given[key] for key in (*_FIXED, "workspace_cache")},
        **both,
        net=draft.make_net(publish=publish, **net),
        limits=limits,
        is_owned=is_owned,
        state_folder=store.folder,
    )
    return record._replace(is_cold=given["cold"])
