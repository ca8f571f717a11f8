"""What is done after processes that were killed: their sandboxes say so, and their leftovers go."""

from __future__ import annotations

import os
import time

from voidbox.errors import HostError
from voidbox.sandbox.log_file import read_tail
from voidbox.sandbox.state.lifecycle import Event, State, step
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.state_folder import CONSOLE, SUSPENDED, StateFolder, warn

_TAIL_BYTES = 8 << 10  # of the console, for the record


def clean(folder: StateFolder) -> list[SandboxRecord]:
    """Clean up a state folder; see Store.clean. It is locked only if there is something to do."""
    found, unreadable = folder.scan()
    if not (unreadable or folder.has_leftovers(found) or any(_is_stale(folder, r) for r in found)):
        return []
    crashed = []
    with folder.lock():
        for record in folder.tidy():
            if not _is_stale(folder, record):
                continue
            try:
                if record.state.has_process:
                    record = _bury(folder, record)
                    if record.state.is_final:
                        crashed.append(record)
                folder.remove_sockets(record.id)
                if record.state.is_final:
                    folder.forget_secrets(record.id)
                    folder.remove_half_made(record.id)
                if record.removes_itself:
                    folder.remove_folder(record.id)
            except HostError as error:  # a full disk must not keep the rest from being used
                warn(f"cannot clean up after {record.name}: {error}")
        try:
            folder.correct_allocations()
        except HostError as error:
            warn(f"what is free will be known later: {error}")
    return crashed


def _is_stale(folder: StateFolder, record: SandboxRecord) -> bool:
    """Whether a record, or what is beside it, says that a process lives which does not."""
    return not folder.is_alive(record.id) and (
        record.state.has_process or record.removes_itself or bool(folder.socket_names(record.id))
    )


def _bury(folder: StateFolder, record: SandboxRecord) -> SandboxRecord:
    """Say that it has crashed; one that was just being woken still lies on the disk, whole."""
    reason = "its process was killed"
    if record.state is State.CREATING and os.path.isdir(folder.file(record.id, SUSPENDED)):
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
