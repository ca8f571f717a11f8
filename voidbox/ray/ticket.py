"""What a node gives to whoever gets one of its sandboxes: all that it takes to use it from afar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sdk.place import StoredPlace


class Ticket(NamedTuple):
    """The way to one sandbox. Whoever has it can do everything with that sandbox, and no other.

    Attributes:
        token: shown to the gateway for this sandbox.
        secret: what the guest's agent wants to see.
        envs: of its commands, the secret ones too.
        shared: the guest's folders that are its node's, by where it has them.
        state_folder: of the node, for programs that run there.
    """

    record: SandboxRecord
    token: str
    secret: bytes
    envs: dict[str, str]
    shared: tuple[str, ...]
    writes_volumes: bool
    state_folder: str

    @classmethod
    def of(cls, place: StoredPlace, record: SandboxRecord, token: str, state_folder: str) -> Ticket:
        """Return the ticket of a sandbox that is here."""
        return cls(
            record,
            token,
            place.secret,
            dict(place.envs),
            tuple(place.shared),
            place.writes_volumes,
            state_folder,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**self._asdict(), "record": self.record.to_json(), "secret": self.secret.hex()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ticket:
        """Return what to_json() described. Our own node says so: it is not looked at twice."""
        return cls(
            SandboxRecord.from_json(values["record"]),
            str(values["token"]),
            bytes.fromhex(values["secret"]),
            dict(values["envs"]),
            tuple(values["shared"]),
            bool(values["writes_volumes"]),
            str(values["state_folder"]),
        )
