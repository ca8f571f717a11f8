"""Snapshots of sandboxes, as programs see them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox import launch
from voidbox.sandbox.jail_level import check_level
from voidbox.sandbox.session import check_seconds
from voidbox.sandbox.snapshots import restored
from voidbox.sandbox.snapshots.record import SNAPSHOT, SnapshotRecord
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot
from voidbox.sandbox.state.names import check_name
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sdk import draft, parent_pipe

SNAPSHOT_S = 310.0  # for its process to write one, unless said otherwise
_CHILDREN_MAX = 1000


class SnapshotInfo(NamedTuple):
    """A snapshot.

    Attributes:
        snapshot_id, name: either goes to create(snapshot=…).
        created_at: in seconds since 1970.
        parent_id: of the snapshot that its sandbox was restored from; "" for none.
        sandbox_id, sandbox_name: of the sandbox that it was made of.
        memory_bytes, cpus: of the machine.
        image: its image's name, or the path of its file.
        size_bytes: what it takes on the disk.
        is_in_use: a sandbox that was restored from it runs; it may be removed all the same.
    """

    snapshot_id: str
    name: str
    created_at: float
    parent_id: str
    sandbox_id: str
    sandbox_name: str
    memory_bytes: int
    cpus: int
    image: str
    size_bytes: int
    is_in_use: bool

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotInfo:
        """Return what users see of one."""
        record, sandbox = snapshot.record, snapshot.record.sandbox
        return cls(
            record.id,
            record.name,
            record.created_at,
            record.parent,
            sandbox.id,
            sandbox.name,
            sandbox.memory_bytes,
            sandbox.cpus,
            sandbox.image,
            snapshot.sizes.disk_bytes,
            snapshot.is_in_use,
        )


def key_of(snapshot: str | SnapshotInfo) -> str:
    """Return what Shelf.find() takes.

    Raises:
        ConfigError: it is nothing of the kind.
    """
    key = snapshot.snapshot_id if isinstance(snapshot, SnapshotInfo) else snapshot
    if not isinstance(key, str):
        raise ConfigError(f"snapshot={snapshot!r}: give its name, its ID, or what snapshot() gave")
    return key


def find(store: Store, snapshot: str | SnapshotInfo) -> Snapshot:
    """Return what create(snapshot=…) means.

    Raises:
        ConfigError: there is none.
    """
    return Shelf(store.folder).find(key_of(snapshot))


def list_all(store: Store) -> list[SnapshotInfo]:
    """Return all snapshots that somebody asked for, oldest first."""
    shelf = Shelf(store.folder)
    shelf.sweep()
    return [SnapshotInfo.of(one) for one in shelf.all() if one.record.kind == SNAPSHOT]


def check_count(count: int) -> None:
    """Refuse a number of forks that makes no sense.

    Raises:
        ConfigError: that.
    """
    if type(count) is not int or not 1 <= count <= _CHILDREN_MAX:
        raise ConfigError(f"fork({count!r}): give a whole number, 1 to {_CHILDREN_MAX}")


def make_record(
    snapshot: SnapshotRecord,
    *,
    fixed: Mapping[str, object],
    net_given: Mapping[str, object],
    publish: Sequence[str] | None,
    envs: Mapping[str, str] | None,
    secret_envs: Mapping[str, str] | None,
    metadata: Mapping[str, str] | None,
    timeout: float | None,
    idle_timeout: float | None,
    name: str | None,
    workdir: str | None,
    user: str | None,
    team: str | None,
    workspace: str | os.PathLike[str] | None,
    workspace_mode: str,
    jail: str | None,
    limits: Mapping[str, float | None],
    is_owned: bool,
) -> SandboxRecord:
    """Return what Store.create() takes, for a sandbox that is restored.

    Args:
        fixed, net_given: arguments of create() that are not their defaults.
        jail: None for what its snapshot's had.
        limits: in place of its snapshot's; None for none.
    Raises:
        ConfigError: an argument makes no sense, or cannot be changed of what is restored.
    """
    restored.refuse_fixed(fixed)
    for given in (name, team):
        if given is not None:
            check_name(given)
    draft.check_workdir(workdir)
    record = restored.record_of(snapshot)
    if workspace is not None:
        if workspace_mode != "copy":
            raise ConfigError(
                'a sandbox that is restored gets its workspace as a copy: workspace_mode="copy"'
            )
        record = record._replace(workspace=draft.check_workspace(workspace))
    return record._replace(
        name=name or "",
        envs={**record.envs, **draft.check_variables("envs", envs)},
        secret_envs=tuple(draft.check_variables("secret_envs", secret_envs, is_secret=True)),
        metadata={**record.metadata, **draft.check_texts("metadata", metadata)},
        timeout_s=None if timeout is None else check_seconds("timeout", timeout),
        idle_timeout_s=(
            None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout)
        ),
        workdir=workdir or record.workdir,
        user=user if user is not None else record.user,
        team=team if team is not None else record.team,
        net=_net(record, net_given, publish),
        jail=record.jail if jail is None else check_level(jail),
        limits=draft.check_limits({**record.limits, **limits}, record.net),
        is_owned=is_owned,
    )


def _net(
    record: SandboxRecord, given: Mapping[str, object], publish: Sequence[str] | None
) -> dict[str, object] | None:
    """Return the network's rules: new ones if any are given, else the snapshot's."""
    if not given and publish is None:
        return record.net
    if record.net is None:
        raise ConfigError("the snapshot's machine has no network: leave out what is about one")
    if given.get("block_network"):
        raise ConfigError(
            'the snapshot\'s machine has a network: deny=["*"] closes it, block_network cannot '
            "take it away"
        )
    wanted = publish if publish is not None else record.net["publish"]
    if not given:
        return {**record.net, "publish": list(draft.check_list("publish", publish))}
    options = dict.fromkeys(
        ("allow", "deny", "allow_host_ports", "rate_bytes_s", "pcap", "outbound_domain_allowlist")
    )
    return draft.make_net(**{**options, "block_network": False, **given, "publish": wanted})  # type: ignore[arg-type]


async def wake(store: Store, id: str) -> None:
    """Have a suspended sandbox go on; it ends with this program if it was one's own.

    Raises:
        VoidboxError: see voidbox.sandbox.launch.wake.
    """
    is_owned = (await asyncio.to_thread(store.read, id)).is_owned
    parent_fd = parent_pipe.reading_end() if is_owned else None
    await asyncio.shield(asyncio.to_thread(launch.wake, store, id, parent_fd))
