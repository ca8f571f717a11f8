"""What a sandbox tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.records import SandboxRecord

_NUMBER_MAX = 1 << 63


class SandboxInfo(NamedTuple):
    """A sandbox at one moment.

    Attributes:
        sandbox_id, name: either of them goes to connect().
        state: "creating", "running", "paused", "suspended", "stopping", "stopped" or "crashed".
        created_at, started_at, ended_at: in seconds since 1970; None for what has not happened.
            It was started when its machine was, a moment before its agent answered.
        end_at: when its time limit ends it, were it not paused again; None without one.
        idle_timeout_s: it is stopped when nobody has used it for so long; None: never.
        image: its name, or the path of its file.
        image_digest: "sha256:…" of an image that has a name; else "".
        envs: with those of the image.
        secret_envs: the names of those that are secret.
        workdir, user: of commands and files that name none; None for what voidbox's own image has.
        network: its rules; None for a sandbox without a network.
        reason: how it ended, in one line; "" while it lives.
        crash: the whole story of a crash.
        workspace: the host's folder at /workspace; None for none.
        workspace_mode: "copy", "ro" or "rw".
        jail: how much of it was asked for: "default", "strict" or "off".
        jail_layers: what of it is in force.
        volumes: each as SOURCE:TARGET[:ro].
        snapshot: the ID of what it was restored from, by snapshot or fork; "" for one that was not.
    """

    sandbox_id: str
    name: str
    state: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    end_at: float | None
    idle_timeout_s: float | None
    memory_bytes: int
    cpus: int
    kernel: str
    image: str
    image_digest: str
    envs: Mapping[str, str]
    secret_envs: tuple[str, ...]
    metadata: Mapping[str, str]
    workdir: str | None
    user: str | None
    network: Mapping[str, Any] | None
    reason: str
    crash: str
    workspace: str | None
    workspace_mode: str
    jail: str
    jail_layers: tuple[str, ...]
    volumes: tuple[str, ...]
    snapshot: str

    @property
    def is_running(self) -> bool:
        """Whether it can be used; a paused one after resume()."""
        return self.state in ("running", "paused")

    @classmethod
    def of(cls, record: SandboxRecord) -> SandboxInfo:
        """Return what users see of a record."""
        end_at = None
        if record.timeout_s is not None and record.started_at is not None:
            end_at = record.started_at + record.timeout_s + record.stood_still_s()
        same = {name: getattr(record, name) for name in cls._fields if hasattr(record, name)}
        return cls(
            **same,
            sandbox_id=record.id,
            end_at=end_at,
            network=record.net,
            image_digest=str((record.root or {}).get("digest", "")),
        )._replace(state=record.state.value)


class SandboxMetrics(NamedTuple):
    """What a sandbox uses.

    Attributes:
        cpus: of the guest.
        load: its load averages over 1, 5 and 15 minutes.
        memory_bytes, memory_used_bytes: of the guest, as it sees it.
        disk_bytes, disk_used_bytes: of the guest's root file system.
        processes: in the guest.
        uptime_s: of the guest.
        host_memory_bytes: resident memory of the sandbox's process on the host.
        host_cpu_s: CPU time that it has used.
        guest, host: all figures, by their own names.
    """

    cpus: int
    load: tuple[float, ...]
    memory_bytes: int
    memory_used_bytes: int
    disk_bytes: int
    disk_used_bytes: int
    processes: int
    uptime_s: float
    host_memory_bytes: int
    host_cpu_s: float
    guest: Mapping[str, Any]
    host: Mapping[str, Any]

    @classmethod
    def of(cls, guest: Mapping[str, Any], host: Mapping[str, Any]) -> SandboxMetrics:
        """Return what users see; what is missing, or is no number, counts as 0."""
        load = guest.get("load")
        memory_bytes, disk_bytes = _number(guest, "memory_bytes"), _number(guest, "disk_bytes")
        return cls(
            cpus=int(_number(guest, "cpus")),
            load=tuple(float(x) for x in load if _is_sane(x)) if isinstance(load, list) else (),
            memory_bytes=int(memory_bytes),
            memory_used_bytes=int(memory_bytes - _number(guest, "memory_available_bytes")),
            disk_bytes=int(disk_bytes),
            disk_used_bytes=int(disk_bytes - _number(guest, "disk_available_bytes")),
            processes=int(_number(guest, "processes")),
            uptime_s=_number(guest, "uptime_s"),
            host_memory_bytes=int(_number(host, "rss_bytes")),
            host_cpu_s=_number(host, "cpu_ns") / 1e9,
            guest=guest,
            host=host,
        )


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    return value if _is_sane(value) else 0


def _is_sane(value: object) -> TypeGuard[int | float]:
    """Whether it is a number of something: a guest may say what it likes, infinity say."""
    return isinstance(value, int | float) and abs(value) < _NUMBER_MAX  # no NaN is
