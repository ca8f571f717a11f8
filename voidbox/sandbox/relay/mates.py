"""The other sandboxes of a team: found in the state folder, and written to by their sockets."""

from __future__ import annotations

from voidbox.sandbox.control import ControlClient
from voidbox.sandbox.relay.courier import Peer, deliver_within
from voidbox.sandbox.relay.protocol import NO_ANSWER
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_HAND_OVER_S = 2.0  # closing the relay waits for it


class Mates:
    """A team, with or without the own sandbox. Thread: any; it blocks."""

    def __init__(self, store: Store, team: str | None) -> None:
        self._store = store
        self._team = team
        self.deliver = deliver_within(team, self._find, self._hand_over)

    def names(self) -> list[str]:
        """Return the names of the team's running sandboxes."""
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
