"""Where queries go: the name servers of a configuration, or the host's as they are at the time."""

from __future__ import annotations

import os
from collections.abc import Sequence

from voidbox.net.resolv_conf import ResolvConf, parse_resolv_conf

RESOLV_CONF = "/etc/resolv.conf"
DNS_PORT = 53
LOOK_NS = 1_000_000_000  # how often it may be looked at


def read_resolv_conf() -> ResolvConf:
    """Return what the host's resolv.conf says now; nothing if there is none."""
    return ResolvConfFile().settings


class ResolvConfFile:
    """The host's resolv.conf, read again when it is another: a VPN came up, the laptop moved.

    Attributes:
        settings: what it said last. While it is missing, or cannot be read, that holds.
    """

    def __init__(self) -> None:
        self.settings = ResolvConf()
        self._stamp: tuple[int, ...] | None = None
        self.read()

    def read(self) -> None:
        """Look whether it has changed."""
        try:
            # A link's target: systemd-resolved and others have the file elsewhere.
            status = os.stat(RESOLV_CONF)
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return
            with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
                self.settings = parse_resolv_conf(file.read())
            self._stamp = stamp
        except OSError:
            pass


class NameServers:
    """Thread: loop.

    Args:
        fixed: (address, port), in order of preference; None for those of the host's resolv.conf.

    Attributes:
        places: what they are now; another list when they are others.
    """

    def __init__(self, fixed: Sequence[tuple[str, int]] | None) -> None:
        self._file = ResolvConfFile() if fixed is None else None
        self.places = list(fixed or ()) if self._file is None else _places_of(self._file)
        self._looked_ns: int | None = None

    def refresh(self, now_ns: int) -> int | None:
        """Look now and then whether they are others; their number, if so."""
        is_soon = self._looked_ns is not None and now_ns - self._looked_ns < LOOK_NS
        if self._file is None or is_soon:
            return None
        self._looked_ns = now_ns
        self._file.read()
        places = _places_of(self._file)
        if places == self.places:
            return None
        self.places = places
        return len(places)


def _places_of(file: ResolvConfFile) -> list[tuple[str, int]]:
    return [(address, DNS_PORT) for address in file.settings.servers]
