"""A sandbox begins as a restored machine: found, let run, and made one of its own before all else.

A restored guest is a copy of another: until its agent has acknowledged ADOPT nobody reaches it. The
vsock's socket and the published ports come after that; without it the machine is ended.
"""

from __future__ import annotations

import logging
import os
import time

from voidbox.agent import protocol
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError, ConfigError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots import rests_on
from voidbox.sandbox.snapshots.record import SNAPSHOT, SUSPENDED, TEMPLATE, SnapshotRecord
from voidbox.sandbox.snapshots.templates import Templates
from voidbox.sandbox.state import state_folder
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.storage.durable import Corrupted
from voidbox.vmm.config import MachineConfig

ADOPT_S = 30.0  # from its first instruction to its agent's acknowledgement

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What a machine is restored from.

    Attributes:
        folder: of the snapshot.
        secret: what its agent wants to see.
    """

    folder: str
    record: SnapshotRecord
    secret: bytes

    @property
    def is_suspended(self) -> bool:
        """Whether it is the sandbox itself, rather than what others are made of, too."""
        return self.record.kind == SUSPENDED

    @property
    def is_template(self) -> bool:
        """Whether the machine may as well boot."""
        return self.record.kind == TEMPLATE

    @property
    def has_more_to_come(self) -> bool:
        """Whether others may be restored from it later."""
        return self.record.kind in (TEMPLATE, SNAPSHOT)


def is_suspended(store: Store, record: SandboxRecord) -> bool:
    """Whether a sandbox lies on the disk itself, as it was when it was suspended."""
    return os.path.isdir(store.path(record.id, state_folder.SUSPENDED))


def find(store: Store, record: SandboxRecord, template_key: str | None) -> Source | None:
    """Return what a sandbox is to be restored from; None for one that boots.

    Args:
        template_key: of a template that would do; None for none.
    Raises:
        ConfigError: it cannot be restored; the message says why.
    """
    if is_suspended(store, record):
        return _open(store.path(record.id, state_folder.SUSPENDED), record.name)
    if record.snapshot:
        from voidbox.sandbox.snapshots.shelf import Shelf  # most begin otherwise

        found = Shelf(store.folder).find(record.snapshot)
        return _open(found.folder, found.record.title)
    if template_key is None:
        return None
    templates = Templates(store.folder)
    folder = templates.find(template_key)
    if folder is None:
        return None
    try:
        return _open(folder, "the template")
    except VoidboxError as error:
        log.warning("a template cannot be used: %s", error)
        templates.set_aside(folder)
        return None


def _open(folder: str, title: str) -> Source:
    if os.path.islink(folder):  # its machine's process may have been taken over
        raise ConfigError(f"{title} cannot be restored: {folder} is a link")
    try:
        found = records.load(folder)
    except (FileNotFoundError, Corrupted) as error:
        raise ConfigError(f"{title} cannot be restored: {folder} is damaged: {error}") from error
    rests_on.check(found.files, title)
    return Source(folder, found, records.read_secret(folder))


def closed(config: MachineConfig) -> MachineConfig:
    """Return a machine that nobody reaches: no socket of its vsock's, no published ports."""
    if config.vsock is not None and not config.vsock.is_vhost:
        config = config._replace(vsock=config.vsock._replace(path=None))
    if config.net is not None:
        config = config._replace(net=config.net._replace(publish=()))
    return config


def adopt(client: AgentClient, source: Source, secret: bytes, name: str) -> None:
    """Make the guest one of its own.

    Args:
        secret: what its agent is to want from now on.
        name: the sandbox's. A copy of a guest that had a life is called by it; one of a template
            is called what every guest is, as if it had booted.
    Raises:
        AgentError: it did not become one: it must not be used.
    """
    values: dict[str, object] = {
        "entropy": os.urandom(protocol.SECRET_BYTES),
        "secret": secret,
        "clock_ns": time.time_ns(),
        "generation": os.urandom(16).hex(),
    }
    if not source.is_suspended:
        values["machine_id"] = os.urandom(16).hex()
        if not source.is_template:
            values["hostname"] = _host_name(name)
    try:
        answer = client.link.call(protocol.ADOPT, values, "adopt").result(ADOPT_S)
    except VoidboxError as error:
        raise AgentError(
            f"the restored guest did not become one of its own, and was ended: {error}"
        ) from error
    notes = answer.get("notes")
    for note in notes if isinstance(notes, list) else ():
        log.warning("the restored guest: %.200s", note)


def _host_name(name: str) -> str:
    """Return a sandbox's name as a host may be called: RFC 1123, and it is no domain's."""
    return name.translate({ord("_"): "-", ord("."): "-"}).rstrip("-")
