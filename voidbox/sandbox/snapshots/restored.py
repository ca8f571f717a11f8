"""From a snapshot to the record of a sandbox that is made of it."""

from __future__ import annotations

from collections.abc import Mapping

from voidbox.errors import ConfigError
from voidbox.sandbox.snapshots.record import SnapshotRecord
from voidbox.sandbox.state.records import SandboxRecord

# What a machine is made of: in a copy it is what it was.
_FIXED = (
    *("kernel", "image", "disk_size", "init", "memory", "cpus", "disks", "cmdline", "vsock"),
    "volumes",
)


def refuse_fixed(given: Mapping[str, object]) -> None:
    """Refuse what nobody can change of a machine that is restored.

    Args:
        given: create()'s arguments that are not their defaults.
    Raises:
        ConfigError: names the first.
    """
    for name in _FIXED:
        if name in given:
            raise ConfigError(
                f"{name}={given[name]!r}: a sandbox that is restored has what its snapshot had; "
                "leave it out, or create one without a snapshot"
            )


def record_of(snapshot: SnapshotRecord) -> SandboxRecord:
    """Return the record of a sandbox like the one that was saved, for Store.create().

    It has its network's rules, and its published ports on other ports of the host.
    """
    saved = snapshot.sandbox
    return saved._replace(
        name="",
        net=_with_new_ports(saved.net),
        snapshot=snapshot.id,
        is_owned=False,
        is_pooled=False,
        removes_itself=False,
        timeout_s=None,
        idle_timeout_s=None,
        paused_s=0.0,  # of one that was paused; its copy runs
        paused_at=None,
        secret_envs=(),  # whoever may have a copy need not have those
        workspace=None,
        workspace_mode="copy",
        ran_s=0.0,
        forwards=(),
        end="",
        reason="",
        crash="",
    )


def _with_new_ports(net: dict[str, object] | None) -> dict[str, object] | None:
    """Have the host's ports be chosen anew: the original may still have its own."""
    if net is None:
        return None
    publish = net.get("publish")
    words = [str(word) for word in publish] if isinstance(publish, list) else []
    return {**net, "publish": [_without_host_port(word) for word in words], "pcap": None}


def _without_host_port(forward: str) -> str:
    from voidbox.nat.forwards import parse_forward

    return str(parse_forward(forward)._replace(host_port=0))
