"""What makes this guest another than its copies: its random numbers, its clock, its names."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time

from guest_agent import plain_files
from guest_agent.freezer import Freezer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GENERATION = "/run/voidbox/generation"
_HOSTNAME, _HOSTS, _MACHINE_ID = "/etc/hostname", "/etc/hosts", "/etc/machine-id"
# <linux/random.h>: _IOW('R', 0x03, int[2]), _IO('R', 0x07)
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
# struct rand_pool_info { int entropy_count, buf_size; __u32 buf[]; }
_RAND_POOL_INFO = struct.Struct("@ii")

_NAME_BYTES_MAX = 64  # __NEW_UTS_LEN of <linux/utsname.h>
_ID_DIGITS = 32
_HOSTS_BYTES_MAX = 64 << 10


class Identity:
    """Of the guest whose PID 1 this is."""

    def __init__(self) -> None:
        self._freezer = Freezer()

    def reseed(self, entropy: bytes) -> None:
        """Have the kernel's random numbers be others from here on.

        Both are needed: what is added to the pool is not used before the next reseed, which may be
        a minute away, and that minute's numbers are the original's.

        Raises:
            OSError: they are not.
        """
        info = _RAND_POOL_INFO.pack(len(entropy) * 8, len(entropy)) + entropy
        fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            fcntl.ioctl(fd, _RNDADDENTROPY, info)
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def set_clock(self, clock_ns: int) -> None:
        """Set the clock; CLOCK_MONOTONIC goes on from the snapshot's. Raises OSError."""
        time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)

    def rename(
        self, hostname: str | None, machine_id: str | None, generation: str | None
    ) -> list[str]:
        """Give it other names; return what could not be done, in a line each."""
        notes: list[str] = []

        def attempt(what: str, call: Callable[[], None]) -> None:
            try:
                call()
            except (OSError, ValueError) as error:
                notes.append(f"{what}: {error}"[:200])

        if hostname is not None:
            attempt("hostname", lambda: _set_hostname(hostname))
        if machine_id is not None:
            attempt("machine-id", lambda: _set_machine_id(machine_id))
        if generation is not None:
            attempt("generation", lambda: plain_files.replace(GENERATION, f"{generation}\n"))
        return notes

    def freeze(self) -> bool:
        """Have no other process run; False if this kernel, or what runs here, does not let us."""
        return self._freezer.freeze()

    def thaw(self) -> None:
        """Let them run. Idempotent."""
        self._freezer.thaw()


def _set_hostname(name: str) -> None:
    is_plain = name.isascii() and name.replace("-", "").replace(".", "").isalnum()
    if not is_plain or len(name) > _NAME_BYTES_MAX:
        raise ValueError(f"{name!r} is no host's name")
    old = socket.gethostname()
    socket.sethostname(name)
    plain_files.replace(_HOSTNAME, f"{name}\n")
    _rename_in_hosts(old, name)


def _rename_in_hosts(old: str, new: str) -> None:
    """Have the new name lead where the old one did: programs look up their own host's."""
    content = plain_files.read(_HOSTS, _HOSTS_BYTES_MAX)
    if len(content) == _HOSTS_BYTES_MAX:
        raise ValueError(f"{_HOSTS} is too large")
    lines = content.decode().split("\n")
    renamed = [
        " ".join(new if word == old else word for word in line.split())
        if old in line.split()
        else line
        for line in lines
    ]
    if renamed != lines:
        plain_files.replace(_HOSTS, "\n".join(renamed))


def _set_machine_id(machine_id: str) -> None:
    if len(machine_id) != _ID_DIGITS or set(machine_id) - set("0123456789abcdef"):
        raise ValueError(f"{machine_id!r} is no machine-id: 32 hexadecimal digits")
    if os.path.lexists(_MACHINE_ID):  # an image without one has no use for it
        plain_files.replace(_MACHINE_ID, f"{machine_id}\n")
