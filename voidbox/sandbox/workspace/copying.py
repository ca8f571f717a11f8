"""The whole way: a folder of the host into a sandbox, and the changes back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from voidbox.agent.core import printable
from voidbox.errors import AgentError, HostError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.session import WORKDIR, Session
from voidbox.sandbox.transfer import threads
from voidbox.sandbox.transfer.again import again
from voidbox.sandbox.transfer.download import Download
from voidbox.sandbox.transfer.host_tree import HostFolder
from voidbox.sandbox.transfer.listing import read_list
from voidbox.sandbox.transfer.trees import Entry
from voidbox.sandbox.transfer.upload import Upload
from voidbox.sandbox.workspace.changes import Changes, below, compare, error_in, parse_listed
from voidbox.sandbox.workspace.manifest import (
    STAGING_PREFIX,
    GuestItem,
    Manifest,
    Parts,
    scan_host,
)
from voidbox.sandbox.workspace.merge import Merge, Outcome
from voidbox.sandbox.workspace.staging import Staging

GUEST_FOLDER = WORKDIR
LIMIT_BYTES = 8 << 30  # of what a guest may bring back at a time
_DEPTH = 100_000
_LIST_S = 600.0  # for a list, however many answers it comes in
_ROOT = "root"  # who sees all that is in the guest's folder


class WorkspaceResult(NamedTuple):
    """What was copied back. Paths are relative to the folder, and fit to be printed.

    Attributes:
        added, changed, deleted: on the host.
        conflicts: what was changed on both sides, each with what became of it: the host's version
            stays, the guest's is beside it as NAME.voidbox-conflict.
        skipped: what is never copied, each with the reason: links that lead outside, devices.
        failed: what could not be copied, each with the reason. It is tried again the next time.
        bytes: that came from the guest.
        seconds: how long it took.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = (
            f"{len(self.added)} added, {len(self.changed)} changed, {len(self.deleted)} deleted"
        )
        more = [
            f"{len(found)} {name}"
            for name, found in (
                ("conflicts", self.conflicts),
                ("left out", self.skipped),
                ("failed", self.failed),
            )
            if found
        ]
        return ", ".join([counts, *more])


class NotSaved(HostError):
    """All was copied back, but not what is to be compared with the next time."""


class _Fetched(NamedTuple):
    """What came; `lost` could not be read, `gone` was removed meanwhile: a line for each."""

    bytes: int
    lost: dict[Parts, str]
    gone: dict[Parts, str]


async def copy_in(session: Session, path: str, limit_s: float) -> Manifest:
    """Copy the folder into the guest; return what is there now.

    Raises:
        ConfigError: it cannot be read.
        AgentError: the guest cannot take it.
    """
    host = await threads.in_thread(scan_host, path)
    upload = Upload(session, f"copy {path} in", None, None, limit_s)
    await upload.run(upload.folder(path, GUEST_FOLDER, STAGING_PREFIX))
    now, unread = await _list(session, limit_s)
    if unread:  # nothing else has been in there: it could not be told from what is new
        raise AgentError(f"cannot list {GUEST_FOLDER}: {next(iter(unread.values()))}")
    return Manifest(host, now)


async def copy_back(
    session: Session,
    path: str,
    base: Manifest,
    limit_s: float,
    limit_bytes: int = LIMIT_BYTES,
    save: Callable[[Manifest], None] = lambda base: None,
) -> tuple[WorkspaceResult, Manifest]:
    """Bring what the guest changed to the host's folder; return what was done, and a new base.

    Nothing of the host's changes before all has come. From then on whoever gives up waits until the
    host's folder is done.

    Args:
        save: keeps the new base, on the thread that has changed the host's folder.
    Raises:
        AgentError: the guest is gone, or says what makes no sense.
        HostError: the host has no room for it, or it is more than `limit_bytes`.
    """
    started = time.monotonic()
    base = Manifest(dict(base.host), base.guest)
    now, unread = await _list(session, limit_s)
    changes = compare(base, now, unread)
    total_bytes = sum(now[parts].size for parts in changes.files)
    if total_bytes > limit_bytes:
        raise HostError(
            f"the guest has {total_bytes} bytes of changed files in {GUEST_FOLDER}, and "
            f"{limit_bytes} may be copied back: nothing was; remove some there, or allow more"
        )
    fetched, outcome, new_base = _Fetched(0, {}, {}), Outcome([], [], [], [], {}), base
    if any(changes[:4]):
        staging = Staging(path)
        try:
            await threads.in_thread(staging.make)
            fetched = await _fetch(session, path, staging, changes, now, limit_s, limit_bytes)
            outcome, new_base = await threads.in_thread(
                _merge, path, staging, base, now, changes, fetched, unread, save
            )
        finally:
            await threads.in_thread(staging.close)
    else:
        new_base = Manifest(base.host, _new_base(base, now, unread))
        await threads.in_thread(save, new_base)
    result = WorkspaceResult(
        added=tuple(outcome.added),
        changed=tuple(outcome.changed),
        deleted=tuple(outcome.deleted),
        conflicts=tuple(outcome.conflicts),
        skipped=(*changes.skipped, *fetched.gone.values()),
        failed=(*unread.values(), *fetched.lost.values(), *outcome.failed.values()),
        bytes=fetched.bytes,
        seconds=time.monotonic() - started,
    )
    return result, new_base


