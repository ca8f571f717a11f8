"""A guest's network as it is configured: what the stack and the keeper both know of it."""

from __future__ import annotations

import os

from voidbox.named_tuple import NamedTuple
from voidbox.nat.forwards import Forward
from voidbox.nat.outside import Outside
from voidbox.nat.resolv_conf_file import NameServers, read_resolv_conf
from voidbox.net.addresses import NetworkConfig
from voidbox.net.dns import Forwarder
from voidbox.net.policy import Policy


class NatConfig(NamedTuple):
    """A guest's network.

    Attributes:
        allow, deny: rules of what may be reached; see net.policy.
        allow_host_ports: ports of the host's loopback that the gateway's address leads to.
        publish: ports of the guest that the host offers.
        pcap: a file for all frames, or None.
        rate_bytes_s: the most that passes, both directions together; None for no limit.
        resolvers: (address, port) of name servers; None for those of the host's resolv.conf, which
            is read again when it changes, and whose search domains the guest gets too.
        network: the addresses on the line.
        outside: who decides, resolves and makes sockets; None: this process.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    allow_host_ports: tuple[int, ...] = ()
    publish: tuple[Forward, ...] = ()
    pcap: str | None = None
    rate_bytes_s: int | None = None
    resolvers: tuple[tuple[str, int], ...] | None = None
    network: NetworkConfig = NetworkConfig()
    outside: Outside | None = None

    def search(self) -> tuple[str, ...]:
        """Return the domains in which the guest looks for names: those of the host."""
        return read_resolv_conf().search if self.resolvers is None else ()

    def make_policy(self) -> Policy:
        """Return the rules as a policy.

        Raises:
            ConfigError: a rule or an address is wrong.
        """
        self.network.validate()
        return Policy(self.allow, self.deny, self.allow_host_ports, self.network)


def host_servers(config: NatConfig) -> NameServers:
    """Return the name servers: those of the configuration, else the host's own."""
    return NameServers(config.resolvers)


def make_forwarder(policy: Policy, servers: NameServers) -> Forwarder:
    """Return a DNS forwarder, whose identifiers nobody guesses."""
    return Forwarder(policy, len(servers.places), _random_u16, servers.refresh)


def _random_u16() -> int:
    return int.from_bytes(os.urandom(2), "little")
