"""What the guest has done to the folder since it was copied in."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from voidbox.agent.core import printable
from voidbox.errors import AgentError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.transfer.host_tree import is_safe_link, split_name
from voidbox.sandbox.transfer.listing import error_of
from voidbox.sandbox.workspace.manifest import (
    FILE,
    FOLDER,
    LINK,
    STAGING_PREFIX,
    GuestItem,
    Manifest,
    Parts,
)

_I64_MAX = (1 << 63) - 1
_DEPTH_MAX = 200  # folders in folders that are brought to the host, where much goes by recursion
_SHOWN_MAX = 100


class Changes(NamedTuple):
    """What is to be brought to the host.

    Attributes:
        deleted: deepest first, among them what is of another kind now.
        folders: made, or with other permissions; from the top down.
        files: made, or perhaps changed.
        links: made or changed.
        skipped: what is not brought, each with the reason.
    """

    deleted: list[Parts]
    folders: list[Parts]
    files: list[Parts]
    links: list[Parts]
    skipped: list[str]


def parse_listed(item: object) -> tuple[Parts, GuestItem]:
    """Return an entry of the guest's listing.

    Raises:
        AgentError: it cannot be in a folder, or is described without sense.
    """
    values = item if isinstance(item, dict) else {}
    parts = split_name(values.get("name"))
    names = ("mode", "size", "mtime_ns", "ctime_ns", "file")
    numbers = [values.get(name, 0) for name in names]
    kind, target = values.get("type"), values.get("target", "")
    if not all(type(number) is int and -_I64_MAX <= number <= _I64_MAX for number in numbers):
        raise AgentError("the guest's agent described a file without sense")
    if not isinstance(kind, str) or not isinstance(target, str):
        raise AgentError("the guest's agent described a file without sense")
    mode, size, mtime_ns, ctime_ns, file = numbers
    return parts, GuestItem(kind, mode & 0o777, max(0, size), mtime_ns, ctime_ns, file, target)


def error_in(item: object) -> str:
    """Return why an entry of the guest's listing, or what is in it, could not be read, or ""."""
    return error_of(item) if isinstance(item, dict) else ""


def below(unread: Collection[Parts], names: Iterable[Parts]) -> list[Parts]:
    """Return those names that are among others, or in folders that are."""
    if not unread:
        return []
    return [
        parts
        for parts in names
        if any(parts[:depth] in unread for depth in range(1, len(parts) + 1))
    ]


def compare(base: Manifest, now: dict[Parts, GuestItem], unread: Collection[Parts] = ()) -> Changes:
    """Return what has changed in the guest. What `base` says of the host does not matter here.

    Args:
        unread: what could not be read: nothing is said of it, nor of what is in it.
    """
    changes = Changes([], [], [], [], [])
    hidden = set(below(unread, {**base.guest, **now}))
    for parts in base.guest:
        if parts in hidden:
            continue
        item = now.get(parts)
        if item is None or (item.kind != base.guest[parts].kind and _is_kept(parts, item)):
            changes.deleted.append(parts)
    for parts, item in now.items():
        was = base.guest.get(parts)
        if was == item or parts in hidden:
            continue
        if not _is_kept(parts, item):
            if was is None or was.kind != item.kind or was.target != item.target:
                changes.skipped.append(_why_not(parts, item))
        elif item.kind == FOLDER:
            if was is None or was.kind != FOLDER or was.mode != item.mode:
                changes.folders.append(parts)
        elif item.kind == FILE:
            changes.files.append(parts)
        elif was is None or was.kind != LINK or was.target != item.target:
            changes.links.append(parts)
    changes.deleted.sort(key=lambda parts: (-len(parts), parts))
    for found in (changes.folders, changes.files, changes.links):
        found.sort()
    return changes


def _is_kept(parts: Parts, item: GuestItem) -> bool:
    if parts[0].startswith(STAGING_PREFIX) or len(parts) > _DEPTH_MAX:
        return False
    if item.kind == LINK:
        return is_safe_link(parts, item.target)
    return item.kind in (FILE, FOLDER)


def _why_not(parts: Parts, item: GuestItem) -> str:
    shown = printable("/".join(parts))
    if len(parts) > _DEPTH_MAX:
        return f"{shown[:_SHOWN_MAX]}…: below more than {_DEPTH_MAX} folders"
    if item.kind == LINK:
        return f"{shown}: a link to {printable(item.target)!r}, outside the folder"
    if item.kind in (FILE, FOLDER):
        return f"{shown}: a name of voidbox's own"
    return f"{shown}: neither file nor folder nor link"
