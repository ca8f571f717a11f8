"""What a client asks for when it makes a sandbox; what cannot be had is refused, never ignored."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from voidbox.named_tuple import NamedTuple
from voidbox.serve import bodies
from voidbox.serve.bodies import Fields
from voidbox.serve.config import ServeConfig
from voidbox.serve.errors import bad, not_supported
from voidbox.serve.keys import Key
from voidbox.serve.marks import PREFIX, Mark

_ALL = ("0.0.0.0/0", "::/0")
_KNOWN = frozenset(
    ("templateID", "timeout", "metadata", "envVars", "autoPause", "autoPauseMemory", "autoResume",
     "secure", "allow_internet_access", "network", "mcp", "iam", "volumeMounts")
)  # fmt: skip
_NETWORK_KNOWN = frozenset(("allowOut", "denyOut", "allowPublicTraffic", "maskRequestHost"))


class Wish(NamedTuple):
    """What is to be made.

    Attributes:
        options: of AsyncSandbox.create(), beside the template's.
    """

    template: str
    mark: Mark
    options: dict[str, Any]


def read(fields: Fields, key: Key, config: ServeConfig, is_old: bool) -> Wish:
    """Return what a body asks for.

    Args:
        is_old: it came to /sandboxes, whose defaults are others than those of /v2/sandboxes.
    Raises:
        ApiError: it makes no sense, or cannot be had.
    """
    refuse_unknown(fields, _KNOWN)
    for name in ("mcp", "iam", "volumeMounts"):
        if fields.get(name):
            raise not_supported(f"{name}")
    if not bodies.flag(fields, "autoPauseMemory", True):
        raise not_supported("autoPauseMemory: false; a paused sandbox keeps its memory")
    metadata = bodies.text_map(fields, "metadata")
    if any(name.startswith(PREFIX) for name in metadata):
        raise bad(f"metadata: names that begin with {PREFIX!r} are the server's own")
    network = bodies.fields_of(fields, "network")
    internet = bodies.flag(fields, "allow_internet_access", True)
    auto_pause = bodies.flag(fields, "autoPause")
    mark = Mark(
        key_id=key.id,
        template=bodies.text(fields, "templateID"),
        is_secure=bodies.flag(fields, "secure", False) if is_old else True,
        auto_pause=auto_pause,
        auto_resume=bodies.flag(bodies.fields_of(fields, "autoResume"), "enabled"),
        internet=internet,
        network={name: value for name, value in network.items() if value is not None},
        names=tuple(metadata),
    )
    timeout_s = life_s(fields, config, 15.0 if is_old else 300.0)
    options: dict[str, Any] = {
        "timeout": None if auto_pause else timeout_s,
        "envs": bodies.text_map(fields, "envVars"),
        "metadata": {**metadata, **mark.to_metadata()},
        **rules(network, internet),
    }
    return Wish(mark.template, mark, options)


def life_s(fields: Fields, config: ServeConfig, default: float) -> float:
    """Return for how long a sandbox is to live.

    Raises:
        ApiError: not at all, or for too long.
    """
    value = bodies.number(fields, "timeout", default, -1e12, 1e12)
    if not 0 < value <= config.life_s_max:
        raise bad(f"timeout: give seconds, more than 0 and at most {config.life_s_max:g}")
    return value


def refuse_unknown(fields: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse what this server does not know, where it would change anything."""
    for name, value in fields.items():
        if name not in known and value not in (None, False, "", [], {}):
            raise not_supported(f"the field {name!r}")


def rules(network: Fields, internet: bool) -> dict[str, Any]:
    """Return the network's rules as AsyncSandbox.create() takes them; none for an open one.

    E2B's allowOut goes before its denyOut; with voidbox it is the other way round.

    Raises:
        ApiError: a rule makes no sense, or cannot be had.
    """
    refuse_unknown(network, _NETWORK_KNOWN)
    allow, deny = bodies.texts(network, "allowOut"), bodies.texts(network, "denyOut")
    bodies.flag(network, "allowPublicTraffic", True)
    bodies.text(network, "maskRequestHost", "")
    for rule in deny:
        if not _is_network(rule):
            raise bad(f"denyOut: {rule!r} is no address and no network")
    is_closed = not internet or any(rule in _ALL for rule in deny)
    if is_closed:
        return {"allow": allow} if allow else {"deny": ["*"]}
    names = [rule for rule in allow if not _is_network(rule)]
    if names:
        raise bad(
            "allowOut: names only make a difference with '0.0.0.0/0' (ALL_TRAFFIC) in denyOut"
        )
    if allow and deny:
        raise not_supported("allowOut as an exception to a denyOut other than '0.0.0.0/0'")
    return {"deny": deny} if deny else {}


def _is_network(rule: str) -> bool:
    try:
        ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
    return True
