"""The workspace of a sandbox that other processes see: what was copied in is in its folder."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator

from voidbox.errors import AgentError, ConfigError, VoidboxError
from voidbox.sandbox.session import Session
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.workspace.copying import (
    LIMIT_BYTES,
    NotSaved,
    WorkspaceResult,
    copy_back,
    copy_in,
)
from voidbox.sandbox.workspace.manifest import Manifest

_MANIFEST, _LOCK = "workspace.json", "workspace.lock"

_logger = logging.getLogger("voidbox")


class StoredWorkspace:
    """Copies one sandbox's workspace. Thread: any.

    Args:
        folder: where what was copied in is remembered: the sandbox's own.
        session: of its agent.

    Attributes:
        is_owed: nobody has asked for the guest's last changes, or done without them.
    """

    def __init__(self, folder: str, record: SandboxRecord, session: Session) -> None:
        self._manifest_path = f"{folder}/{_MANIFEST}"
        self._lock_path = f"{folder}/{_LOCK}"
        self._path = record.workspace if record.workspace_mode == "copy" else None
        self._session = session
        self.is_owed = self._path is not None

    async def copy_in(self, limit_s: float) -> None:
        """Copy the folder into the guest, if it is to be copied; see copying."""
        if self._path is not None:
            manifest = await copy_in(self._session, self._path, limit_s)
            await asyncio.to_thread(manifest.save, self._manifest_path)

    async def copy_back(self, limit_s: float, limit_bytes: int = LIMIT_BYTES) -> WorkspaceResult:
        """Bring what the guest changed to the host; one at a time for each sandbox.

        Raises:
            ConfigError: there is nothing that was copied in, or somebody else does it.
            AgentError, HostError: see copying.
        """
        if self._path is None:
            raise ConfigError(f"{self._session.name} has no workspace that was copied in")
        with self._locked():
            base = await asyncio.to_thread(Manifest.load, self._manifest_path)
            result, _ = await copy_back(
                self._session,
                self._path,
                base,
                limit_s,
                limit_bytes,
                lambda manifest: manifest.save(self._manifest_path),
            )
        return result

    async def settle(self, limit_s: float, is_failing: bool) -> None:
        """Copy back before the sandbox's end what is still owed.

        Args:
            is_failing: an error is on its way already: no other may hide it.
        Raises:
            AgentError: nothing was copied back, or not all.
        """
        if not self.is_owed:
            return
        name = self._session.name
        try:
            result = await self.copy_back(limit_s)
        except VoidboxError as error:
            story = f"{name}: nothing was copied back, and {self._path} is untouched: {error}"
            if isinstance(error, NotSaved):
                story = f"{name}: {error}"
            _logger.warning("%s", story)
            if not is_failing:
                raise AgentError(story) from error
            return
        _logger.info("%s: workspace: %s", name, result)
        for line in (*result.conflicts, *result.skipped, *result.failed):
            _logger.warning("%s: workspace: %s", name, line)
        if not result.failed:
            self.is_owed = False
        elif not is_failing:
            raise AgentError(f"{name}: not all was copied back to {self._path}: {result.failed[0]}")

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._session.agent.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:  # with its folder, if somebody has removed the sandbox
            raise ConfigError(f"cannot open {self._lock_path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"the workspace of {self._session.name} is being copied back already"
                ) from None
            yield
        finally:
            os.close(fd)
