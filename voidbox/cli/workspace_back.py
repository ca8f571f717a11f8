"""What the command line says of a workspace that was copied back; and the way there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from voidbox.cli.complain import complain
from voidbox.errors import VoidboxError

if TYPE_CHECKING:  # a run without a workspace needs none of it
    from voidbox.sandbox.guest import Guest
    from voidbox.sandbox.state.records import SandboxRecord
    from voidbox.sandbox.state.store import Store
    from voidbox.sandbox.workspace.copying import WorkspaceResult
    from voidbox.sandbox.workspace.manifest import Manifest
    from voidbox.sandbox.workspace.stored import StoredWorkspace

LIMIT_S = 60.0  # for each request to the guest


def report(result: WorkspaceResult, path: str, is_verbose: bool) -> None:
    """Say what was copied back: all of it, or what needs a look."""
    if is_verbose:
        for sign, names in (("+", result.added), ("*", result.changed), ("-", result.deleted)):
            for name in names:
                complain(f"workspace: {sign} {name}")
        complain(f"workspace: {path}: {result}")
    for line in result.conflicts:
        complain(f"voidbox: conflict: {line}")
    for line in result.skipped:
        complain(f"voidbox: left out {line}")
    for line in result.failed:
        complain(f"voidbox: cannot copy back {line}")


def complain_failed(path: str, error: VoidboxError) -> None:
    """Say why it was not copied back, and that the host's folder is as it was if it is."""
    from voidbox.sandbox.workspace.copying import NotSaved

    if isinstance(error, NotSaved):
        complain(f"voidbox: {error}")
    else:
        complain_untouched(path, str(error))


def complain_untouched(path: str, reason: str) -> None:
    """Say that the host's folder is as it was."""
    complain(f"voidbox: nothing was copied back, and {path} is untouched: {reason}")


class RunWorkspace:
    """The workspace of a VM of this process's own. Thread: the caller's.

    Attributes:
        has_failed: it was not copied back, or not all.
    """

    def __init__(self, guest: Guest, path: str, is_verbose: bool) -> None:
        self._guest = guest
        self._path = path
        self._is_verbose = is_verbose
        self._base: Manifest | None = None
        self.has_failed = False

    def copy_in(self) -> None:
        """Copy the folder into the guest."""
        from voidbox.sandbox.workspace.copying import copy_in

        with self._guest.session() as session:
            self._base = asyncio.run(copy_in(session, self._path, LIMIT_S))

    def copy_back(self, is_cut_short: bool) -> None:
        """Bring the changes back, or say why not.

        Args:
            is_cut_short: the VM was ended from outside.
        """
        from voidbox.sandbox.workspace.copying import copy_back

        if self._base is None:
            return
        self.has_failed = True
        if is_cut_short or self._guest.machine.wait(0) is not None:
            complain_untouched(self._path, "the VM ended before")
            return
        try:
            with self._guest.session() as session:
                result, _ = asyncio.run(copy_back(session, self._path, self._base, LIMIT_S))
        except VoidboxError as error:
            complain_failed(self._path, error)
            return
        self.has_failed = bool(result.failed)
        report(result, self._path, self._is_verbose)


def is_copied(record: SandboxRecord) -> bool:
    """Whether a sandbox has a workspace that was copied in."""
    return record.workspace is not None and record.workspace_mode == "copy"


def stored(store: Store, record: SandboxRecord) -> StoredWorkspace:
    """Return the workspace of a sandbox that runs."""
    from voidbox.agent.aio import AsyncAgent
    from voidbox.sandbox.endpoint import StoredEndpoint
    from voidbox.sandbox.session import Session
    from voidbox.sandbox.workspace.stored import StoredWorkspace

    agent = AsyncAgent(StoredEndpoint(store, record), store.secret(record.id))
    session = Session(agent, record.name, None, record.workdir, record.user)
    return StoredWorkspace(store.path(record.id), record, session)


def copy_in(store: Store, record: SandboxRecord) -> None:
    """Copy a new sandbox's workspace into it, if it has one.

    Raises:
        VoidboxError: see copying.
    """
    if is_copied(record):
        workspace = stored(store, record)
        try:
            asyncio.run(workspace.copy_in(LIMIT_S))
        finally:
            workspace.close()


def copy_back(
    store: Store, record: SandboxRecord, is_verbose: bool, limit_bytes: int | None = None
) -> WorkspaceResult:
    """Copy a sandbox's workspace back, and say what was.

    Raises:
        VoidboxError: see copying.
    """
    from voidbox.sandbox.workspace.copying import LIMIT_BYTES

    workspace = stored(store, record)
    try:
        result = asyncio.run(
            workspace.copy_back(LIMIT_S, LIMIT_BYTES if limit_bytes is None else limit_bytes)
        )
    finally:
        workspace.close()
    report(result, str(record.workspace), is_verbose)
    return result
