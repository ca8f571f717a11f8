"""Sandboxes, snapshots and templates as E2B's API describes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from voidbox.sandbox.snapshots.shelf import Snapshot
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.serve.marks import users_own
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

# What SDKs ask of envd depends on this: everything up to here is served.
ENVD_VERSION = "0.6.13"
_CLIENT_ID = "voidbox"
_NO_BUILD = "00000000-0000-0000-0000-000000000000"
_DISK_MIB = 8192  # of an image's writable disk, unless said otherwise

Shape = dict[str, Any]


def time_text(seconds: float) -> str:
    """Return a moment as RFC 3339 has it."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def state_of(served: Served) -> str:
    """Return "running" or "paused"; E2B knows no other."""
    return "paused" if served.state in (State.SUSPENDED, State.PAUSED) else "running"


def started_at(served: Served, record: SandboxRecord) -> float:
    """Return since when it is its client's, in seconds since 1970."""
    return served.mark.given_at or record.started_at or record.created_at


def made(served: Served, domain: str | None) -> Shape:
    """Return what create() and connect() answer."""
    return {
        "templateID": served.mark.template,
        "sandboxID": served.id,
        "clientID": _CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": served.token or None,
        "trafficAccessToken": served.traffic_token or None,
        "domain": domain,
    }


def listed(registry: Registry, served: Served, record: SandboxRecord) -> Shape:
    """Return a sandbox as lists have it."""
    return {
        "templateID": served.mark.template,
        "alias": served.mark.template,
        "sandboxID": served.id,
        "clientID": _CLIENT_ID,
        "startedAt": time_text(started_at(served, record)),
        "endAt": time_text(registry.end_at(served, record)),
        "cpuCount": record.cpus,
        "memoryMB": record.memory_bytes >> 20,
        "diskSizeMB": _DISK_MIB,
        "state": state_of(served),
        "envdVersion": ENVD_VERSION,
        "metadata": users_own(record.metadata, served.mark),
        "volumeMounts": [],
    }


def told(registry: Registry, served: Served) -> Shape:
    """Return all of a sandbox."""
    mark = served.mark
    return {
        **listed(registry, served, served.record),
        "domain": registry.config.domain,
        "envdAccessToken": served.token or None,
        "allowInternetAccess": mark.internet,
        "network": dict(mark.network),
        "lifecycle": {
            "onTimeout": "pause" if mark.auto_pause else "kill",
            "autoResume": mark.auto_resume,
        },
    }


def snapshot(found: Snapshot) -> Shape:
    """Return a snapshot."""
    name = found.record.name or found.record.id
    return {"snapshotID": f"{name}:default", "names": [name] if found.record.name else []}


def template(name: str, created_at: float, cpus: int, memory_mib: int, build: str = "") -> Shape:
    """Return a template.

    Args:
        build: the ID of what made it; "" for what no client has built.
    """
    return {
        "templateID": name,
        "buildID": build or _NO_BUILD,
        "cpuCount": cpus,
        "memoryMB": memory_mib,
        "diskSizeMB": _DISK_MIB,
        "public": True,
        "createdAt": time_text(created_at),
        "updatedAt": time_text(created_at),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "aliases": [name],
        "names": [name],
        "buildStatus": "ready",
    }
