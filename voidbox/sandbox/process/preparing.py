"""What is looked up and made before a sandbox's process shuts itself in, and that itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError
from voidbox.jail import cgroups
from voidbox.jail.cgroups import Group
from voidbox.jail.levels import OFF
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.keeper import confinement
from voidbox.sandbox.process import control_group, recipe, resource_limits, restoring
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.process.starting import MakeGuest
from voidbox.sandbox.snapshots import templates
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import MACHINE
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker import process_limits
from voidbox.sandbox.worker.link import Link, fork_worker
from voidbox.sandbox.worker.surroundings import Walls, absolute, walls
from voidbox.vmm.config import MachineConfig

if TYPE_CHECKING:
    from voidbox.sandbox.guest import Guest
    from voidbox.sandbox.keeper.kept_secrets import KeptSecrets
    from voidbox.secrets.guard import Guard


_END_S = 1.0  # for a worker that has made nothing


class Prepared(NamedTuple):
    """A sandbox that is ready to start.

    Attributes:
        config: its machine.
        source: what it is restored from, or None.
        template_key: of the template that it leaves if it boots, or None.
        secrets: what guards its connections; None: nothing does.
        kept: the workers that `make_guest` puts guests into; None: it has its own.
    """

    store: Store
    record: SandboxRecord
    config: MachineConfig
    source: Source | None
    template_key: str | None
    make_guest: MakeGuest
    secrets: KeptSecrets | None
    kept: KeptGuests | None


def prepare(
    store: Store, record: SandboxRecord, link: Link | None, make_guest: MakeGuest | None
) -> Prepared:
    """Prepare a sandbox whose process this is. The process has one thread.

    Args:
        link: to the worker for its machine; None with `make_guest`.
    Raises:
        ConfigError, HostError: it cannot start.
    """
    config = absolute(recipe.kept_config(store, record))
    own_folder = store.path(record.id, MACHINE)
    try:
        os.mkdir(own_folder, 0o700)
    except FileExistsError:
        _check_left(own_folder)
    key = templates.key_of(record, config)
    source = restoring.find(store, record, key)
    secrets = None
    if record.guarded is not None:
        from voidbox.sandbox.keeper.kept_secrets import KeptSecrets

        secrets = KeptSecrets(store, record, source.folder if source is not None else None)
    kept = None
    if make_guest is None:
        assert link is not None
        guard = secrets.guard if secrets is not None else None
        make_guest = kept = _kept_guests(store, record, config, source, link, guard)
    return Prepared(store, record, config, source, key, make_guest, secrets, kept)


def _check_left(folder: str) -> None:
    """Refuse what the worker before this one may have left, had it been taken over: ways out.

    The next one is given what these names lead to: the guest's disk is among them.

    Raises:
        ConfigError: it is neither a file nor a folder.
    """
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(f"{path}/{name}").st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ConfigError(
                    f"{path}/{name} is neither a file nor a folder: whoever made it wants a way "
                    "out, and the sandbox is not woken"
                )


def _kept_guests(
    store: Store,
    record: SandboxRecord,
    config: MachineConfig,
    source: Source | None,
    link: Link,
    guard: Guard | None,
) -> KeptGuests:
    """Return what makes guests in workers, of which there are as many as may be needed."""
    from voidbox.sandbox import guest

    links = [link]
    if source is None:
        guest.check(config)
    elif source.is_template:
        links.append(fork_worker(record.jail, is_spare=True))  # it boots if it cannot be restored
    root = recipe.root_of(record)
    around = walls(config, record.jail, store.path(record.id, MACHINE))
    if root is not None:
        around = around.with_disk(root.disk_bytes)
    group = _group(record, config.memory_bytes, links)
    if record.jail != OFF:
        confinement.enter(store.folder, group.folder if group is not None else None)
    return KeptGuests(links, around, guard, group)


def _group(record: SandboxRecord, memory_bytes: int, links: Sequence[Link]) -> Group | None:
    """Return the control group that the workers have been moved to, if one is of use.

    Raises:
        ConfigError, HostError: a limit cannot be kept.
    """
    limits = resource_limits.check(record.limits)
    if not limits.keys() & {*process_limits.KEYS}:
        return None
    group = control_group.make(record.id, [link.settle() for link in links])
    if group is None or cgroups.MEMORY not in group.controllers:
        process_limits.check_mapped(limits.get(process_limits.HOST_MEMORY_BYTES), memory_bytes)
    if group is not None:
        process_limits.begin(group, limits)
        for link in links:
            link.group = group
    return group


class KeptGuests:
    """Makes guests in workers that are there. Thread: main."""

    def __init__(
        self, links: list[Link], around: Walls, guard: Guard | None, group: Group | None
    ) -> None:
        self._guard = guard
        self._links = links
        self._walls = around
        self._group = group

    def __call__(
        self, config: MachineConfig, secret: bytes, snapshot: str | None = None, /
    ) -> Guest:
        """See MakeGuest."""
        from voidbox.sandbox.guest import Guest

        worker = self._links.pop(0), self._walls
        has_vsock = config.vsock is not None
        return Guest(config, has_vsock, secret, snapshot, worker=worker, guard=self._guard)

    def end_spare(self) -> None:
        """End the workers that were not needed. Idempotent."""
        while self._links:
            link = self._links.pop()
            link.orders.close()
            link.close(_END_S)

    def close(self) -> None:
        """Free what is no guest's; those have ended. Idempotent."""
        self.end_spare()
        if self._group is not None:
            self._group.close()
