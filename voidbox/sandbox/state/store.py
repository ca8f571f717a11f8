"""The sandboxes of a user, on the disk: made, found, changed and removed by any process of theirs.

A record is true as long as its process lives; one whose process is gone says so after clean(). See
state_folder for what is where.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.sandbox.state import cleaning, names
from voidbox.sandbox.state.lifecycle import Event, State, step
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import (
    ALIVE,
    SECRET,
    SECRET_ENVS,
    SOCKETS,
    SUSPENDED,
    VSOCK,
    StateFolder,
)
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted
from voidbox.storage.locking import Hold

__all__ = ["Event", "SandboxRecord", "State", "Store"]

_SOCKET_PATH_BYTES_MAX = 107  # sun_path of <linux/un.h>, less its NUL
_VSOCK_SUFFIX_BYTES = len("_65535")  # of the sockets of guest-initiated connections
_CLEAN_S = 1.0
_FIXED = frozenset({"id", "name", "state", "created_at", "cid", "ports"})

_Records = list[SandboxRecord]  # where "list" is the method


class Store:
    """A state folder. Thread: any; processes: any number.

    Args:
        folder: made if it does not exist; None for $VOIDBOX_STATE, else the user's own.
        is_known: whoever started this process has opened it, and so it is no newer voidbox's.

    Raises:
        ConfigError: it cannot be made, belongs to somebody else, or is a newer voidbox's.

    Attributes:
        folder: its absolute path.
    """

    def __init__(self, folder: str | None = None, is_known: bool = False) -> None:
        self._state = StateFolder(folder, is_known)
        self.folder = self._state.path
        self._holds: dict[str, Hold] = {}  # of sandboxes that live through us
        self._known: dict[str, SandboxRecord] = {}  # of those we adopted, as we last wrote it

    def close(self) -> None:
        """Let go of all sandboxes that live through this object. Idempotent."""
        for id in list(self._holds):
            self.release(id)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One sandbox's life.

    def create(
        self, record: SandboxRecord, secret_envs: Mapping[str, str] | None = None
    ) -> SandboxRecord:
        """Make a sandbox's folder and return its record, which has an ID, a CID and a name now.

        It counts as alive from here on: until release(), or the end of this process. By then its
        own process must have adopted it.

        Args:
            secret_envs: the values of those that the record has the names of.

        Raises:
            ConfigError: the name is no name, or is taken.
            HostError: the disk is full, say; nothing is left then.
        """
        if record.name:
            names.check_name(record.name)
        with self._state.lock():
            allocations = self._state.load_allocations()
            other = self._state.holder(allocations, record.name) if record.name else None
            if other is not None:
                raise ConfigError(
                    f"there is a sandbox called {record.name} already, which is "
                    f"{other.state.value}: choose another name, or remove it with "
                    f"voidbox rm {record.name}"
                )
            id = names.new_id()
            record = record._replace(
                id=id,
                name=record.name or names.new_name(allocations.names),
                state=State.CREATING,
                created_at=time.time(),
                started_at=None,
                ended_at=None,
                pid=0,
                cid=allocations.cids.allocate(id),
                ports=(),
                reason="",
                crash="",
            )
            allocations.names[record.name] = id
            record.to_json()  # refuses what cannot be kept
            try:
                self._state.save_allocations(allocations)
                self._holds[id] = self._state.make_folder(record, secret_envs or {})
            except BaseException:
                self._state.abandon(id)
                raise
        return record

    def adopt(self, id: str) -> SandboxRecord:
        """Become the process of a sandbox that was created: alive until release() or our end.

        Raises:
            ConfigError: it is gone, has ended, or has a process already.
        """
        with self._state.lock():
            record = self._load_to_change(id)
            if record.state is not State.CREATING or record.pid:
                raise ConfigError(f"{record.name} has a process already, or has ended")
            hold = Hold(self.path(id, ALIVE))
            try:
                record = self._state.save(record._replace(pid=os.getpid()))
            except BaseException:
                hold.close()
                raise
            self.release(id)  # if it was us who made it
            self._holds[id] = hold
            self._known[id] = record
        return record

    def wake(self, id: str) -> SandboxRecord:
        """Have a suspended sandbox be one that is about to start; alive as after create().

        Raises:
            ConfigError: there is no such sandbox, or it is not suspended.
        """
        with self._state.lock():
            record = self._load_to_change(id)
            state = step(record.state, Event.WAKE)
            hold = Hold(self.path(id, ALIVE))
            try:
                record = self._state.save(
                    record._replace(state=state, pid=0, paused_s=0.0, paused_at=None, reason="")
                )
            except BaseException:
                hold.close()
                raise
            self._holds[id] = hold
        return record

    def discard_suspended(self, id: str) -> SandboxRecord:
        """End a suspended sandbox: what it was is gone. Its record and its logs stay.

        Raises:
            ConfigError: there is no such sandbox, or it is not suspended.
        """
        with self._state.lock():  # nobody wakes it meanwhile
            if self._load_to_change(id).state is not State.SUSPENDED:
                raise ConfigError(f"{id} is not suspended")
            reason = "it was ended while it was suspended"
            record = self._change(id, Event.ENDED, {"reason": reason})
        durable.remove_tree(self.path(id, SUSPENDED))
        return record

    def release(self, id: str) -> None:
        """Have a sandbox no longer live through this object. Idempotent."""
        self._known.pop(id, None)
        hold = self._holds.pop(id, None)
        if hold is not None:
            hold.close()

    def update(self, id: str, event: Event | None = None, **changes: object) -> SandboxRecord:
        """Change a sandbox's record; return it as it is now.

        The state follows from the event alone. BOOTED sets started_at; ENDED and FAILED set
        ended_at and free its CID and its ports, so its machine must be gone by then.

        Raises:
            ConfigError: there is no such sandbox, or the event cannot happen in its state.
            HostError: it cannot be written; the old record stays.
        """
        wrong = changes.keys() & _FIXED
        if wrong:
            raise TypeError(f"update() cannot change {', '.join(sorted(wrong))}")
        with self._state.lock():
            return self._change(id, event, changes)

    def _change(self, id: str, event: Event | None, changes: dict[str, object]) -> SandboxRecord:
        """See update(). Lock: held."""
        record = self._load_to_change(id)
        if event is not None:
            changes["state"] = step(record.state, event)
            if event is Event.BOOTED:
                changes.setdefault("started_at", time.time())
            if event in (Event.ENDED, Event.FAILED):
                changes.setdefault("ended_at", time.time())
                changes["ports"] = ()
        record = self._save(record._replace(**changes))  # type: ignore[arg-type]
        if record.state.is_final:
            self._state.free(id)
        return record

    def rename(self, id: str, name: str) -> SandboxRecord:
        """Give a sandbox another name; return its record.

        Raises:
            ConfigError: the name is no name, or is taken.
        """
        names.check_name(name)
        with self._state.lock():
            old = self._load_to_change(id)
            allocations = self._state.load_allocations()
            other = self._state.holder(allocations, name)
            if other is not None and other.id != id:
                raise ConfigError(f"there is a sandbox called {name} already")
            # The index has both meanwhile: whatever is killed in between, neither is free.
            allocations.names[name] = id
            self._state.save_allocations(allocations)
            record = self._save(old._replace(name=name))
            if old.name != name:
                allocations.names.pop(old.name, None)
                self._state.save_allocations(allocations)
        return record

    def remove(self, id: str) -> None:
        """Delete a sandbox that nobody but this object keeps alive, with its logs.

        Raises:
            ConfigError: there is no such sandbox, or it lives.
        """
        with self._state.lock():
            self.path(id)  # refuses what is no ID
            if not self._state.exists(id):
                raise _unknown(id)
            hold = self._holds.get(id)
            if hold.is_shared() if hold is not None else self.is_alive(id):
                with suppress(VoidboxError, FileNotFoundError):
                    id = self._state.load(id).name
                raise ConfigError(f"{id} is alive: stop it first, with voidbox stop {id}")
            self._state.remove_folder(id)
            self.release(id)

    # Finding.

    def peek(self, id: str) -> SandboxRecord:
        """As read() of an ID, for who asks at each request: the file is read if it has changed."""
        try:
            return self._state.peek(id)
        except (FileNotFoundError, Corrupted, HostError):
            return self.read(id)

    def read(self, key: str) -> SandboxRecord:
        """Return the record of an ID, of a name, or of an ID's beginning (4 digits or more).

        Raises:
            ConfigError: there is none, or several IDs begin like this.
        """
        if names.is_id(key):
            try:
                return self._state.load(key)
            except (FileNotFoundError, Corrupted):
                pass  # list() sets the latter aside
        elif not names.is_name(key):
            raise _unknown(key)
        else:
            with suppress(FileNotFoundError, Corrupted, ConfigError):
                record = self._state.load(self._state.find_name(key) or "")
                if record.name == key:
                    return record
        found = self.list()  # the index may be wrong
        for record in found:
            if key in (record.name, record.id):
                return record
        matching = [record for record in found if record.id.startswith(key)]
        if not names.is_id_prefix(key) or not matching:
            raise _unknown(key)
        if len(matching) > 1:
            several = ", ".join(f"{record.id} ({record.name})" for record in matching)
            raise ConfigError(f"the IDs of several sandboxes begin with {key}: {several}")
        return matching[0]

    def list(self) -> _Records:
        """Return all records, oldest first. What cannot be read is set aside, and said in the log.

        If it lives, its process is asked, and the record made anew.

        Raises:
            ConfigError: a newer voidbox wrote one of them.
        """
        found, unreadable = self._state.scan()
        if unreadable:
            with self._state.lock():
                return self._state.tidy()
        return found

    def path(self, id: str, file: str = "") -> str:
        """Return the path of a file in a sandbox's folder, or of the folder.

        Raises:
            ConfigError: it is the path of a socket, and longer than Linux has them.
        """
        if not names.is_id(id):
            raise _unknown(id)
        path = self._state.file(id, file).rstrip("/")
        if file in SOCKETS:
            suffix_bytes = _VSOCK_SUFFIX_BYTES if file == VSOCK else 0
            size = len(os.fsencode(path)) + suffix_bytes
            if size > _SOCKET_PATH_BYTES_MAX:
                raise ConfigError(
                    f"{self.folder} is {size - _SOCKET_PATH_BYTES_MAX} bytes too long a path for "
                    "sockets in it: name a shorter one with VOIDBOX_STATE"
                )
        return path

    def secret(self, id: str) -> bytes:
        """Return what the guest's agent wants to see.

        Raises:
            ConfigError: there is no such sandbox.
        """
        try:
            with open(self.path(id, SECRET), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise _unknown(id) from None
        except OSError as error:
            raise durable.failure("read", self.path(id, SECRET), error) from error

    def envs(self, record: SandboxRecord) -> dict[str, str]:
        """Return the variables of a sandbox's commands, the secret ones too.

        Raises:
            ConfigError: there is no such sandbox.
            HostError: they cannot be read.
        """
        path = self.path(record.id, SECRET_ENVS)
        try:
            with open(path, "rb") as file:
                found = dict(json.loads(file.read()))
        except FileNotFoundError:  # it has none, or has ended
            return dict(record.envs)
        except OSError as error:
            raise durable.failure("read", path, error) from error
        except (ValueError, TypeError) as error:
            raise HostError(f"{path} is damaged: make the sandbox again") from error
        return {**record.envs, **found}

    def is_alive(self, id: str) -> bool:
        """Whether a process keeps the sandbox alive: its own, or for now the one that made it."""
        self.path(id)  # refuses what is no ID
        return self._state.is_alive(id)

    def open_owner(self, id: str) -> int | None:
        """Return a pidfd of a sandbox's process, for the caller to close; None if it is gone.

        It gets readable when the process ends, and signals sent to it reach nobody else.
        """
        self.path(id)  # refuses what is no ID
        try:
            pid = self._read_again(id).pid
            fd = os.pidfd_open(pid) if pid else -1
        except (FileNotFoundError, Corrupted, ProcessLookupError):
            return None
        except OSError as error:
            raise HostError.from_errno("pidfd_open", error.errno or 0) from error
        if fd >= 0 and not self.is_alive(id):  # the number may be somebody else's by now
            os.close(fd)
            fd = -1
        return fd if fd >= 0 else None

    def known(self, id: str) -> SandboxRecord | None:
        """Return the record of a sandbox whose process this is, as it was last written here."""
        return self._known.get(id)

    # Ports of the host.

    def allocate_port(self, id: str) -> int:
        """Return a port that is the sandbox's until it ends or gives it back.

        Of 9000 to 9999, or where all of these are taken, of those after them.
        Another program may use it all the same: whoever cannot bind it asks for the next one, and
        gives this one back after.

        Raises:
            ConfigError: all are taken, or there is no such sandbox, or it has ended.
        """
        with self._state.lock():
            record = self._load_to_change(id)
            if record.state.is_final:
                raise ConfigError(f"{record.name} is {record.state.value}")
            allocations = self._state.load_allocations()
            port = allocations.ports.allocate(id)
            self._state.save_allocations(allocations)
            self._save(record._replace(ports=(*record.ports, port)))
        return port

    def release_port(self, id: str, port: int) -> None:
        """Give a port back; one that is not the sandbox's is left alone."""
        with self._state.lock():
            record = self._load_to_change(id)
            if port in record.ports:
                kept = tuple(its for its in record.ports if its != port)
                self._save(record._replace(ports=kept))
            allocations = self._state.load_allocations()
            if allocations.ports.taken.get(port) == id:
                allocations.ports.release(port)
                self._state.save_allocations(allocations)

    # Cleaning.

    def clean(self) -> _Records:
        """Clean up after processes that were killed; return the sandboxes that have crashed so.

        Every command begins with it. What is alive is never touched.

        Raises:
            ConfigError: a newer voidbox wrote something here.
        """
        return cleaning.clean(self._state)

    def clean_at_times(self) -> None:
        """As clean(), but once a second at most, whoever did it: for who starts many.

        Raises:
            ConfigError: see clean().
        """
        if not self._state.was_cleaned(_CLEAN_S):
            self.clean()

    def _read_again(self, id: str) -> SandboxRecord:
        """Return a record, by what its process knows if need be. Raises as StateFolder.load."""
        try:
            return self._state.load(id)
        except (FileNotFoundError, Corrupted):
            if not self._state.is_alive(id):
                raise
        self.list()
        return self._state.load(id)

    def _load_to_change(self, id: str) -> SandboxRecord:
        """Return a record; ours as we knew it, if its file has suffered meanwhile. Lock: held."""
        self.path(id)  # refuses what is no ID
        try:
            return self._state.load(id)
        except (FileNotFoundError, Corrupted):
            self._state.set_aside(id, self._known.get(id))
        try:
            return self._state.load(id)
        except (FileNotFoundError, Corrupted):
            pass
        known = self._known.get(id)
        if known is None or not self._state.exists(id):
            raise _unknown(id)
        return known

    def _save(self, record: SandboxRecord) -> SandboxRecord:
        """Replace a record; remember it, if it is of ours. Lock: held."""
        self._state.save(record)
        if record.id in self._known:
            self._known[record.id] = record
        return record


def _unknown(key: str) -> ConfigError:
    shown = key if names.is_name(key) or names.is_id(key) else repr(key)
    return ConfigError(f"no sandbox {shown}: voidbox ps -a lists them")
