"""The guarded hosts of one sandbox: which connections are looked at, and who looks at them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from voidbox.errors import ConfigError
from voidbox.net.rules import fold_name
from voidbox.secrets.audit import AuditLog
from voidbox.secrets.authority import Authority, client_contexts, server_contexts
from voidbox.secrets.connection import PLAIN_PORT, Connection, Contexts
from voidbox.secrets.hello import HelloReader
from voidbox.secrets.http_rules import HttpRules
from voidbox.secrets.judge import Rules
from voidbox.secrets.spec import Kept, Place
from voidbox.secrets.vault import Vault

CONNECTIONS_MAX = 256
ADDRESSES_MAX = 4096


def places_of(kept: Iterable[Kept], http: Iterable[str]) -> list[Place]:
    """Return the guarded places: those of secrets, and those of rules for HTTP.

    Raises:
        ConfigError: a rule is none.
    """
    found = [place for secret in kept for place in secret.places]
    found += [rule.place for rule in HttpRules(http).rules]
    return list(dict.fromkeys(found))


class Guard:
    """Thread: any.

    Made before the keeper shuts itself in: it reads the host's certificates.

    Args:
        kept: the record's secrets.
        values: theirs, by name.
        http: rules, see http_rules.
        folder: where the audit log is written; None for nowhere.
        sandbox: its name, for the log.
        say: takes a line for the sandbox's log.
        clients: what hosts are talked to with; None for the host's own trust.
    Raises:
        ConfigError: a rule or a value is wrong.
    """

    def __init__(
        self,
        kept: Sequence[Kept],
        values: Mapping[str, str],
        http: Sequence[str],
        authority: Authority,
        folder: str | None,
        sandbox: str,
        say: Callable[[str], None],
        clients: Mapping[str, Any] | None = None,
    ) -> None:
        self.vault = Vault(kept, values)
        rules = HttpRules(http)
        self._log = say
        self._rules = Rules(self.vault, rules, AuditLog(folder, sandbox), self._say)
        self._places = frozenset(places_of(kept, http))
        self._hosts = {place.host for place in self._places}
        self._ports = {place.port for place in self._places}
        self._looks_everywhere = bool(rules.rules)
        servers = {host: server_contexts(authority, host) for host in self._hosts}
        hellos = server_contexts(authority, next(iter(self._hosts), "localhost"))["any"]
        self._contexts = Contexts(servers, clients or client_contexts(), HelloReader(hellos))
        self._lock = threading.Lock()
        self._addresses: dict[int, None] = {}  # never forgotten: a guest may remember them for long
        self._count = 0

    def _say(self, text: str) -> None:
        self._log(self.vault.hide(text))

    # Which connections.

    def is_host(self, name: str) -> bool:
        """Whether a name is a guarded host's."""
        return fold_name(name) in self._hosts

    def note(self, name: str, addresses: Iterable[int]) -> None:
        """Take what a name was answered with."""
        if self.is_host(name):
            with self._lock:
                for address in addresses:
                    if len(self._addresses) < ADDRESSES_MAX:
                        self._addresses[address] = None

    def takes(self, address: int, port: int) -> bool:
        """Whether a TCP connection is to be looked at.

        With rules for HTTP all on a guarded port are: a guest may know more of a host's addresses.
        """
        if port in self._ports and self._looks_everywhere:
            return True
        return (port in self._ports or port == PLAIN_PORT) and address in self._addresses

    def refuses_datagrams(self, address: int, port: int) -> bool:
        """Whether UDP does not pass: HTTP/3 would be a way around."""
        return port in self._ports and address in self._addresses

    # Connections.

    def serve(self, guest: socket.socket, far: socket.socket, port: int) -> None:
        """Look after a connection, whose sockets are the guard's from here on. Never blocks.

        Args: see Connection.
        """
        with self._lock:
            is_full = self._count >= CONNECTIONS_MAX
            self._count += not is_full
        if is_full:
            self._say(f"a guarded host has {CONNECTIONS_MAX} connections already: one is refused")
            guest.close()
            far.close()
            return
        connection = Connection(
            self._rules, self._contexts, guest, far, port, self._places.__contains__
        )
        thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._leave()
            guest.close()
            far.close()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        except Exception as error:  # a fault of ours: of one connection alone
            self._say(f"a guarded connection failed: {type(error).__name__}")
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._count -= 1

    def connections(self) -> int:
        """Return how many there are."""
        with self._lock:
            return self._count


def check_open(places: Iterable[Place], net: Mapping[str, Any] | None) -> None:
    """Check that the network's rules let guarded hosts be reached.

    Args:
        net: a record's; None for no network.
    Raises:
        ConfigError: one is closed.
    """
    from voidbox.net.dns import GATEWAY_NAMES
    from voidbox.net.policy import Policy

    if net is None:
        raise ConfigError("secrets and rules for HTTP are for a network, and this sandbox has none")
    policy = Policy(net.get("allow", ()), net.get("deny", ()))
    for place in places:
        if place.host in GATEWAY_NAMES:
            if place.port not in net.get("allow_host_ports", ()):
                raise ConfigError(
                    f"{place} is this host, and closed by the network's rules: allow its port "
                    f"{place.port} (--allow-host {place.port}, allow_host_ports=[{place.port}])"
                )
            continue
        verdict = policy.check_name(place.host)
        if not verdict.allowed:
            raise ConfigError(
                f"{place} is closed by the network's rules ({verdict.rule}): allow it"
            )
