"""What a guest may reach. No I/O, no clock.

A guest's packets carry addresses, but people think in names. The DNS forwarder joins the two: it
tells the policy which addresses a name was answered with (it "pins" them), and a rule of names
holds for an address only as long as it is pinned. So a guest that makes up an address gets nowhere
by it when there are allow rules.

The order, in which the first that applies decides:

1. the guest's own network: the gateway's address stands for the host's loopback and is open on the
   ports in `allow_host_ports` alone; the name server's on port 53. No rule changes these. Its other
   addresses do not exist, but for those that an allow rule names, it or a part of this network:
   then they are the host's network's.
2. what is closed whatever the rules say: loopback, link-local and the clouds' metadata services,
   multicast, reserved. Names whose answers lie there (DNS rebinding) do not help.
3. the deny rules,
4. the allow rules; if there are none, the rest is open.

Private networks (RFC 1918) are open like the rest unless a rule says otherwise, for what a sandbox
works with is often there. Where the guest is not trusted with the host's network, deny 10.0.0.0/8,
172.16.0.0/12 and 192.168.0.0/16: with an allowed name alone, its owner chooses the address.

Deny rules of names are for order rather than security. They refuse to resolve the name, but who
knows its address, or another name of it, needs no resolving. To shut something in, allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.net.addresses import NetworkConfig, format_address
from voidbox.net.rules import (
    PORT_MAX,
    Rule,
    fold_name,
    parse_network,
    parse_rule,
)

PINS_MAX = 4096  # pairs of an address and a rule that its name matches
ADDRESSES_PER_ANSWER_MAX = 64
# At least a minute, since programs resolve first and connect a little later; at most a day.
PIN_TTL_MIN_S, PIN_TTL_MAX_S = 60, 86400

_DEFAULT_NETWORK = NetworkConfig()
_DNS_PORT = 53
_LOOPBACK = 0x7F00_0001
_S = 1_000_000_000

# IANA's special-purpose addresses that lead to the host itself or to no single machine, and the
# metadata services, which give a cloud's credentials to whoever asks.
_CLOSED = tuple(
    (*parse_network(network), f"closed: {why}, {network}")
    for network, why in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local and metadata services"),
        ("100.100.100.200", "metadata service (Alibaba)"),
        ("168.63.129.16", "metadata service (Azure)"),
        ("192.0.0.192", "metadata service (Oracle)"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)


class Verdict(NamedTuple):
    """What the policy says.

    Attributes:
        rule: why, in words; the same words for the same reason.
    """

    allowed: bool
    rule: str


class PolicyStatistics(NamedTuple):
    """Counters of a policy.

    Attributes:
        refused: how often each reason refused an address or a name.
        pins: pairs of an address and a rule of names at present.
        pins_evicted: those that went before their time, to make room.
    """

    refused: dict[str, int]
    pins: int
    pins_evicted: int


_OPEN = Verdict(True, "open: no allow rules")
_UNMATCHED = Verdict(False, "no allow rule matches")
_MAY_MATCH = Verdict(True, "a rule of addresses may allow its address")
_NAME_SERVER = Verdict(True, "the name server")
_OWN_NETWORK = Verdict(False, "closed: the guest's own network")
_HOST_PORT = Verdict(True, "a port in allow_host_ports")
_NO_HOST_PORT = Verdict(False, "closed: the host, a port that is not in allow_host_ports")


class Gate(Protocol):
    """What the stack asks of a policy, which another process may have."""

    def target(self, protocol: str, address: int, port: int, now_ns: int) -> int | None:
        """Return the host's address for one that the guest may reach, None for another."""
        ...

    def is_neighbour(self, address: int) -> bool:
        """See Policy."""
        ...

    def statistics(self) -> PolicyStatistics:
        """Return the counters."""
        ...


