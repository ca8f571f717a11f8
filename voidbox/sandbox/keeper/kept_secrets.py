"""A sandbox's secrets at the keeper's end: the guard, its authority, and who may give it values.

The authority is made at the sandbox's first start, and kept in its folder and its snapshots: all
that goes on from one has programs that have read its certificate. It is worth nothing to anybody
but this guest, see voidbox.secrets.authority. Values are in this process's memory alone.
"""

from __future__ import annotations

import json
import logging
import ssl
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError
from voidbox.sandbox.guarding import FILE
from voidbox.sandbox.keeper.trust import BUNDLE_BYTES_MAX, BUNDLES, Trusted, install
from voidbox.sandbox.process.control_server import Answer, Handler
from voidbox.secrets.authority import Authority, make_authority, subject_hash
from voidbox.secrets.guard import Guard
from voidbox.secrets.guarded import Guarded
from voidbox.storage import durable

if TYPE_CHECKING:
    from voidbox.agent.client import AgentClient
    from voidbox.sandbox.state.records import SandboxRecord
    from voidbox.sandbox.state.store import Store

_BYTES_MAX = 8 << 20

log = logging.getLogger(__name__)


class KeptSecrets:
    """Made before the keeper shuts itself in. Thread: any.

    Args:
        source_folder: of the snapshot that the sandbox goes on from, or None.
    Raises:
        ConfigError: the record makes no sense, or what is needed is not installed.
        HostError: the authority cannot be kept.

    Attributes:
        guard: looks at the guest's connections.
    """

    def __init__(self, store: Store, record: SandboxRecord, source_folder: str | None) -> None:
        self._guarded = Guarded.from_json(record.guarded or {})
        folder = store.path(record.id)
        authority = _find(folder)
        if authority is None:
            if source_folder is not None:
                authority = _find(source_folder)
            if authority is None:
                authority = make_authority(place.host for place in self._guarded.places())
            durable.write_file(f"{folder}/{FILE}", json.dumps(authority.to_json()).encode())
        self._trusted = Trusted(
            authority.certificate.encode(), subject_hash(authority.certificate), _host_bundle()
        )
        self.guard = Guard(
            self._guarded.secrets, {}, self._guarded.http, authority, folder, record.name,
            lambda line: log.info("%s", line),
        )  # fmt: skip

    def make_trusted(self, client: AgentClient) -> None:
        """Have the guest trust what the guard shows it.

        Raises:
            AgentError: it cannot be made to.
        """
        install(client, self._trusted)

    def handlers(self) -> dict[str, Handler]:
        """Return what the control socket answers, by name."""
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
