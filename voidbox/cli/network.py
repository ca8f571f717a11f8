"""The network's options of `voidbox run`."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from voidbox.cli.parser import parse_number
from voidbox.errors import ConfigError

if TYPE_CHECKING:
    from voidbox.nat.config import NatConfig

_RATE = re.compile("([0-9]{1,12})([KMG]?)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the network's options."""
    group = parser.add_argument_group(
        "network",
        "The guest reaches the world through this process, but for the host itself, link-local and "
        "metadata addresses. A RULE is a domain, *.domain, an address or a CIDR block, each with "
        ":PORT or :LOW-HIGH if need be.",
    )
    group.add_argument(
        "--net", choices=("nat", "off"), help="nat for a COMMAND or a shell, off with --console"
    )
    for name, text in (
        ("--allow", "reach only what a rule allows; repeatable"),
        ("--deny", "never reach this; goes before --allow; repeatable"),
    ):
        group.add_argument(name, action="append", default=[], metavar="RULE", help=text)
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="PORT",
        help="open a port of the host's loopback, at 10.0.2.2; repeatable",
    )
    group.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[IP:]HOSTPORT:GUESTPORT[/udp]",
        help="offer a port of the guest on the host; repeatable",
    )
    group.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME[=VALUE]@HOST[,HOST…]",
        help="the guest has a placeholder as NAME, and requests by HTTPS to exactly these hosts "
        "get the value: of the variable NAME here, or VALUE, which may be @FILE or - (standard "
        "input); +body behind the hosts: in bodies too. Repeatable",
    )
    group.add_argument(
        "--http",
        action="append",
        default=[],
        metavar="RULE",
        help='what a host may be asked: "[METHODS] HOST[/PATH] [N/min] [SIZE/min]", as in '
        '"GET api.github.com/repos/acme/*". Repeatable',
    )
    group.add_argument("--pcap", metavar="PATH", help="write all frames there, for tshark")
    group.add_argument(
        "--net-rate", metavar="SIZE", help="bytes a second, both directions together: 10M, 512K"
    )


def parse(options: argparse.Namespace, is_console: bool) -> NatConfig | None:
    """Return the network that the options ask for; None for none.

    Args:
        is_console: no COMMAND is run, so that a network has to be asked for.
    Raises:
        ConfigError: they contradict each other, or one cannot be read.
    """
    rules = options.allow or options.deny or options.allow_host or options.publish
    is_wanted = bool(rules or options.pcap or options.net_rate)
    if options.net == "off":
        if is_wanted:
            raise ConfigError("--net off leaves nothing for the other network options to do")
        return None
    if options.net is None and is_console and not is_wanted:
        return None
    from voidbox.nat.config import NatConfig
    from voidbox.nat.forwards import parse_forward

    return NatConfig(
        allow=tuple(options.allow),
        deny=tuple(options.deny),
        allow_host_ports=tuple(parse_number(port, "--allow-host") for port in options.allow_host),
        publish=tuple(parse_forward(text) for text in options.publish),
        pcap=options.pcap,
        rate_bytes_s=parse_rate(options.net_rate, "--net-rate"),
    )


def parse_rate(text: str | None, option: str) -> int | None:
    """Return bytes a second; None stays.

    Raises:
        ConfigError: it is no such quantity.
    """
    match = _RATE.fullmatch(text.upper()) if text is not None else None
    if text is not None and (match is None or not int(match[1])):
        raise ConfigError(f"{option} {text}: give bytes a second, as in 500K or 10M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None
