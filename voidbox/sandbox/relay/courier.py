"""Carries messages from one sandbox to others of its team, and says what became of each."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from voidbox.errors import VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.relay.protocol import (
    NO_ANSWER,
    NOT_RUNNING,
    OTHER_TEAM,
    OUTCOMES,
    UNKNOWN,
)

PEERS_MAX = 256
BROADCAST_S = 20.0  # after which who was not reached yet is not tried
# What a sandbox may be called: nothing else from a guest is looked up.
_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"

Deliver = Callable[[str, str, str], str]  # (to, from, text) → outcome


class CourierError(Exception):
    """What was asked for cannot be done; one line for who asked."""


class Peer(NamedTuple):
    """A sandbox, and what decides whether it may be written to.

    Attributes:
        id: by which whoever found it finds it again.
    """

    name: str
    team: str | None
    is_running: bool
    id: str = ""


def deliver_within(
    team: str | None,
    find_peer: Callable[[str], Peer | None],
    hand_over: Callable[[Peer, str, str], str],
) -> Deliver:
    """Return a `deliver` that reaches running sandboxes of one team and refuses all others.

    Args:
        find_peer: returns the sandbox of exactly this name.
        hand_over: (peer, from, text): asks the peer's owner; returns the outcome.
    """

    def deliver(to: str, from_name: str, text: str) -> str:
        peer = find_peer(to)
        if peer is None:
            return UNKNOWN
        if team is None or peer.team != team:
            return OTHER_TEAM
        return hand_over(peer, from_name, text) if peer.is_running else NOT_RUNNING

    return deliver


class Courier:
    """Thread: any; it blocks for as long as `deliver` and `peers` do.

    Args:
        team: the sandbox's; None: it can write to nobody.
        own_name: asked each time, for a sandbox may be renamed.
        peers: the names of the team's running sandboxes, with or without the own.
        deliver: a VoidboxError or OSError of it means that nobody answered.
    """

    def __init__(
        self,
        team: str | None,
        own_name: Callable[[], str],
        peers: Callable[[], list[str]],
        deliver: Deliver,
    ) -> None:
        self._team = team
        self._own_name = own_name
        self._peers = peers
        self._deliver = deliver

    def send(self, to: str, text: str) -> str:
        """Carry a message; returns its outcome."""
        self._check_team()
        return self._carry(to, self._own_name(), text) if re.fullmatch(_NAME, to) else UNKNOWN

    def broadcast(self, text: str) -> dict[str, str]:
        """Carry a message to everybody else; returns the outcomes by name."""
        own_name, names = self.peers()
        if len(names) > PEERS_MAX:
            raise CourierError(f"{len(names)} peers: a broadcast reaches {PEERS_MAX} at most")
        deadline = time.monotonic() + BROADCAST_S
        return {
            name: self._carry(name, own_name, text) if time.monotonic() < deadline else NO_ANSWER
            for name in names
        }

    def peers(self) -> tuple[str, list[str]]:
        """Return the own name and those of the others, sorted."""
        self._check_team()
        own_name = self._own_name()
        return own_name, sorted(set(self._peers()) - {own_name})

    def _check_team(self) -> None:
        if self._team is None:
            raise CourierError("this sandbox is in no team")

    def _carry(self, to: str, from_name: str, text: str) -> str:
        try:
            outcome = self._deliver(to, from_name, text)
        except (VoidboxError, OSError):
            return NO_ANSWER
        return outcome if outcome in OUTCOMES else NO_ANSWER
