"""What is in a state folder, and how it is kept whole: the records, the allocations, the leftovers.

    STATE/lock                 held while anything below changes
    STATE/allocations/allocations.json     the index: who has which name, CID and port; see
                               allocators. In a folder of its own: a sandbox's process may write
                               there, and no further
    STATE/allocations/cleaned  when somebody last looked for what killed processes left
    STATE/sandboxes/ID/        0700
        state.json             the record
        secret                 what the guest's agent wants to see
        secret-envs            variables of its commands that nobody is shown; gone when it ends
        alive                  held for as long as the sandbox's process lives; see Hold
        control.sock, vsock.sock, console.log, owner.log     of that process
        machine/               what the machine's own process may write: the guest's disk
            suspended/         the machine, of one that is suspended
    STATE/sandboxes/.new-ID, .removed-ID     half made, half removed: the next command deletes it
    STATE/set-aside/           what could not be read, with the time

The records decide: what allocations.json says and no record does is free. Nobody reads all of them
but to list them, and to make the index anew where it is missing or wrong.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress

from voidbox.errors import HostError
from voidbox.sandbox.state import allocators, names, records
from voidbox.sandbox.state.allocators import Allocations
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted
from voidbox.storage.locking import FileLock, Hold, is_held
from voidbox.storage.place import make_state_folder

SECRET_BYTES = 32
SECRET_ENVS = "secret-envs"
STATE, SECRET, ALIVE, CONSOLE = "state.json", "secret", "alive", "console.log"
MACHINE = "machine"
SUSPENDED = f"{MACHINE}/suspended"
CONTROL, VSOCK = "control.sock", "vsock.sock"
SOCKETS = (CONTROL, VSOCK)  # and vsock.sock_PORT, for what the guest connects to

_NEW, _REMOVED = ".new-", ".removed-"

# A file is replaced by another one, with a time of its own: no two of them look alike.
_Mark = tuple[int, int, int]  # inode, time, size


class StateFolder:
    """A state folder. Thread: any; processes: any number. Methods say who needs the lock.

    Args:
        folder, is_known: see Store.

    Raises:
        ConfigError: see Store.

    Attributes:
        path: absolute.
    """

    def __init__(self, folder: str | None, is_known: bool = False) -> None:
        self.path = make_state_folder(folder, "sandboxes")
        make_state_folder(self.path, "allocations")
        self.sandboxes = f"{self.path}/sandboxes"
        self.allocations = f"{self.path}/allocations"
        self._allocations = f"{self.allocations}/allocations.json"
        self._cleaned = f"{self.allocations}/cleaned"
        self._index: tuple[_Mark, Allocations] | None = None  # as it was last read or written here
        self._peeked: dict[str, tuple[_Mark, SandboxRecord]] = {}
        if not is_known:
            with suppress(FileNotFoundError, Corrupted):  # whoever needs it sets it aside
                durable.read_json(self._allocations, allocators.VERSION)

    def lock(self) -> FileLock:
        """Return a context in which nobody else changes anything."""
        return FileLock(f"{self.path}/lock")

    def file(self, id: str, name: str) -> str:
        """Return the path of a file in a sandbox's folder."""
        return f"{self.sandboxes}/{id}/{name}"

    def is_alive(self, id: str) -> bool:
        """Whether a process keeps a sandbox alive. No lock needed."""
        return is_held(self.file(id, ALIVE))

    def exists(self, id: str) -> bool:
        """Whether a sandbox has a folder. No lock needed."""
        return os.path.isdir(f"{self.sandboxes}/{id}")

    # Records.

    def load(self, id: str) -> SandboxRecord:
        """Return a sandbox's record. No lock needed.

        Raises:
            FileNotFoundError, Corrupted, ConfigError, HostError: see durable.read_json.
        """
        values = durable.read_json(self.file(id, STATE), records.VERSION)
        record = SandboxRecord.from_json(values)
        if record.id != id:
            raise Corrupted("it is another sandbox's")
        return record

    def peek(self, id: str) -> SandboxRecord:
        """As load(), for who asks often: the file is read if it has changed. No lock needed."""
        mark = _mark(self.file(id, STATE))
        known = self._peeked.get(id)
        if known is None or known[0] != mark:
            known = self._peeked[id] = mark, self.load(id)
        return known[1]

    def save(self, record: SandboxRecord) -> SandboxRecord:
        """Replace a sandbox's record; return it. Lock: held.

        Raises:
            ConfigError, HostError: see durable.write_json.
        """
        if record.state is State.SUSPENDED:
            self._make_last(record.id)
        # One that runs ends with its host, unless it was suspended before and has that yet.
        is_lasting = not record.state.has_process or os.path.exists(self.file(record.id, SUSPENDED))
        durable.write_json(self.file(record.id, STATE), record.to_json(), is_lasting=is_lasting)
        return record

    def _make_last(self, id: str) -> None:
        """Bring to the disk what make_folder wrote, for a sandbox that outlives the host's end."""
        try:
            for name in (SECRET, SECRET_ENVS):
                with suppress(FileNotFoundError):
                    durable.sync_file(self.file(id, name))
            durable.sync_folder(self.sandboxes)
        except OSError as error:
            raise durable.failure("write", self.file(id, SECRET), error) from error

    def ids(self) -> list[str]:
        """Return the IDs of all sandboxes. No lock needed."""
        found = [name for name in self._entries() if names.is_id(name)]
        if len(self._peeked) > 2 * len(found):
            self._peeked.clear()
        return found

    def scan(self) -> tuple[list[SandboxRecord], list[str]]:
        """Return all records, oldest first, and the IDs of those unreadable. No lock needed."""
        found, unreadable = [], []
        for id in self.ids():
            try:
                found.append(self.peek(id))
            except (FileNotFoundError, Corrupted):
                unreadable.append(id)
        found.sort(key=lambda record: (record.created_at, record.id))
        return found, unreadable

    def tidy(self) -> list[SandboxRecord]:
        """Set aside what is unreadable; return all records, oldest first. Lock: held."""
        found, unreadable = self.scan()
        for id in unreadable:
            self.set_aside(id)
        return self.scan()[0] if unreadable else found

    def remove_leftovers(self) -> None:
        """Delete what is half made or half removed. Lock: held."""
        for name in self.leftovers():
            try:
                durable.remove_tree(f"{self.sandboxes}/{name}")
            except HostError as error:  # nobody needs it; nobody is kept from working by it
                warn(str(error))

    def set_aside(self, id: str, known: SandboxRecord | None = None) -> None:
        """Have a record that cannot be read be out of the way, and say so. Lock: held.

        With all that is in its folder, if its process is gone. What lives stays in its place, with
        the record that its process knows.

        Args:
            known: the record, where this is that process.
        """
        try:
            self.load(id)
        except FileNotFoundError:
            why = "it is missing"
        except Corrupted as error:
            why = str(error)
        else:
            return
        if not self.exists(id):
            return  # removed since it was looked for
        state = self.file(id, STATE)
        aside = f"{self.path}/set-aside"
        try:
            if not self.is_alive(id):
                self.remove_sockets(id)
                what = f"set aside as {durable.set_aside(f'{self.sandboxes}/{id}', aside, id)}"
                self.free(id, is_gone=True)
            else:
                what = ""
                if os.path.lexists(state):
                    now = durable.set_aside(state, aside, f"{id}-{STATE}")
                    what = f"set aside as {now}; "
                from voidbox.sandbox.state.recalling import recall  # hardly a command needs it

                record = known or recall(id, self.file(id, CONTROL))
                if record is not None:
                    self.save(record)
                    what += "made anew, for the sandbox runs"
                else:
                    what += "the sandbox runs, and will write it when it next changes"
        except HostError as error:  # a full disk, say; it stays, and the rest can be used
            what = str(error)
        warn(f"{state} cannot be read: {why}; {what}")

    # A sandbox's folder.

    def make_folder(self, record: SandboxRecord, secret_envs: Mapping[str, str]) -> Hold:
        """Make a sandbox's folder, whole at once; return what keeps it alive. Lock: held.

        Raises:
            HostError: it cannot be made; see abandon.
        """
        beside = f"{self.sandboxes}/{_NEW}{record.id}"
        try:
            os.mkdir(beside, 0o700)
            secret = os.urandom(SECRET_BYTES)
            durable.write_file(f"{beside}/{SECRET}", secret, is_lasting=False)
            if secret_envs:
                content = json.dumps(dict(secret_envs)).encode()
                durable.write_file(f"{beside}/{SECRET_ENVS}", content, is_lasting=False)
            durable.write_json(f"{beside}/{STATE}", record.to_json(), is_lasting=False)
            hold = Hold(f"{beside}/{ALIVE}")
            try:
                os.rename(beside, f"{self.sandboxes}/{record.id}")
            except BaseException:
                hold.close()
                raise
        except OSError as error:
            raise durable.failure("make", f"{self.sandboxes}/{record.id}", error) from error
        return hold

    def abandon(self, id: str) -> None:
        """Delete what a failed make_folder left. Lock: held."""
        with suppress(HostError):  # then the next command does
            for name in (f"{_NEW}{id}", id):
                durable.remove_tree(f"{self.sandboxes}/{name}")
            allocations = self.load_allocations()
            allocations.release_all(id)
            self.save_allocations(allocations)

    def remove_folder(self, id: str) -> None:
        """Delete a sandbox; what it has is free. Lock: held.

        Raises:
            HostError: it cannot be deleted.
        """
        gone = f"{self.sandboxes}/{_REMOVED}{id}"
        try:
            os.rename(f"{self.sandboxes}/{id}", gone)
        except OSError as error:
            raise durable.failure("delete", f"{self.sandboxes}/{id}", error) from error
        durable.remove_tree(gone)
        self._peeked.pop(id, None)
        self.free(id, is_gone=True)  # last: on a full disk there is room for it now

    def socket_names(self, id: str) -> list[str]:
        """Return the names of the sockets in a sandbox's folder. No lock needed."""
        with suppress(OSError):
            entries = os.listdir(f"{self.sandboxes}/{id}")
            return [name for name in entries if name.startswith(SOCKETS)]
        return []

    def remove_sockets(self, id: str) -> None:
        """Delete the sockets in a sandbox's folder. Lock: held."""
        for name in self.socket_names(id):
            with suppress(OSError):
                os.unlink(self.file(id, name))

    # Allocations.

    def load_allocations(self) -> Allocations:
        """Return who has what; save them, or forget them. Lock: held.

        Raises:
            HostError, ConfigError: see durable.read_json.
        """
        try:
            with suppress(FileNotFoundError):
                mark = _mark(self._allocations)
                cached, self._index = self._index, None  # whoever changes it may not save it
                if cached is not None and cached[0] == mark:
                    return cached[1]
            return self._read_allocations()
        except FileNotFoundError:
            pass
        except Corrupted as error:
            now = durable.set_aside(self._allocations, f"{self.path}/set-aside", "allocations.json")
            warn(f"{self._allocations} cannot be read: {error}; set aside as {now}, made anew")
        with suppress(OSError):  # where voidbox 0.1 had it
            os.unlink(f"{self.path}/allocations.json")
        allocations = Allocations()
        self._correct(allocations, self.tidy())
        return allocations

    def save_allocations(self, allocations: Allocations) -> None:
        """Replace allocations.json. Lock: held.

        Raises:
            HostError: it cannot be written.
        """
        self._index = None
        values = allocations.to_json()  # the records have it, too
        durable.write_json(self._allocations, values, indent=None, is_lasting=False)
        self._index = _mark(self._allocations), allocations

    def find_name(self, name: str) -> str | None:
        """Return whose a name is, as the index has it; None if it has none. No lock needed.

        It may be wrong: the record decides.
        """
        with suppress(FileNotFoundError, Corrupted):
            return self._read_allocations().names.get(name)
        return None

    def holder(self, allocations: Allocations, name: str) -> SandboxRecord | None:
        """Return the record of the sandbox that has a name. Lock: held.

        Raises:
            HostError, ConfigError: its record cannot be read.
        """
        id = allocations.names.get(name)
        if id is None:
            return None
        try:
            record = self.load(id)
        except FileNotFoundError:
            if not self.is_alive(id):
                return None
            record = None
        except Corrupted:
            record = None
        if record is None:  # it is set aside, or made anew by what its process knows
            self.set_aside(id)
            with suppress(FileNotFoundError, Corrupted):
                record = self.load(id)
        return record if record is not None and record.name == name else None

    def remove_half_made(self, id: str) -> None:
        """Delete what a killed process left of snapshots. Under the lock.

        Raises:
            HostError: it cannot be deleted.
        """
        folder = self.file(id, MACHINE)
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    durable.remove_tree(entry.path)

    def forget_secrets(self, id: str) -> None:
        """Delete what was to be told to nobody but a guest that is gone."""
        with suppress(OSError):
            os.unlink(self.file(id, SECRET_ENVS))

    def free(self, id: str, is_gone: bool = False) -> None:
        """Have all be free that a sandbox has; its name too, if it is gone. Lock: held."""
        self.forget_secrets(id)
        try:
            allocations = self.load_allocations()
            if is_gone:
                allocations.release_all(id)
            else:
                allocations.release_numbers(id)
            self.save_allocations(allocations)
        except HostError as error:  # nothing is lost: the records decide
            warn(f"what sandbox {id} had will be free later: {error}")

    def correct_allocations(self) -> None:
        """Have allocations.json be what the records say. Lock: held.

        Raises:
            HostError: it cannot be written.
        """
        allocations = self.load_allocations()
        before = allocations.to_json()
        self._correct(allocations, self.tidy())
        if before != allocations.to_json() or not os.path.exists(self._allocations):
            self.save_allocations(allocations)

    def is_index_wrong(self, ids: list[str], living: set[str]) -> bool:
        """Whether the index has what no longer is, or lacks what lives. No lock needed."""
        try:
            allocations = self._read_allocations()
        except FileNotFoundError:
            return bool(ids)
        except Corrupted:
            return True
        known, numbered = set(ids), allocations.numbered()
        return not (
            allocations.owners() <= known
            and known <= set(allocations.names.values())
            and living <= set(allocations.cids.taken.values())
        ) or any(map(self._has_ended, numbered - living))

    def _has_ended(self, id: str) -> bool:
        """Whether a sandbox has, so that its CID and ports are to be free. No lock needed."""
        with suppress(FileNotFoundError, Corrupted):  # others find it
            return self.peek(id).state.is_final
        return False

    def _correct(self, allocations: Allocations, found: list[SandboxRecord]) -> None:
        """Have allocations be what the records say, and keep what lives unrecorded."""
        known = {record.id for record in found}
        for id in allocations.owners():
            if id in known or not self.is_alive(id):
                allocations.release_all(id)
        for record in found:
            allocations.names[record.name] = record.id
            if not record.state.is_final:
                allocations.take(record.id, record.cid, record.ports)

    # Cleaning.

    def was_cleaned(self, within_s: float) -> bool:
        """Whether somebody cleaned up not longer ago. No lock needed."""
        with suppress(OSError):
            return 0 <= time.time() - os.stat(self._cleaned).st_mtime < within_s
        return False

    def note_cleaned(self) -> None:
        """See was_cleaned(). No lock needed."""
        with suppress(OSError):  # then the next one cleans, too
            durable.write_file(self._cleaned, b"", is_lasting=False)

    def _read_allocations(self) -> Allocations:
        return Allocations.from_json(durable.read_json(self._allocations, allocators.VERSION))

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.sandboxes)
        except OSError as error:
            raise durable.failure("read", self.sandboxes, error) from error

    def leftovers(self) -> list[str]:
        """Return what is half made or half removed, by name. No lock needed."""
        return [name for name in self._entries() if name.startswith((_NEW, _REMOVED))]


def _mark(path: str) -> _Mark:
    """Raises FileNotFoundError."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise durable.failure("read", path, error) from error
    return status.st_ino, status.st_mtime_ns, status.st_size


def warn(message: str) -> None:
    """Log a warning: on standard error, where nobody has it go elsewhere."""
    import logging  # its import costs more than most commands do

    logging.getLogger(__name__).warning("%s", message)
