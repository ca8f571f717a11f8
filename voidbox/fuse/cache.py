"""How long the guest may believe what it was told, as `--workspace DIR:rw,cache=…` says it."""

from __future__ import annotations

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

_DAY_S = 24 * 60 * 60


class Cache(NamedTuple):
    """What the guest's kernel may keep.

    Attributes:
        valid_s: seconds that names and attributes, and names that lead nowhere, are believed.
        keeps_data: what was read is kept from one open to the next; written data may wait.
        is_direct: data is never kept.
    """

    valid_s: int
    keeps_data: bool
    is_direct: bool


CACHES = {
    # Both sides change files: the guest sees the host's changes within a second.
    "auto": Cache(1, False, False),
    # Nobody but the guest changes anything.
    "always": Cache(_DAY_S, True, False),
    # Each request goes to the host.
    "none": Cache(0, False, True),
}
CACHE_DEFAULT = "auto"


def find_cache(name: str) -> Cache:
    """Return what a name of CACHES stands for.

    Raises:
        ConfigError: it is none of them.
    """
    found = CACHES.get(name)
    if found is None:
        raise ConfigError(f"cache={name!r}: give auto, always or none")
    return found
