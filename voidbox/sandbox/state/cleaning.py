"""What is done after processes that were killed: their sandboxes say so, and their leftovers go."""

from __future__ import annotations

import os
import time

from voidbox.errors import HostError, VoidboxError
from voidbox.sandbox.log_file import read_tail
from voidbox.sandbox.state.lifecycle import Event, State, step
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import CONSOLE, SUSPENDED, StateFolder, warn
from voidbox.storage.durable import Corrupted

_TAIL_BYTES = 8 << 10  # of the console, for the record


def clean(folder: StateFolder) -> list[SandboxRecord]:
    """Clean up a state folder; see Store.clean. It is locked only if there is something to do.

    Of what lives nothing is read, and of the rest what has changed: it costs some 20 µs a sandbox.
    """
    ids = folder.ids()
    living = {id for id in ids if folder.is_alive(id)}
    suspects = [id for id in ids if id not in living and _is_suspect(folder, id)]
    is_index_wrong = folder.is_index_wrong(ids, living)
    folder.note_cleaned()
    if not (suspects or is_index_wrong or folder.leftovers()):
        return []
    crashed: list[SandboxRecord] = []
    with folder.lock():
        folder.remove_leftovers()
        for id in suspects:
            record = _load(folder, id)
            if record is not None and _is_stale(folder, record):
                _clean_one(folder, record, crashed)
        if is_index_wrong:
            try:
                folder.correct_allocations()
            except HostError as error:
                warn(f"what is free will be known later: {error}")
    return crashed


def _is_suspect(folder: StateFolder, id: str) -> bool:
    """Whether something of a sandbox that does not live may have to be cleaned up."""
    try:
        return _is_stale(folder, folder.peek(id))
    except (FileNotFoundError, Corrupted):
        return True


def _load(folder: StateFolder, id: str) -> SandboxRecord | None:
    """Return a record; None for one that was gone, or is set aside. Lock: held."""
    try:
        return folder.load(id)
    except (FileNotFoundError, Corrupted):
        folder.set_aside(id)
    return None


def _clean_one(folder: StateFolder, record: SandboxRecord, crashed: list[SandboxRecord]) -> None:
    """Clean up behind one whose process is gone. Lock: held."""
    try:
        if record.state.has_process:
            record = _bury(folder, record)
            if record.state.is_final:
                crashed.append(record)
        folder.remove_sockets(record.id)
        is_stillborn = record.is_pooled and not record.pid  # its program died as it made it
        if record.removes_itself or is_stillborn:
            folder.remove_folder(record.id)
        elif record.state.is_final:
            folder.free(record.id)
            folder.remove_half_made(record.id)
    except HostError as error:  # a full disk must not keep the rest from being used
        warn(f"cannot clean up after {record.name}: {error}")


def _is_stale(folder: StateFolder, record: SandboxRecord) -> bool:
    """Whether a record, or what is beside it, says that a process lives which does not."""
    return not folder.is_alive(record.id) and (
        record.state.has_process or record.removes_itself or bool(folder.socket_names(record.id))
    )


def _bury(folder: StateFolder, record: SandboxRecord) -> SandboxRecord:
    """Say that it has crashed, or is suspended, if all of it lies on the disk."""
    reason = "its process was killed"
    if _is_on_disk(folder, record):
        return folder.save(record._replace(state=step(record.state, Event.SUSPEND), pid=0))
    tail = read_tail(folder.file(record.id, CONSOLE), _TAIL_BYTES)
    return folder.save(
        record._replace(
            state=step(record.state, Event.FAILED),
            ended_at=time.time(),
            ports=(),
            reason=reason,
            crash=f"{reason}\nthe console's last lines:\n{tail}" if tail else reason,
        )
    )


def _is_on_disk(folder: StateFolder, record: SandboxRecord) -> bool:
    """Whether it was just being woken, or suspended and its process could not say so any more."""
    path = folder.file(record.id, SUSPENDED)
    if record.state is State.STOPPING or not os.path.isdir(path):
        return False
    if record.state is State.CREATING:
        return True
    from voidbox.sandbox.snapshots.record import load  # hardly a command needs it

    try:
        saved = load(path).sandbox
    except (FileNotFoundError, VoidboxError):
        return False
    # One that was woken since is another process's, and began at another time.
    moments = [(one.pid, one.started_at, one.ran_s) for one in (saved, record)]
    return moments[0] == moments[1]