def _new_base(
    base: Manifest, now: dict[Parts, GuestItem], again: Iterable[Parts]
) -> dict[Parts, GuestItem]:
    """Return what the guest's next listing is compared with.

    Args:
        again: what was not brought, nor what is in it: it stays as it was, and so is a change the
            next time as well.
    """
    guest = dict(now)
    again = set(again)
    for parts in below(again, {**base.guest, **now}):
        if parts in base.guest:
            guest[parts] = base.guest[parts]
        else:
            guest.pop(parts, None)
    return guest


async def _list(
    session: Session, limit_s: float
) -> tuple[dict[Parts, GuestItem], dict[Parts, str]]:
    """Return what is in the guest's folder; and what of it could not be read, with the reason."""
    found: dict[Parts, GuestItem] = {}
    unread: dict[Parts, str] = {}
    values = session.values(_ROOT, path=GUEST_FOLDER, depth=_DEPTH)

    def take(entry: dict[str, Any]) -> None:
        parts, item = parse_listed(entry)
        found[parts] = item
        if error := error_in(entry):
            unread[parts] = f"{printable('/'.join(parts)[:100])}: {error}"

    async def attempt() -> None:
        found.clear()
        unread.clear()
        await read_list(session.agent, values, limit_s, take)

    try:
        async with asyncio.timeout(_LIST_S):  # each answer has its time, and there may be many
            await again(session.agent, attempt, limit_s)
    except TimeoutError:
        raise AgentError(f"{GUEST_FOLDER}: its list has no end after {_LIST_S:g} s") from None
    return found, unread


async def _fetch(
    session: Session,
    path: str,
    staging: Staging,
    changes: Changes,
    now: dict[Parts, GuestItem],
    limit_s: float,
    limit_bytes: int,
) -> _Fetched:
    """Copy the files that may have changed."""
    download = Download(session, f"copy back into {path}", _ROOT, None, limit_s)
    entries: Sequence[Entry] = [
        Entry(parts, now[parts].size, now[parts].mode, now[parts].mtime_ns)
        for parts in changes.files
    ]
    with HostFolder.of(os.dup(staging.fd), os.path.join(path, staging.name)) as host:
        result = await download.run(download.some(GUEST_FOLDER, host, entries, limit_bytes))
    return _Fetched(result.bytes, download.lost, download.gone)


def _merge(
    path: str,
    staging: Staging,
    base: Manifest,
    now: dict[Parts, GuestItem],
    changes: Changes,
    fetched: _Fetched,
    unread: Collection[Parts],
    save: Callable[[Manifest], None],
) -> tuple[Outcome, Manifest]:
    """Change the host's folder, and keep the new base: no cancellation comes between."""
    missing = {*fetched.lost, *fetched.gone}
    came = [parts for parts in changes.files if parts not in missing]
    merge = Merge(staging.root_fd, staging.fd, base, now)
    gone = [parts for parts in changes.deleted if parts not in missing]
    merge.apply(changes._replace(files=came, deleted=gone))
    guest = _new_base(base, now, (*missing, *merge.outcome.failed, *unread))
    new_base = Manifest(base.host, guest)
    try:
        save(new_base)
    except HostError as error:
        raise NotSaved(
            f"the changes are in {path}, but the next time they are looked at again: {error}",
            error.errno,
        ) from error
    return merge.outcome, new_base
