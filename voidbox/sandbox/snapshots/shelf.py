"""The snapshots of a user: STATE/snapshots/ID, each a folder that is whole or not there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.snapshots import record as records
from voidbox.sandbox.snapshots.record import FORK, SnapshotRecord
from voidbox.sandbox.state import names
from voidbox.sandbox.state.state_folder import warn
from voidbox.snapshot import folder as folders
from voidbox.snapshot.folder import Sizes
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted

FOLDER = "snapshots"
_FORK_S = 60.0  # from the making of what fork() needs until it has it in use
_QUOTA_VARIABLE = "VOIDBOX_SNAPSHOT_QUOTA"


class Snapshot(NamedTuple):
    """A snapshot as it lies there.

    Attributes:
        folder: its path.
        sizes: of its files.
        is_in_use: a sandbox that was restored from it runs.
    """

    record: SnapshotRecord
    folder: str
    sizes: Sizes
    is_in_use: bool


class Shelf:
    """The snapshots in a state folder. Thread: any; processes: any number.

    Args:
        state_folder: the absolute path of one that exists.
    """

    def __init__(self, state_folder: str) -> None:
        self.path = f"{state_folder}/{FOLDER}"

    @contextmanager
    def place(self, name: str) -> Iterator[tuple[str, str]]:
        """Have the ID and the folder's path of a snapshot to be made, whose name is nobody else's.

        Raises:
            ConfigError: the name is taken, or the quota is used up.
            HostError: the place cannot be made.
        """
        if name:
            names.check_name(name)
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise durable.failure("make", self.path, error) from error
        self.sweep()
        with self._reserved(name) if name else nullcontext():
            self._check_quota()
            id = names.new_id()
            yield id, f"{self.path}/{id}"

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        """Keep a name while its snapshot is written, which has none before it is whole."""
        draft = folders.Draft(f"{self.path}/{name}")  # never more than that; swept if we die
        try:
            if any(one.record.name == name for one in self.all()):
                raise ConfigError(
                    f"there is a snapshot called {name} already: choose another name, or remove it "
                    f"with voidbox snapshot rm {name}"
                )
            yield
        finally:
            draft.abort()

    def all(self) -> list[Snapshot]:
        """Return all, oldest first. What cannot be read is told in the log, and left alone."""
        found = []
        for id in filter(names.is_id, self._entries()):
            try:
                found.append(self._load(id))
            except FileNotFoundError:
                continue  # removed just now
            except Corrupted as error:
                warn(f"the snapshot {_damaged(id, error)}")
            except (VoidboxError, OSError) as error:
                warn(f"{self.path}/{id}: {error}")
        found.sort(key=lambda one: (one.record.created_at, one.record.id))
        return found

    def find(self, key: str) -> Snapshot:
        """Return the snapshot of a name, an ID, or an ID's beginning (4 digits or more).

        Raises:
            ConfigError: there is none, or several, or it cannot be read.
        """
        if names.is_id(key):
            try:
                return self._load(key)
            except FileNotFoundError:
                pass
            except Corrupted as error:
                raise ConfigError(f"the snapshot {_damaged(key, error)}") from error
        found = self.all()
        matching = [one for one in found if key and one.record.name == key]
        if not matching and names.is_id_prefix(key):
            matching = [one for one in found if one.record.id.startswith(key)]
        if not matching:
            shown = key if names.is_name(key) or names.is_id(key) else repr(key)
            raise ConfigError(f"no snapshot {shown}: voidbox snapshot ls lists them")
        if len(matching) > 1:
            several = ", ".join(one.record.id for one in matching)
            raise ConfigError(f"{key} may be any of these snapshots: {several}")
        return matching[0]

    def id_of(self, key: str) -> str:
        """Return the ID of find()'s snapshot; an ID is that of one that cannot be read, too.

        Raises:
            ConfigError: there is none, or several.
        """
        if names.is_id(key) and os.path.isdir(f"{self.path}/{key}"):
            return key
        return self.find(key).record.id

    def remove(self, id: str) -> None:
        """Delete a snapshot; sandboxes that were restored from it go on.

        The space comes back when the last of them ends.

        Raises:
            HostError: it cannot be deleted.
        """
        gone = f"{self.path}/{id}{folders.PART}"
        try:
            os.rename(f"{self.path}/{id}", gone)
        except FileNotFoundError:
            return
        except OSError as error:
            raise durable.failure("delete", f"{self.path}/{id}", error) from error
        durable.remove_tree(gone)

    def sweep(self) -> None:
        """Delete what killed makers left: half a snapshot, and what a fork() was to take away."""
        if not os.path.isdir(self.path):
            return
        with suppress(HostError):
            folders.sweep(self.path)
        for id in filter(names.is_id, self._entries()):
            with suppress(VoidboxError, OSError):
                if is_left(self._load(id)):
                    self.remove(id)

    def children(self, id: str, among: Iterable[Snapshot]) -> list[str]:
        """Return the IDs of the snapshots that were made of one's sandboxes."""
        return [one.record.id for one in among if one.record.parent == id]

    def lend(self, id: str) -> Lent:
        """Return what a fork() has made, to be used and taken away. Raises as find()."""
        return Lent(self, self.find(id))

    def _load(self, id: str) -> Snapshot:
        path = f"{self.path}/{id}"
        found = records.load(path)
        if found.id != id:
            raise Corrupted("it is another snapshot's")
        return Snapshot(found, path, folders.sizes(path), folders.is_in_use(path))

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise durable.failure("read", self.path, error) from error

    def _check_quota(self) -> None:
        """Refuse another snapshot where they may only take so much, by VOIDBOX_SNAPSHOT_QUOTA."""
        text = os.environ.get(_QUOTA_VARIABLE)
        if not text:
            return
        from voidbox.vmm.config import parse_memory

        try:
            quota = parse_memory(text)
        except ConfigError as error:
            raise ConfigError(f"{_QUOTA_VARIABLE}: {error}") from error
        used = sum(one.sizes.disk_bytes for one in self.all())
        if used >= quota:
            raise ConfigError(
                f"snapshots take {used >> 20} MiB, of {quota >> 20} MiB that {_QUOTA_VARIABLE} "
                "allows: voidbox snapshot prune or rm frees some"
            )


class Lent:
    """A snapshot that is there for a fork() alone: in use until close(), which deletes it.

    Thread: any.

    Raises:
        ConfigError: it cannot be used.

    Attributes:
        record: the snapshot's.
    """

    def __init__(self, shelf: Shelf, snapshot: Snapshot) -> None:
        self.record = snapshot.record
        self._shelf = shelf
        self._fd = folders.use_memory(snapshot.folder)

    def close(self) -> None:
        """Delete it; who was restored from it has it open. Idempotent.

        Raises:
            HostError: it cannot be deleted.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._shelf.remove(self.record.id)


def is_left(snapshot: Snapshot) -> bool:
    """Whether a snapshot is what a fork() was to take away, which was killed."""
    if snapshot.record.kind != FORK or snapshot.is_in_use:
        return False
    try:
        made_at = os.stat(snapshot.folder).st_mtime  # it may have taken minutes to write
    except FileNotFoundError:  # taken away just now
        return False
    return time.time() - made_at > _FORK_S


def _damaged(id: str, error: Corrupted) -> str:
    return f"{id} is damaged: {error}; voidbox snapshot rm {id} removes it"
