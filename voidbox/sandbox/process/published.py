"""The ports of a sandbox that the host offers."""

from __future__ import annotations

import concurrent.futures
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from voidbox.errors import AgentError, ConfigError, HostError
from voidbox.sandbox.state.store import Store
from voidbox.vmm.machine import Machine

if TYPE_CHECKING:  # a sandbox without a network starts sooner
    from voidbox.nat.backend import NatBackend
    from voidbox.nat.forwards import Forward

_LOOP_S = 10.0
_Value = TypeVar("_Value")


class PublishedPorts:
    """Thread: any.

    Who asks for the host's port 0 gets one of the store's, which no other sandbox has: the same
    numbers, so that a firewall or a bookmark can rely on them.

    Args:
        machine: returns the sandbox's; its network is the loop's.
    """

    def __init__(self, store: Store, id: str, machine: Callable[[], Machine]) -> None:
        self._store = store
        self._id = id
        self._machine = machine

    def add(self, wanted: Forward) -> Forward:
        """Publish a port; return it with the host's port that it got.

        Raises:
            ConfigError: there is no network, or all of the store's ports are taken.
            HostError: the host's port is taken, or not ours to take.
        """
        network = self._network()
        if wanted.host_port:
            return self._on_loop(lambda: network.forwards.add(wanted))
        taken: list[int] = []  # by other programs; kept for now, so as not to get them again
        try:
            while True:
                port = self._store.allocate_port(self._id)
                taken.append(port)
                forward = wanted._replace(host_port=port)
                try:
                    added = self._on_loop(lambda: network.forwards.add(forward))  # noqa: B023
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
        network = self._network()
        is_gone = self._on_loop(lambda: network.forwards.remove(forward))
        if is_gone:
            self._store.release_port(self._id, forward.host_port)
        return is_gone

    def list(self) -> list[Forward]:
        """Return what is published."""
        if self._machine().network is None:
            return []
        network = self._network()
        return self._on_loop(network.forwards.list)

    def _network(self) -> NatBackend:
        network = self._machine().network
        if network is None:
            raise ConfigError("the sandbox has no network, so no ports to publish")
        return network

    def _on_loop(self, call: Callable[[], _Value]) -> _Value:
        return on_loop(self._machine(), call)


def on_loop(machine: Machine, call: Callable[[], _Value]) -> _Value:
    """Have the machine's loop call it; return what it returns, raise what it raises.

    Raises:
        AgentError: the loop has ended with the machine.
    """
    future: concurrent.futures.Future[_Value] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # handed to who asked
            future.set_exception(error)

    machine.loop.call_soon(run)
    try:
        return future.result(_LOOP_S)
    except TimeoutError:
        raise AgentError("the sandbox has ended") from None
