"""What a pool says of itself."""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple


class PoolStats(NamedTuple):
    """A pool at one moment.

    Attributes:
        size: the most sandboxes that there are at once: given + warm + starting + ending.
        given: those that somebody has.
        warm: those that wait for somebody.
        starting, ending: those that are under way.
        waiting: calls of acquire() that wait.
        start_limit: how many may be starting now.
        started, failed: starts that went well, and that did not, from the beginning.
        start_s: how long a start took of late, in seconds; 0 before the first.
        used_s: how long a sandbox was used of late, in seconds; 0 before the first end.
        is_short_of_memory: the host has none for one more now.
    """

    size: int
    given: int
    warm: int
    starting: int
    ending: int
    waiting: int
    start_limit: int
    started: int
    failed: int
    start_s: float
    used_s: float
    is_short_of_memory: bool
