"""What is kept of a snapshot beside its machine: snapshot.json in its folder."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.names import is_id, is_name
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.storage import durable
from voidbox.storage.durable import Corrupted

VERSION = 1
FILE, SECRET = "snapshot.json", "secret"
# What somebody asked for; what fork() makes and takes away; what create() restores; a sandbox.
SNAPSHOT, FORK, TEMPLATE, SUSPENDED = KINDS = "snapshot", "fork", "template", "suspended"
# What is said to who wants a snapshot while another is being made, a template say.
BUSY = "a snapshot of this sandbox is being made"


class SnapshotRecord(NamedTuple):
    """A snapshot. Nothing of it ever changes.

    Attributes:
        id: 12 hexadecimal digits; of a template what it is found by.
        name: "" for one without.
        kind: see KINDS.
        created_at: seconds since 1970.
        parent: the ID of the snapshot that its sandbox was restored from; "" for none.
        files: what it rests on; see rests_on.
        voidbox: the version that made it.
        sandbox: the record of its sandbox at that moment.
    """

    id: str
    name: str
    kind: str
    created_at: float
    parent: str
    files: dict[str, str]
    voidbox: str
    sandbox: SandboxRecord

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the snapshot {self.name or self.id}" if self.kind == SNAPSHOT else f"a {self.kind}"

    def encode(self) -> bytes:
        """Return the file's content.

        Raises:
            ConfigError: a value has no place in it.
        """
        values = {"version": VERSION, **self._asdict(), "sandbox": self.sandbox.to_json()}
        try:
            return json.dumps(values, indent=1, allow_nan=False).encode()
        except ValueError as error:
            raise ConfigError(f"cannot keep this: {error}") from error


def load(folder: str) -> SnapshotRecord:
    """Return the record of a snapshot's folder.

    Raises:
        FileNotFoundError: it has none.
        Corrupted: it is none.
        ConfigError: a newer voidbox wrote it.
        HostError: it cannot be read.
    """
    return _parse(durable.read_json(f"{folder}/{FILE}", VERSION))


def read_secret(folder: str) -> bytes:
    """Return what the agent in a snapshot wants to see.

    It is sent to the guest: of one that is suspended, the folder is its machine's process's own,
    where a link may lead to any file of the user's.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with open(f"{folder}/{SECRET}", "rb", opener=_open_no_link) as file:
            return file.read(1 << 10)
    except OSError as error:
        raise ConfigError(f"{folder}/{SECRET} cannot be read: {error.strerror}") from error


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _parse(values: dict[str, Any]) -> SnapshotRecord:
    sandbox, files = values.get("sandbox"), values.get("files")
    texts = [values.get(name) for name in ("id", "name", "kind", "parent", "voidbox")]
    created_at = values.get("created_at")
    if not isinstance(sandbox, dict) or not isinstance(files, dict):
        raise Corrupted("it describes no sandbox")
    if not all(isinstance(text, str) for text in (*texts, *files, *files.values())):
        raise Corrupted("a text of it is none")
    if type(created_at) not in (int, float) or not math.isfinite(created_at):  # type: ignore[arg-type]
        raise Corrupted("its time is wrong")
    id, name, kind, parent, voidbox = map(str, texts)
    if not is_id(id) or (name and not is_name(name)) or kind not in KINDS:
        raise Corrupted("its name, its ID or its kind is wrong")
    found = SandboxRecord.from_json(sandbox)
    return SnapshotRecord(id, name, kind, float(created_at or 0), parent, files, voidbox, found)
