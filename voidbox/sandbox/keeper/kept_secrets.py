"""A sandbox's secrets at the keeper's end: the guard, its authority, and who may give it values.

The authority is made at the sandbox's first start, and kept in its folder and its snapshots: all
that goes on from one has programs that have read its certificate. It is worth nothing to anybody
but this guest, see voidbox.secrets.authority. Values are in this process's memory alone.
"""

from __future__ import annotations

import json
import logging
import ssl
from typing import TYPE_CHECKING, Any

from voidbox.errors import ConfigError
from voidbox.sandbox.guarding import FILE, SOCKET
from voidbox.sandbox.keeper.trust import BUNDLE_BYTES_MAX, BUNDLES
from voidbox.sandbox.process.control_server import Answer, ControlServer
from voidbox.secrets.authority import Authority, make_authority, subject_hash
from voidbox.secrets.guard import Guard
from voidbox.secrets.guarded import Guarded
from voidbox.storage import durable

if TYPE_CHECKING:
    from voidbox.sandbox.state.records import SandboxRecord
    from voidbox.sandbox.state.store import Store

_BYTES_MAX = 8 << 20

log = logging.getLogger(__name__)


class KeptSecrets:
    """Made before the keeper shuts itself in. Thread: any.

    Raises:
        ConfigError: the record makes no sense, or what is needed is not installed.
        HostError: the authority cannot be kept, or the socket not be made.

    Attributes:
        guard: looks at the guest's connections.
    """

    def __init__(self, store: Store, record: SandboxRecord) -> None:
        self._guarded = Guarded.from_json(record.guarded or {})
        folder = store.path(record.id)
        authority = _find(folder) or _of_snapshot(store, record)
        if authority is None:
            authority = make_authority(place.host for place in self._guarded.places())
        values = {
            **authority.to_json(),
            "subject_hash": subject_hash(authority.certificate),
            "bundle": _host_bundle().decode("utf-8", "replace"),
        }
        durable.write_file(f"{folder}/{FILE}", json.dumps(values).encode())
        self.guard = Guard(
            self._guarded.secrets, {}, self._guarded.http, authority, folder, record.name,
            lambda line: log.info("%s", line),
        )  # fmt: skip
        self._server = ControlServer(f"{folder}/{SOCKET}", self.handlers())

    def serve(self) -> None:
        """Answer those who have values, or are to have them. Once the process may have threads."""
        self._server.start()

    def handlers(self) -> dict[str, Any]:
        """Return what can be asked: see ControlServer."""
        return {"secret_set": self._set, "secret_list": self._list, "secret_copy": self._copy}

    def _set(self, values: dict[str, object]) -> Answer:
        self.guard.vault.set(str(values.get("name")), values.get("value"))  # type: ignore[arg-type]
        log.info("secret %s has a new value", values.get("name"))
        return {}

    def _list(self, values: dict[str, object]) -> Answer:
        held = {one.name for one in self.guard.vault.all()}
        secrets = [
            {**kept.to_json(), "has_value": kept.name in held} for kept in self._guarded.secrets
        ]
        return {"secrets": secrets}

    def _copy(self, values: dict[str, object]) -> Answer:
        return {"values": self.guard.vault.values()}

    def close(self) -> None:
        """Answer nothing more. Idempotent."""
        self._server.close()


def _of_snapshot(store: Store, record: SandboxRecord) -> Authority | None:
    if not record.snapshot:
        return None
    from voidbox.sandbox.snapshots.shelf import Shelf

    return _find(Shelf(store.folder).find(record.snapshot).folder)


def _find(folder: str) -> Authority | None:
    try:
        with open(f"{folder}/{FILE}", "rb") as file:
            values = json.loads(file.read(_BYTES_MAX))
        return Authority(str(values["certificate"]), str(values["key"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/{FILE} cannot be read: {error}") from error


def _host_bundle() -> bytes:
    """Return what this host trusts, for a guest that has no bundle of its own."""
    for path in (ssl.get_default_verify_paths().cafile, *BUNDLES):
        try:
            if path:
                with open(path, "rb") as file:
                    return file.read(BUNDLE_BYTES_MAX)
        except OSError:
            continue
    return b""
