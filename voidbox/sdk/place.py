"""Where a sandbox is: in this host's state folder, or wherever else somebody reaches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from voidbox.agent.endpoint import Endpoint
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.log_file import LogFile
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.volumes.spec import writes_named
from voidbox.sdk import draft, snapshots
from voidbox.sdk.launching import read_truly, wait_gone, wait_or_kill
from voidbox.sdk.snapshots import SnapshotInfo


class Log(Protocol):
    """A log that is read from its beginning."""

    def read(self) -> bytes:
        """Return what comes next; nothing at the end, where more may come later."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class PlacedEndpoint(Endpoint, Protocol):
    """A guest that may be ended by this program itself.

    Attributes:
        own_end: what to say of its end then.
    """

    own_end: str


class Place(Protocol):
    """One sandbox, as its handle must know it. Thread: any, unless a method is a coroutine.

    Attributes:
        endpoint: its guest.
        secret: what its agent wants to see.
        envs: the variables of its commands, the secret ones too.
        shared: see Session.
        writes_volumes: whether it writes volumes with file systems of their own.
    """

    endpoint: PlacedEndpoint
    secret: bytes
    envs: Mapping[str, str]
    shared: Mapping[str, str | None]
    writes_volumes: bool

    def peek(self) -> SandboxRecord:
        """Return its record, for who asks at each request."""
        ...

    def read(self) -> SandboxRecord:
        """Return its record as it truly is. Raises ConfigError if it has been removed."""
        ...

    def is_alive(self) -> bool:
        """Whether it has a process."""
        ...

    def ask(self, op: str, limit_s: float | None, **values: object) -> dict[str, object]:
        """Ask its process for what `process/operations.py` has; see ControlClient.request."""
        ...

    def open_log(self, name: str) -> Log:
        """Return one of its logs, by the name of its file."""
        ...

    def find_snapshot(self, id: str) -> SnapshotInfo:
        """Return a snapshot that it has just made."""
        ...

    def discard_suspended(self) -> None:
        """See Store."""
        ...

    def remove(self) -> None:
        """See Store."""
        ...

    async def wait_gone(self, timeout_s: float | None) -> bool:
        """Wait for the end of its process; False if it takes longer."""
        ...

    async def wait_or_kill(self, limit_s: float) -> None:
        """Wait for the end of its process, and kill one that takes longer."""
        ...


class StoredPlace:
    """A sandbox of a state folder; see Place."""

    def __init__(self, store: Store, record: SandboxRecord) -> None:
        self._store, self._id = store, record.id
        self.endpoint: PlacedEndpoint = StoredEndpoint(store, record)
        self.secret = store.secret(record.id)
        self.envs: Mapping[str, str] = store.envs(record)
        self.shared: Mapping[str, str | None] = draft.shared_folders(record)
        self.writes_volumes = writes_named(record.volumes)

    def peek(self) -> SandboxRecord:
        """See Place."""
        return self._store.peek(self._id)

    def read(self) -> SandboxRecord:
        """See Place."""
        return read_truly(self._store, self._id)

    def is_alive(self) -> bool:
        """See Place."""
        return self._store.is_alive(self._id)

    def ask(self, op: str, limit_s: float | None, **values: object) -> dict[str, object]:
        """See Place."""
        path = self._store.path(self._id, "control.sock")
        return ControlClient(path, limit_s).request(op, **values)

    def open_log(self, name: str) -> Log:
        """See Place."""
        return LogFile(self._store.path(self._id, name))

    def find_snapshot(self, id: str) -> SnapshotInfo:
        """See Place."""
        return SnapshotInfo.of(snapshots.find(self._store, id))

    def discard_suspended(self) -> None:
        """See Place."""
        self._store.discard_suspended(self._id)

    def remove(self) -> None:
        """See Place."""
        self._store.remove(self._id)

    async def wait_gone(self, timeout_s: float | None) -> bool:
        """See Place."""
        return await wait_gone(self._store, self._id, timeout_s)

    async def wait_or_kill(self, limit_s: float) -> None:
        """See Place."""
        await wait_or_kill(self._store, self._id, limit_s)
