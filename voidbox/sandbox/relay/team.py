"""The relay of one sandbox among its user's."""

from __future__ import annotations

import logging

from voidbox.sandbox.relay import server as relay
from voidbox.sandbox.relay.courier import Courier
from voidbox.sandbox.relay.mailbox import Mailbox
from voidbox.sandbox.relay.mates import Mates
from voidbox.sandbox.relay.protocol import RELAY_PORT
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

log = logging.getLogger(__name__)


class TeamRelay:
    """A sandbox's mailbox, and what its guest's programs reach others by. Thread: any.

    Args:
        record: the sandbox's. Its guest gets the relay with vsock "unix" alone: the other kinds
            have no socket of this sandbox's own to listen on.
    """

    def __init__(self, store: Store, record: SandboxRecord) -> None:
        mates = Mates(store, record.team)
        self._mailbox = Mailbox()
        self._server: relay.RelayServer | None = None
        if record.vsock == "unix":
            courier = Courier(
                record.team, lambda: store.read(record.id).name, mates.names, mates.deliver
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
