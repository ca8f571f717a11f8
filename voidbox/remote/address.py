"""Which server is meant, and the key for it."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

REMOTE, KEY = "VOIDBOX_REMOTE", "VOIDBOX_API_KEY"
_PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """A server.

    Attributes:
        prefix: of all paths; "" for a server that has a name of its own.
        key: one of `voidbox serve key add`.
    """

    is_tls: bool
    host: str
    port: int
    prefix: str
    key: str

    @property
    def url(self) -> str:
        """The server's URL, without the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.is_tls}://{host}:{self.port}{self.prefix}"


def find(remote: str | None) -> Address | None:
    """Return the server that is meant: `remote`, or $VOIDBOX_REMOTE; None for this machine.

    Raises:
        ConfigError: it is no URL, or there is no key.
    """
    remote = remote if remote is not None else os.environ.get(REMOTE, "")
    return parse(remote, os.environ.get(KEY, "")) if remote else None


def parse(url: str, key: str) -> Address:
    """Return the server of a URL.

    Raises:
        ConfigError: it is none, or there is no key.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username or parts.query:
        raise ConfigError(f"{url!r} is no server: give http://HOST:PORT or https://HOST")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{KEY} is no key")
    if not key:
        raise ConfigError(
            f"set {KEY} to a key of {url}: there, voidbox serve key add NAME makes one"
        )
    return Address(
        parts.scheme == "https",
        parts.hostname,
        port or _PORTS[parts.scheme],
        parts.path.rstrip("/"),
        key,
    )
