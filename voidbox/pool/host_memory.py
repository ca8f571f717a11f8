"""Whether the host has memory for one more sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from voidbox.errors import ConfigError
from voidbox.sandbox.host_room import number_in, own_cgroups
from voidbox.sdk.draft import memory_bytes

AUTO = "auto"
_OWNER_BYTES = 24 << 20  # a sandbox's processes
_SHARE = 4  # a guest touches a quarter of its memory soon, a boot at the least this much
_RESERVE = 10  # a tenth of the host's memory stays for others
_FIELD = re.compile(r"^(MemTotal|MemAvailable):\s+([0-9]+) kB$", re.MULTILINE)
_INACTIVE_FILE = re.compile(r"^inactive_file ([0-9]+)$", re.MULTILINE)


def available_and_total(root: str = "") -> tuple[int, int]:
    """Return the memory in bytes that this program's control group, or the host, has.

    Args:
        root: where /proc and /sys are.
    Returns:
        What is available, and all of it.
    """
    available = total = 1 << 62  # a host that does not tell: nothing is held back
    with suppress(OSError, KeyError), open(f"{root}/proc/meminfo") as file:
        found = {name: int(kib) << 10 for name, kib in _FIELD.findall(file.read())}
        available, total = found["MemAvailable"], found["MemTotal"]
    for folder in own_cgroups(root):
        most, used = number_in(f"{folder}/memory.max"), number_in(f"{folder}/memory.current")
        if most is not None and used is not None:
            available = max(0, min(available, most - used + _idle_cache(folder)))
            total = min(total, most)
    return available, total


def _idle_cache(folder: str) -> int:
    """Return what a control group has of files that nobody uses: it gives that back first."""
    with suppress(OSError), open(f"{folder}/memory.stat") as file:
        found = _INACTIVE_FILE.search(file.read())
        return int(found[1]) if found is not None else 0
    return 0


class HostMemory:
    """Admits sandboxes by memory. Pure, but for `look`.

    Args:
        wanted: "auto": by what the host has available; None: all are admitted; else how much
            memory all guests together may be given.
        guest_bytes: of each guest.
        look: returns what available_and_total does.
    Raises:
        ConfigError: `wanted` is no size, or not one guest would fit in.
    """

    def __init__(
        self,
        wanted: int | str | None,
        guest_bytes: int,
        look: Callable[[], tuple[int, int]] = available_and_total,
    ) -> None:
        self._look = look
        self._guest_bytes = guest_bytes
        self._is_auto = wanted == AUTO
        self._most = 0
        if wanted is not None and not self._is_auto:
            try:
                self._most = memory_bytes(wanted)
            except ConfigError as error:
                raise ConfigError(f"host_memory: {error}") from None
            if self._most < guest_bytes:
                raise ConfigError(
                    f"host_memory={wanted!r}: not one guest of {guest_bytes >> 20} MiB fits in"
                )

    def admits(self, running: int, starting: int) -> bool:
        """Whether one more may start, beside those that run and those that have just begun."""
        if self._most:
            return (running + starting + 1) * self._guest_bytes <= self._most
        if not self._is_auto:
            return True
        available, total = self._look()
        soon = _OWNER_BYTES + self._guest_bytes // _SHARE
        return available - total // _RESERVE >= (starting + 1) * soon
