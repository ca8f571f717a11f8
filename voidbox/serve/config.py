"""What a server is told at its start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

PORT_DEFAULT = 3000
SANDBOXES_MAX = 100
LIFE_S_MAX = 24 * 3600.0
BUILD_CACHE_BYTES = 10 << 30


class ServeConfig(NamedTuple):
    """A server's settings.

    Attributes:
        host, port: where it listens.
        domain: of names such as 3000-ID.DOMAIN; None: URL mode alone.
        tls_cert, tls_key: files in PEM; None: plain HTTP.
        is_insecure: plain HTTP on addresses other than loopback is fine.
        state_folder: None for the user's own.
        sandboxes_max: how many may run at a time.
        waiting: how many more of the default template wait for clients.
        life_s_max: the longest timeout that a client may ask for.
        templates: more names of templates, and the images they stand for.
        build_cache_bytes: the most disk that steps of template builds take, to be used again.
        otlp: the URL of a collector of OpenTelemetry's; None for none.
        options: of AsyncSandbox.create(), for every sandbox: memory, jail and so on.
    """

    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    domain: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    is_insecure: bool = False
    state_folder: str | None = None
    sandboxes_max: int = SANDBOXES_MAX
    waiting: int = 0
    life_s_max: float = LIFE_S_MAX
    templates: Mapping[str, str] = {}
    build_cache_bytes: int = BUILD_CACHE_BYTES
    otlp: str | None = None
    options: Mapping[str, Any] = {}

    def check(self) -> None:
        """Refuse what would be dangerous, or makes no sense.

        Raises:
            ConfigError: says what to do.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("give both --tls-cert and --tls-key, or none of them")
        if not is_loopback(self.host) and self.tls_cert is None and not self.is_insecure:
            raise ConfigError(
                f"{self.host} is not loopback: keys and files would cross the network in plain "
                "text; give --tls-cert and --tls-key, or --insecure behind a proxy that has them"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, :PORT, PORT or [IPv6]:PORT.

    Raises:
        ConfigError: it is none of them.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or not 0 <= int(port) <= 0xFFFF:
        raise ConfigError(f"--listen {text}: give HOST:PORT, such as 127.0.0.1:{PORT_DEFAULT}")
    return host, int(port)
