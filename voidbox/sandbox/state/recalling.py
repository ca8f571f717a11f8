"""The record of a sandbox that lives, from the one who knows it best: its process."""

from __future__ import annotations

from voidbox.errors import VoidboxError
from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.state.records import SandboxRecord

_ANSWER_S = 2.0  # others wait for the lock meanwhile


def recall(id: str, control_path: str) -> SandboxRecord | None:
    """Ask a sandbox's process for its record; None if it does not tell."""
    try:
        values = ControlClient(control_path, _ANSWER_S).request("info").get("record")
        record = SandboxRecord.from_json(values) if isinstance(values, dict) else None
    except VoidboxError:
        return None
    return record if record is not None and record.id == id else None
