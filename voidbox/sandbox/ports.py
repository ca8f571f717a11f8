"""Ports of a sandbox: what the host offers of them, and whether anything listens there."""

from __future__ import annotations

import re

from voidbox.errors import AgentError, ConfigError
from voidbox.named_tuple import NamedTuple

# As the sandbox's process shows one: 127.0.0.1:8080:80/tcp
_FORWARD = r"([0-9.]+):([0-9]{1,5}):([0-9]{1,5})/(tcp|udp)"
# proc_net(5): "  0: 0100007F:1F90 00000000:0000 0A …", local and remote address, state; 0A listens.
_ROW = rb"\s*[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A "
_LOOPBACK = rb"[0-9A-F]{6}7F|0{24}01000000|0{16}FFFF0000[0-9A-F]{6}7F"

LISTENERS = ("/proc/net/tcp", "/proc/net/tcp6")


class PublishedPort(NamedTuple):
    """A port of the guest that the host offers.

    Attributes:
        host_ip: where programs of the host find it.
        protocol: "tcp" or "udp".
    """

    host_ip: str
    host_port: int
    guest_port: int
    protocol: str

    def __str__(self) -> str:
        """As `ports.remove()` and `voidbox port rm` take it: 127.0.0.1:8080:80/tcp."""
        return f"{self.host_ip}:{self.host_port}:{self.guest_port}/{self.protocol}"


def parse_published(text: object) -> PublishedPort:
    """Return what a sandbox's process says of a port.

    Raises:
        AgentError: it says nothing of sense.
    """
    match = re.fullmatch(_FORWARD, text) if isinstance(text, str) else None
    if match is None:
        raise AgentError("the sandbox's process says nothing of sense about its ports")
    return PublishedPort(match[1], int(match[2]), int(match[3]), match[4])


def check_port(port: int) -> None:
    """Refuse what is no port.

    Raises:
        ConfigError: that.
    """
    if type(port) is not int or not 0 < port < 1 << 16:
        raise ConfigError(f"port {port!r}: give a number from 1 to 65535")


class Listeners:
    """Who listens on one port, by what the guest's kernel says.

    Attributes:
        is_there: somebody does.
        is_reached: somebody does on more than the loopback, so that a published port leads there.
    """

    def __init__(self, port: int) -> None:
        self._port = b"%04X" % port
        self.is_there = self.is_reached = False

    def take(self, table: bytes) -> None:
        """Take a table of /proc/net."""
        for row in table.split(b"\n"):
            match = re.match(_ROW, row)
            if match is not None and match[2] == self._port:
                self.is_there = True
                self.is_reached = self.is_reached or not re.fullmatch(_LOOPBACK, match[1])