class Policy:
    """The rules for one guest, and the addresses that names have at present. Thread: loop.

    Args:
        allow, deny: rules, see rules.py.
        allow_host_ports: ports of the host's loopback, open at the gateway's address.
        network: the guest's own.
    Raises:
        ConfigError: a rule or a port that is not one.

    Attributes:
        on_refused: takes what was refused and why, each time, in words without line breaks.
        hides_services: whether a name's HTTPS records, with other addresses and keys that hide
            it (ECH), are kept from the guest.
        on_pinned: takes a name, as it was asked for, and the addresses it was answered with.
        gateway: the address that leads to the host's loopback.
        dns: the name server's.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        allow_host_ports: Iterable[int] = (),
        network: NetworkConfig = _DEFAULT_NETWORK,
    ) -> None:
        self.on_refused: Callable[[str], None] = lambda text: None
        self.hides_services: Callable[[str], bool] = lambda name: False
        self.on_pinned: Callable[[str, Sequence[int]], None] = lambda name, addresses: None
        self.gateway = network.gateway_ip
        self.dns = network.dns_ip
        self._allow = _parse_rules("allow", allow)
        self._deny = _parse_rules("deny", deny)
        self._host_ports = _parse_host_ports(allow_host_ports)
        self._network, self._mask = network.guest_ip & network.mask, network.mask
        self._nobody = (network.guest_ip, self._network, network.broadcast_ip)
        # "0.0.0.0/0" is said of the world; who wants addresses that hide behind the guest's own
        # network says so.
        self._near_rules = [rule for rule in self._allow if self._is_near(rule)]
        # Names may have to be resolved to find out whether a rule of addresses allows theirs.
        self._allows_addresses = any(rule.is_of_addresses for rule in self._allow)
        self._name_rules = [rule for rule in (*self._deny, *self._allow) if rule.name]
        # Not the names themselves, which a guest has without end below a wildcard.
        self._pins: dict[tuple[int, Rule], int] = {}  # when each ends; in the order of pinning
        self._pinned: dict[int, list[Rule]] = {}  # by address: the same pairs
        self._pins_evicted = 0
        self._refused: dict[str, int] = {}  # as many as there are reasons

    def check(self, protocol: str, address: int, port: int, now_ns: int) -> Verdict:
        """Say whether the guest may reach an address.

        Args:
            protocol: in words, for on_refused; no rule speaks of it.
            port: 0 for protocols that have none.
        """
        verdict = self._judge(address, port, now_ns)
        if not verdict.allowed:
            self._refuse(f"{protocol} to {format_address(address)}:{port}", verdict.rule)
        return verdict

    def check_name(self, name: str) -> Verdict:
        """Say whether a name may be resolved at all."""
        verdict = self._judge_name(fold_name(name))
        if not verdict.allowed:
            self._refuse(f"DNS of {name}", verdict.rule)
        return verdict

    def _refuse(self, what: str, rule: str) -> None:
        self._refused[rule] = self._refused.get(rule, 0) + 1
        self.on_refused(f"{what}: {rule}")

    def target(self, protocol: str, address: int, port: int, now_ns: int) -> int | None:
        """Return the host's address for one that the guest may reach, None for another.

        They differ for the gateway alone, which leads to the host's loopback. Args: see check().
        """
        if not self.check(protocol, address, port, now_ns).allowed:
            return None
        return self.host_address(address)

    def host_address(self, address: int) -> int:
        """Return the host's address for one of the guest's, whether it may be reached or not."""
        return _LOOPBACK if address == self.gateway else address

    def _judge(self, address: int, port: int, now_ns: int) -> Verdict:
        if address & self._mask == self._network:
            return self._judge_own(address, port)
        for network, mask, reason in _CLOSED:
            if address & mask == network:
                return Verdict(False, reason)
        pinned = self._rules_of(address, now_ns)
        for rule in self._deny:
            if rule.matches(address, pinned, port):
                return Verdict(False, f"deny {rule.text}")
        for rule in self._allow:
            if rule.matches(address, pinned, port):
                return Verdict(True, f"allow {rule.text}")
        return _UNMATCHED if self._allow else _OPEN

    def _judge_own(self, address: int, port: int) -> Verdict:
        if address == self.gateway:
            return _HOST_PORT if port in self._host_ports else _NO_HOST_PORT
        if address == self.dns:
            return _NAME_SERVER if port == _DNS_PORT else _OWN_NETWORK
        if address in self._nobody:
            return _OWN_NETWORK
        for rule in self._deny:
            if rule.matches(address, (), port):
                return Verdict(False, f"deny {rule.text}")
        for rule in self._near_rules:
            if rule.matches(address, (), port):
                return Verdict(True, f"allow {rule.text}")
        return _OWN_NETWORK

    def _is_near(self, rule: Rule) -> bool:
        is_narrow = rule.mask & self._mask == self._mask
        return rule.is_of_addresses and is_narrow and rule.network & self._mask == self._network

    def is_neighbour(self, address: int) -> bool:
        """Whether an address of the guest's own network is somebody's: then ARP finds it."""
        if address in (self.gateway, self.dns):
            return True
        return any(self._judge_own(address, rule.port_low).allowed for rule in self._near_rules)

    def _judge_name(self, name: str) -> Verdict:
        for rule in self._deny:
            # With ports, the name is needed for the other ports.
            if not rule.has_ports and rule.matches_name(name):
                return Verdict(False, f"deny {rule.text}")
        for rule in self._allow:
            if rule.matches_name(name):
                return Verdict(True, f"allow {rule.text}")
        if self._allows_addresses:
            return _MAY_MATCH
        return _UNMATCHED if self._allow else _OPEN

    def pin(self, name: str, addresses: Sequence[int], ttl_s: int, now_ns: int) -> None:
        """Note what a name was answered with.

        Args:
            name: the one that was asked for, whatever aliases led to the addresses.
        """
        name = fold_name(name)
        self.on_pinned(name, addresses[:ADDRESSES_PER_ANSWER_MAX])
        end_ns = now_ns + min(max(ttl_s, PIN_TTL_MIN_S), PIN_TTL_MAX_S) * _S
        for rule in self._name_rules:
            if rule.matches_name(name):
                for address in addresses[:ADDRESSES_PER_ANSWER_MAX]:
                    self._pin(address, rule, end_ns)

    def _pin(self, address: int, rule: Rule, end_ns: int) -> None:
        earlier_end_ns = self._pins.pop((address, rule), None)
        if earlier_end_ns is None:
            if len(self._pins) >= PINS_MAX:
                self._unpin(*next(iter(self._pins)))
                self._pins_evicted += 1
            self._pinned.setdefault(address, []).append(rule)
        else:
            end_ns = max(end_ns, earlier_end_ns)  # both answers may still be in use
        self._pins[address, rule] = end_ns

    def _unpin(self, address: int, rule: Rule) -> None:
        del self._pins[address, rule]
        rules = self._pinned[address]
        rules.remove(rule)
        if not rules:
            del self._pinned[address]

    def _rules_of(self, address: int, now_ns: int) -> Sequence[Rule]:
        """Return the rules that an address's names match now; drop those that ended."""
        for rule in tuple(self._pinned.get(address, ())):
            if self._pins[address, rule] <= now_ns:
                self._unpin(address, rule)
        return self._pinned.get(address, ())

    def statistics(self) -> PolicyStatistics:
        """Return the counters."""
        return PolicyStatistics(dict(self._refused), len(self._pins), self._pins_evicted)


def _parse_rules(what: str, rules: Iterable[str]) -> tuple[Rule, ...]:
    if isinstance(rules, str):
        raise ConfigError(f"{what} {rules!r}: a list of rules, such as [{rules!r}]")
    return tuple(map(parse_rule, rules))


def _parse_host_ports(ports: Iterable[int]) -> frozenset[int]:
    result = frozenset(ports)
    for port in result:
        if not isinstance(port, int) or not 1 <= port <= PORT_MAX:
            raise ConfigError(f"allow_host_ports: {port!r} is no port: write 1 to {PORT_MAX}")
    return result
