"""What is kept of a sandbox, and its form on the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.names import is_id, is_name
from voidbox.storage.durable import Corrupted

VERSION = 1
_PID_MAX = (1 << 31) - 1
_TIME_MAX = 10**11  # the year 5138: the calendar has no end for much more


class SandboxRecord(NamedTuple):
    """A sandbox at one moment. What it holds is never changed: see Store.update.

    Attributes:
        name: "" in what Store.create is given lets it choose one.
        image: its name, or the path of its file.
        envs, metadata: text to text.
        secret_envs: the names of more variables; see Store.envs.
        id, cid: Store.create gives them.
        state: changes by events alone; see lifecycle.
        created_at, started_at, ended_at: seconds since 1970; None for what has not happened.
        pid: its owner's; 0 before it runs. The process may be gone: see Store.is_alive.
        ports: those that Store.allocate_port gave it.
        workdir, user: of its commands that name none.
        timeout_s: its time limit, from its start; without its pauses, which make it longer.
        idle_timeout_s: it is ended when nobody has used it for so long.
        paused_s: how long its pauses took, those that are over.
        paused_at: since when it is paused, by the host's CLOCK_MONOTONIC; None while it is not.
        net: allow, deny, allow_host_ports, publish, rate_bytes_s, pcap; None: no network. As JSON
            has it: lists, no tuples.
        disks: what vmm.config.parse_disk reads, with absolute paths.
        volumes: what voidbox.sandbox.volumes.spec reads, with absolute paths.
        vsock: "unix", "vhost" or "none".
        root: where its root is on disks, see voidbox.sandbox.root; None: `image` is an initramfs.
        is_owned: it ends with the process that made it.
        is_pooled: of a pool: nothing of it is kept when its program has died.
        is_held: if it is restored, its CPUs do not run before somebody asks for that.
        removes_itself: nothing of it is kept once it has ended.
        end: the machine's EndReason by name, such as "PANIC"; "" if it did not end by itself.
        workspace: the host's folder that its guest has at /workspace; None for none of the host's.
        workspace_mode: "copy", "ro" or "rw".
        workspace_cache: what the guest may keep of one that is shared live; see fuse/cache.py.
        snapshot: the ID of what it was restored from; "" for one that booted.
        is_cold: it boots, though there may be a template.
        start_s: how long its start may take, as whoever made it said; None: as long as usual.
        ran_s: for how long it had run when it was last suspended.
        forwards: what it had published when it was suspended.
        limits: what its guest may use of the host; see process.resource_limits.
        guarded: its secrets without their values, and its rules for HTTP; see voidbox.secrets. None
            for neither.
        jail: how much of it was asked for; see voidbox.jail.levels.
        jail_layers: what of it is in force, in words; () before it runs.
        reason: how it ended, in one line; "" while it lives.
        crash: the whole story, with registers and the console's tail; "" if there is none.
    """

    name: str
    kernel: str
    image: str
    memory_bytes: int
    cpus: int
    envs: dict[str, str]
    metadata: dict[str, str]
    id: str = ""
    state: State = State.CREATING
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    pid: int = 0
    cid: int = 0
    ports: tuple[int, ...] = ()
    workdir: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    paused_s: float = 0.0
    paused_at: float | None = None
    net: dict[str, object] | None = None
    vsock: str = "unix"
    team: str | None = None
    is_owned: bool = False
    is_pooled: bool = False
    is_held: bool = False
    removes_itself: bool = False
    cmdline: str = ""
    disks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    secret_envs: tuple[str, ...] = ()
    root: dict[str, object] | None = None
    end: str = ""
    workspace: str | None = None
    workspace_mode: str = "copy"
    workspace_cache: str = "auto"
    snapshot: str = ""
    is_cold: bool = False
    start_s: float | None = None
    ran_s: float = 0.0
    forwards: tuple[str, ...] = ()
    limits: dict[str, object] = {}
    guarded: dict[str, object] | None = None
    jail: str = "default"
    jail_layers: tuple[str, ...] = ()
    reason: str = ""
    crash: str = ""

    def stood_still_s(self) -> float:
        """Return how long it has been paused, all in all."""
        now_s = 0.0 if self.paused_at is None else time.monotonic() - self.paused_at
        return self.paused_s + max(now_s, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON has it.

        Raises:
            ConfigError: a value is not of its kind.
        """
        for field in self._fields:
            if not _KINDS[field](getattr(self, field)):
                raise ConfigError(f"a sandbox's {field} cannot be {getattr(self, field)!r}")
        return {
            "version": VERSION,
            **self._asdict(),
            "state": self.state.value,
            "ports": list(self.ports),
            "disks": list(self.disks),
            "jail_layers": list(self.jail_layers),
            "volumes": list(self.volumes),
            "secret_envs": list(self.secret_envs),
            "forwards": list(self.forwards),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> SandboxRecord:
        """Return the record that to_json described. What it does not know, it ignores.

        Raises:
            Corrupted: it is none.
        """
        found = {key: values[key] for key in SandboxRecord._fields if key in values}
        try:
            found["state"] = State(found["state"])
            found["ports"] = tuple(found.get("ports", ()))
            found["disks"] = tuple(found.get("disks", ()))
            found["jail_layers"] = tuple(found.get("jail_layers", ()))
            found["volumes"] = tuple(found.get("volumes", ()))
            found["secret_envs"] = tuple(found.get("secret_envs", ()))
            found["forwards"] = tuple(found.get("forwards", ()))
            record = SandboxRecord(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupted(f"it is no sandbox's state ({error})") from error
        for field in SandboxRecord._fields:
            if not _KINDS[field](getattr(record, field)):
                raise Corrupted(f"its {field} is wrong")
        if not is_id(record.id) or not is_name(record.name):
            raise Corrupted("its name or its ID is wrong")
        return record


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_state(value: object) -> bool:
    return isinstance(value, State)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 <= value <= _PID_MAX


def _is_time(value: object) -> bool:
    return (type(value) is int or type(value) is float) and abs(value) <= _TIME_MAX


def _is_time_or_none(value: object) -> bool:
    return value is None or _is_time(value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


def _is_counts(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value))


def _is_words(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, [*value, *value.values()]))


def _is_options(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_text, value)))


