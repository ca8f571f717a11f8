"""The host's resolv.conf, read again when it is another: a VPN came up, the laptop moved."""

from __future__ import annotations

import os

from voidbox.net.resolv_conf import ResolvConf, parse_resolv_conf

RESOLV_CONF = "/etc/resolv.conf"
LOOK_NS = 1_000_000_000  # how often it may be looked at


def read_resolv_conf() -> ResolvConf:
    """Return what the host's resolv.conf says now; nothing if there is none."""
    return ResolvConfFile().settings


class ResolvConfFile:
    """Thread: loop.

    Attributes:
        settings: what it said last.
    """

    def __init__(self) -> None:
        self.settings = ResolvConf()
        self._stamp: tuple[int, ...] | None = None
        self._looked_ns: int | None = None
        self._read()

    def refresh(self, now_ns: int) -> bool:
        """Look at it, now and then; whether it says something else than before.

        While it is missing, or cannot be read, what it said last holds.
        """
        if self._looked_ns is not None and now_ns - self._looked_ns < LOOK_NS:
            return False
        self._looked_ns = now_ns
        before = self.settings
        self._read()
        return self.settings != before

    def _read(self) -> None:
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
