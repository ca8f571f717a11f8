"""Brings an image or a snapshot to all nodes: once to each, from those that have it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from voidbox.errors import ConfigError
from voidbox.ray.copying import IMAGE, SNAPSHOT, Found
from voidbox.ray.members import Member


async def spread(among: Sequence[Member], kind: str, key: str, to: Sequence[Member]) -> None:
    """Have nodes have it; one that nobody has comes from its registry, to one of them.

    Each node that has it sends it to one other at a time: with each round twice as many have it.

    Args:
        among: all nodes.
        to: those that are to have it.
    Raises:
        ConfigError: there is no such snapshot.
        VoidboxError: it cannot be brought there.
    """
    if key_is_known(to, key):
        return
    found = dict(
        zip(among, await asyncio.gather(*(one.find(kind, key) for one in among)), strict=True)
    )
    first = next((one for one in found.values() if one is not None), None)
    if first is None and kind == SNAPSHOT:
        raise ConfigError(
            f"no node has the snapshot {key}: make it of a sandbox of the pool, or give the state "
            "folder that has it"
        )
    if first is not None and first.image:
        await spread(among, IMAGE, first.image, to)
    sources: asyncio.Queue[Member | None] = asyncio.Queue()
    for member, has in found.items():
        if has is not None:
            member.has.add(key)
            sources.put_nowait(member)
    if first is None:
        sources.put_nowait(None)  # the registry
    await asyncio.gather(*(_bring(member, kind, key, first, sources) for member in to))


def key_is_known(members: Sequence[Member], key: str) -> bool:
    """Whether all of them have it, as far as we know."""
    return all(key in member.has for member in members)


async def _bring(
    member: Member,
    kind: str,
    key: str,
    first: Found | None,
    sources: asyncio.Queue[Member | None],
) -> None:
    if key in member.has:
        return
    source = await sources.get()
    try:
        # By the name where that is what sandboxes are made of, so that it has it there too.
        name = key if kind == IMAGE or first is None else first.id
        await member.call("fetch", kind, name, None if source is None else source.address)
        member.has.add(key)
    finally:
        if source is not None:
            sources.put_nowait(source)
        if key in member.has:
            sources.put_nowait(member)
        elif source is None:
            sources.put_nowait(None)
