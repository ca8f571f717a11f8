"""What our own SDK asks for when it makes a sandbox on this machine from afar."""

from __future__ import annotations

from typing import Any

from voidbox.serve import bodies
from voidbox.serve.bodies import Fields
from voidbox.serve.config import ServeConfig
from voidbox.serve.errors import bad, not_supported
from voidbox.serve.keys import Key
from voidbox.serve.marks import PREFIX, Mark
from voidbox.serve.templates import BASE
from voidbox.vmm.config import MEMORY_BYTES_DEFAULT

# Of AsyncSandbox.create()'s arguments: those that neither name files and ports of this machine, nor
# take more of it than the server gives each sandbox. The others are refused.
_TEXTS = ("name", "workdir", "user", "init")
_LISTS = ("allow", "deny", "outbound_domain_allowlist")
_MAPS = ("envs", "secret_envs")
_FLAGS = ("block_network", "cold")
CARRIED = frozenset(
    (*_TEXTS, *_LISTS, *_MAPS, *_FLAGS, "image", "snapshot", "memory", "cpus", "metadata",
     "timeout", "idle_timeout")
)  # fmt: skip


def read(fields: Fields, key: Key, config: ServeConfig) -> tuple[str, Mark, dict[str, Any]]:
    """Return a template's name, the mark, and options of AsyncSandbox.create().

    Raises:
        ApiError: it makes no sense, or cannot be had.
    """
    for name in fields.keys() - CARRIED:
        raise not_supported(f"{name}= from afar: it is for a sandbox of this program's own machine")
    template = bodies.text(fields, "snapshot", "") or bodies.text(fields, "image", "") or BASE
    metadata = bodies.text_map(fields, "metadata")
    if any(name.startswith(PREFIX) for name in metadata):
        raise bad(f"metadata: names that begin with {PREFIX!r} are the server's own")
    mark = Mark(key.id, template, names=tuple(metadata))
    options: dict[str, Any] = {
        "timeout": bodies.number(fields, "timeout", config.life_s_max, 0.001, config.life_s_max),
        "metadata": {**metadata, **mark.to_metadata()},
    }
    for names, read in (
        (_TEXTS, bodies.text),
        (_LISTS, bodies.texts),
        (_MAPS, bodies.text_map),
        (_FLAGS, bodies.flag),
    ):
        for name in names:
            if fields.get(name) is not None:
                options[name] = read(fields, name)
    if fields.get("idle_timeout") is not None:
        options["idle_timeout"] = bodies.number(fields, "idle_timeout", 0, 0.001, config.life_s_max)
    return template, mark, {**options, **size(fields, config)}


def size(fields: Fields, config: ServeConfig) -> dict[str, Any]:
    """Return memory and CPUs: at most what the server gives each sandbox."""
    from voidbox.sdk.draft import memory_bytes

    found: dict[str, Any] = {}
    if fields.get("memory") is not None:
        given = config.options.get("memory")
        most = memory_bytes(given) if given is not None else MEMORY_BYTES_DEFAULT
        if memory_bytes(fields["memory"]) > most:
            raise bad(
                f"memory: this server gives each sandbox {most >> 20} MiB at most: ask for less, "
                "or give voidbox serve more --memory"
            )
        found["memory"] = fields["memory"]
    if fields.get("cpus") is not None:
        found["cpus"] = int(bodies.number(fields, "cpus", 1, 1, config.options.get("cpus", 1)))
    return found
