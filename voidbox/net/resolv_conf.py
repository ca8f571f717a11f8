"""The host's resolv.conf(5), as far as a guest is concerned. No I/O."""

from __future__ import annotations

import re

from voidbox.named_tuple import NamedTuple
from voidbox.net.addresses import parse_address

SERVERS_MAX = 3  # as in glibc (MAXNS): a fourth would be asked when the guest has given up
# As glibc had it for decades (MAXDNSRCH); a guest may not take more.
SEARCH_MAX, SEARCH_BYTES_MAX = 6, 256

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = rf"{_LABEL}(\.{_LABEL})*"


class ResolvConf(NamedTuple):
    """What a resolv.conf says.

    Attributes:
        servers: the name servers' addresses, IPv4 and IPv6, in their order.
        search: the domains in which a name is looked for.
    """

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Return what it says; what is not understood is passed over.

    A resolver that is left is better than none.
    """
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        keyword, *words = line.split() or [""]
        if keyword == "nameserver" and words and _is_address(words[0]):
            servers.append(words[0])
        elif keyword == "search" and words:
            search = words
        elif keyword == "domain" and words:
            search = words[:1]  # whichever comes last holds
    return ResolvConf(tuple(dict.fromkeys(servers))[:SERVERS_MAX], _domains(search))


def _domains(words: list[str]) -> tuple[str, ...]:
    names = dict.fromkeys(word.removesuffix(".") for word in words)
    found: list[str] = []
    for name in names:
        total = sum(map(len, found)) + len(found) + len(name)
        if re.fullmatch(_DOMAIN, name) and len(name) <= 253 and total <= SEARCH_BYTES_MAX:
            found.append(name)
    return tuple(found[:SEARCH_MAX])


def _is_address(text: str) -> bool:
    if parse_address(text) is not None:
        return True
    if ":" not in text:
        return False
    import ipaddress  # slow to import, and few have IPv6 resolvers

    try:
        ipaddress.IPv6Address(text)  # with a zone, such as fe80::1%eth0, too
    except ValueError:
        return False
    return True
