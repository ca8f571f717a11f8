"""One rule of a policy: a name, a wildcard or a network, each with or without ports.

    example.com        this name alone
    *.example.com      all names below it, at any depth, not itself
    *                  everything
    192.0.2.0/24       a network, or one address
    example.com:443    each of them: one port, or a range (:8000-8999)

Names are ASCII; an international one is written as punycode (xn--…), as it goes over the wire.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.net.addresses import ALL_ADDRESSES, format_address, parse_address

PORT_MAX = 65535

_NAME_BYTES_MAX = 253  # RFC 1035 §2.3.4 as text: 255 on the wire
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NUMBER = r"[0-9]+|0x[0-9a-f]*"
_DECIMAL = r"0|[1-9][0-9]{0,4}"


class Rule(NamedTuple):
    """What one rule says. A rule without ports means all of them, and port 0 (see matches_port).

    Attributes:
        text: the rule as the user wrote it.
        is_any: "*".
        name: of a rule of names, in lower case; else empty.
        is_wildcard: the names below `name`, rather than `name`.
        network, mask: of a rule of addresses.
    """

    text: str
    is_any: bool = False
    name: str = ""
    is_wildcard: bool = False
    network: int = 0
    mask: int = 0
    port_low: int = 0
    port_high: int = PORT_MAX

    @property
    def has_ports(self) -> bool:
        """Whether the rule speaks of some ports only."""
        return (self.port_low, self.port_high) != (0, PORT_MAX)

    @property
    def is_of_addresses(self) -> bool:
        """Whether it speaks of addresses, whatever their names are."""
        return not self.is_any and not self.name

    def matches_port(self, port: int) -> bool:
        """Whether it speaks of a port; 0 stands for protocols that have none."""
        return self.port_low <= port <= self.port_high

    def matches_name(self, name: str) -> bool:
        """Whether it speaks of a name, which is folded."""
        if self.is_any:
            return True
        if self.is_wildcard:
            return name.endswith("." + self.name)
        return bool(name) and name == self.name

    def matches(self, address: int, pinned: Collection[Rule], port: int) -> bool:
        """Whether it speaks of a port of an address.

        Args:
            pinned: the rules of names that the address's names match.
        """
        if not self.matches_port(port):
            return False
        if self.name:
            return self in pinned
        return self.is_any or address & self.mask == self.network


def fold_name(name: str) -> str:
    """Return a name in the form that compares: lower case, no dot at the end."""
    # Only ASCII: U+212A, say, would become a plain "k".
    return (name.lower() if name.isascii() else name).removesuffix(".")


def parse_network(text: str) -> tuple[int, int]:
    """Return the address and the mask of "192.0.2.0/24", or of one address.

    Raises:
        ConfigError: it is neither.
    """
    base, slash, bits = text.partition("/")
    address = parse_address(base)
    if address is None:
        raise ConfigError(f"{text!r} is no IPv4 address: write four numbers, such as 192.0.2.1")
    if not slash:
        return address, ALL_ADDRESSES
    if not re.fullmatch(_DECIMAL, bits) or int(bits) > 32:
        raise ConfigError(f"{text!r} is no network: /0 to /32 may follow the address")
    mask = ALL_ADDRESSES << (32 - int(bits)) & ALL_ADDRESSES
    if address & ~mask:
        right = f"{format_address(address & mask)}/{bits}"
        raise ConfigError(f"{text!r} names an address inside a network: write {right!r}")
    return address, mask


def parse_rule(text: str) -> Rule:
    """Return what a rule says.

    Raises:
        ConfigError: it is not a rule; the message quotes it and says what is right.
    """
    if not isinstance(text, str):
        raise ConfigError(f"rule {text!r}: a rule is a string, such as 'example.com:443'")
    try:
        return _parse_rule(text)
    except ConfigError as error:
        raise ConfigError(f"rule {text!r}: {error}") from None


def _parse_rule(text: str) -> Rule:
    if "://" in text:
        raise ConfigError("a URL; write its host alone, such as 'example.com:443'")
    if text.count(":") > 1:
        raise ConfigError("the guest has IPv4 only; write an IPv4 address or a name")
    pattern, colon, ports = text.partition(":")
    low, high = _parse_ports(ports) if colon else (0, PORT_MAX)
    if pattern == "*":
        return Rule(text, is_any=True, port_low=low, port_high=high)
    if _looks_like_address(pattern):
        network, mask = parse_network(pattern)
        return Rule(text, network=network, mask=mask, port_low=low, port_high=high)
    is_wildcard = pattern.startswith("*.")
    name = _parse_name(pattern[2:] if is_wildcard else pattern)
    return Rule(text, name=name, is_wildcard=is_wildcard, port_low=low, port_high=high)


def _parse_ports(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not dash:
        high = low
    if not re.fullmatch(_DECIMAL, low) or not re.fullmatch(_DECIMAL, high):
        low = high = "0"
    if not 1 <= int(low) <= int(high) <= PORT_MAX:
        raise ConfigError(f"{text!r} is no port: write 1 to {PORT_MAX}, or 8000-8999 for a range")
    return int(low), int(high)


def _looks_like_address(pattern: str) -> bool:
    # Programs take even "127.1" and "127.0x1" for addresses.
    return "/" in pattern or bool(re.fullmatch(_NUMBER, fold_name(pattern).rpartition(".")[2]))


def _parse_name(text: str) -> str:
    if not text.isascii():
        raise ConfigError("write an international name as punycode (xn--…)")
    name = fold_name(text)
    labels = name.split(".")
    if len(name) > _NAME_BYTES_MAX or not all(re.fullmatch(_LABEL, each) for each in labels):
        raise ConfigError(
            "write a name (example.com), the names below it (*.example.com), '*', an address "
            "or a network (192.0.2.0/24), and :PORT or :LOW-HIGH if you want"
        )
    return name
