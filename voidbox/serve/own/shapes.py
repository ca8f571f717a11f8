"""Sandboxes and snapshots as our own SDK has them, without what is this machine's alone."""

from __future__ import annotations

import os
from typing import Any

from voidbox.sandbox.snapshots.shelf import Snapshot
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.snapshots import SnapshotInfo
from voidbox.serve.marks import users_own
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

Shape = dict[str, Any]


def sandbox(registry: Registry, served: Served, record: SandboxRecord) -> Shape:
    """Return a sandbox's SandboxInfo: paths of this machine by their last name alone."""
    info = SandboxInfo.of(record)
    return info._asdict() | {
        "state": served.state.value,
        "end_at": registry.end_at(served, record),
        "metadata": users_own(record.metadata, served.mark),
        "kernel": os.path.basename(info.kernel),
        "image": served.mark.template,
        "network": None if info.network is None else {**info.network, "pcap": None},
    }


def snapshot(found: Snapshot) -> Shape:
    """Return a snapshot's SnapshotInfo."""
    info = SnapshotInfo.of(found)
    return info._asdict() | {"image": os.path.basename(info.image)}
