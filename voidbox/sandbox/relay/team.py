"""The relay of one sandbox among its user's: who the others are, and how they are written to."""

from __future__ import annotations

import logging

from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.relay import server as relay
from voidbox.sandbox.relay.courier import Courier, Peer, deliver_within
from voidbox.sandbox.relay.mailbox import Mailbox
from voidbox.sandbox.relay.protocol import NO_ANSWER, RELAY_PORT
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

log = logging.getLogger(__name__)

_HAND_OVER_S = 2.0  # closing the relay waits for it


class TeamRelay:
    """A sandbox's mailbox, and what its guest's programs reach others by. Thread: any.

    Args:
        record: the sandbox's. Its guest gets the relay with vsock "unix" alone: the other kinds
            have no socket of this sandbox's own to listen on.
    """

    def __init__(self, store: Store, record: SandboxRecord) -> None:
        self._store = store
        self._id = record.id
        self._team = record.team
        self._mailbox = Mailbox()
        self._server: relay.RelayServer | None = None
        if record.vsock == "unix":
            courier = Courier(
                record.team,
                lambda: store.read(record.id).name,
                self._peers,
                deliver_within(record.team, self._find, self._hand_over),
            )
            path = f"{store.path(record.id, 'vsock.sock')}_{RELAY_PORT}"
            self._server = relay.RelayServer(
                path, self._mailbox, courier, lambda line: log.warning("%s", line)
            )

    def start(self) -> None:
        """Serve the guest."""
        if self._server is not None:
            self._server.start()

    def deliver(self, values: dict[str, object]) -> dict[str, object]:
        """Put a message of another sandbox, or of the host, into the mailbox; see operations."""
        return relay.deliver_op(self._mailbox, values)

    def close(self) -> None:
        """End it. Idempotent."""
        self._mailbox.close()
        if self._server is not None:
            self._server.close()

    def _peers(self) -> list[str]:
        return [peer.name for peer in map(self._peer, self._store.list()) if self._is_mate(peer)]

    def _is_mate(self, peer: Peer) -> bool:
        return peer.is_running and self._team is not None and peer.team == self._team

    def _find(self, name: str) -> Peer | None:
        """By its exact name: Store.read() takes an ID, or the start of one, as well."""
        return next((self._peer(r) for r in self._store.list() if r.name == name), None)

    def _peer(self, record: SandboxRecord) -> Peer:
        is_running = record.state is State.RUNNING and self._store.is_alive(record.id)
        return Peer(record.name, record.team, is_running, record.id)

    def _hand_over(self, peer: Peer, from_name: str, text: str) -> str:
        path = self._store.path(peer.id, "control.sock")
        answer = ControlClient(path, _HAND_OVER_S).request(
            "deliver", **{"from": from_name, "text": text}
        )
        outcome = answer.get("outcome")
        return outcome if isinstance(outcome, str) else NO_ANSWER