def _is_limits(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and _is_number(number) for key, number in value.items()
    )


_KINDS: dict[str, Callable[[object], bool]] = {
    "name": _is_text,
    "kernel": _is_text,
    "image": _is_text,
    "memory_bytes": _is_count,
    "cpus": _is_count,
    "envs": _is_texts,
    "metadata": _is_texts,
    "id": _is_text,
    "state": _is_state,
    "created_at": _is_time,
    "started_at": _is_time_or_none,
    "ended_at": _is_time_or_none,
    "pid": _is_pid,
    "cid": _is_count,
    "ports": _is_counts,
    "workdir": _is_text_or_none,
    "user": _is_text_or_none,
    "timeout_s": _is_number_or_none,
    "idle_timeout_s": _is_number_or_none,
    "paused_s": _is_time,
    "paused_at": _is_time_or_none,
    "net": _is_options,
    "vsock": _is_text,
    "team": _is_text_or_none,
    "is_owned": _is_flag,
    "is_pooled": _is_flag,
    "is_held": _is_flag,
    "removes_itself": _is_flag,
    "cmdline": _is_text,
    "disks": _is_words,
    "volumes": _is_words,
    "secret_envs": _is_words,
    "root": _is_options,
    "end": _is_text,
    "workspace": _is_text_or_none,
    "workspace_mode": _is_text,
    "workspace_cache": _is_text,
    "snapshot": _is_text,
    "is_cold": _is_flag,
    "start_s": _is_number_or_none,
    "ran_s": _is_number,
    "forwards": _is_words,
    "limits": _is_limits,
    "guarded": _is_options,
    "jail": _is_text,
    "jail_layers": _is_words,
    "reason": _is_text,
    "crash": _is_text,
}
