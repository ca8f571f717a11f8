"""The ports of a sandbox that the host offers."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from voidbox.errors import ConfigError, HostError
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker.machine import WorkerMachine

if TYPE_CHECKING:  # a sandbox without a network starts sooner
    from voidbox.nat.forwards import Forward


def check_free(forwards: Sequence[Forward]) -> None:
    """See that the host's ports can be had that somebody has chosen.

    Raises:
        HostError: one is taken, or not ours to take.
    """
    chosen = [forward for forward in forwards if forward.host_port]
    if chosen:
        from voidbox.nat import forwards as nat

        for forward in chosen:
            nat.check_free(forward)


class PublishedPorts:
    """Thread: any.

    Who asks for the host's port 0 gets one of the store's, which no other sandbox has: the same
    numbers, so that a firewall or a bookmark can rely on them.

    Args:
        machine: returns the sandbox's.
    """

    def __init__(self, store: Store, id: str, machine: Callable[[], WorkerMachine]) -> None:
        self._store = store
        self._id = id
        self._machine = machine

    def add(self, wanted: Forward) -> Forward:
        """Publish a port; return it with the host's port that it got.

        Raises:
            ConfigError: there is no network, or all of the store's ports are taken.
            HostError: the host's port is taken, or not ours to take.
        """
        machine = self._machine()
        if machine.config.net is None:
            raise ConfigError("the sandbox has no network, so no ports to publish")
        if wanted.host_port:
            return machine.publish(wanted)
        taken: list[int] = []  # by other programs; kept for now, so as not to get them again
        try:
            while True:
                port = self._store.allocate_port(self._id)
                taken.append(port)
                forward = wanted._replace(host_port=port)
                try:
                    added = machine.publish(forward)
                except HostError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                else:
                    taken.remove(port)
                    return added
        finally:
            for port in taken:
                self._store.release_port(self._id, port)

    def remove(self, forward: Forward) -> bool:
        """Publish it no longer; False if it was not."""
        is_gone = self._machine().unpublish(forward)
        if is_gone:
            self._store.release_port(self._id, forward.host_port)
        return is_gone

    def list(self) -> list[Forward]:
        """Return what is published."""
        return self._machine().published()
