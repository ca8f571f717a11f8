"""What pools want of a cluster that grows: one actor tells Ray's autoscaler the sum.

Ray sees the actors of pools, not the sandboxes in them, nor who waits for one. So each pool says
how many it wants; what nobody says again is forgotten. There is one such actor, as Ray heeds but
the last of such requests, whoever made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

NAME, NAMESPACE = "voidbox-demand", "voidbox"
FORGET_S = 60.0  # twelve times as long as pools take to say it again
_END_S = 600.0  # without a wish: then the actor ends


class Wishes:
    """Who wants how many of which resource. Pure, but for its clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._wishes: dict[str, tuple[str, int, float]] = {}  # and until when
        self._last = now()

    def put(self, holder: str, resource: str, count: int) -> None:
        """Have a pool want so many: those that it has, and those that it lacks."""
        self._last = self._now()
        if count:
            self._wishes[holder] = resource, count, self._last + FORGET_S
        else:
            self._wishes.pop(holder, None)

    def bundles(self) -> list[dict[str, float]]:
        """Return the sum, as the autoscaler takes it."""
        now, sums = self._now(), dict[str, int]()
        self._wishes = {key: one for key, one in self._wishes.items() if one[2] > now}
        for resource, count, _ in self._wishes.values():
            sums[resource] = sums.get(resource, 0) + count
        return [{resource: 1.0} for resource, count in sums.items() for _ in range(count)]

    def is_idle(self) -> bool:
        """Whether nobody has wanted anything for long."""
        return not self._wishes and self._now() - self._last > _END_S


class Demand:
    """The actor."""

    def __init__(self) -> None:
        self._wishes = Wishes()
        self._told: list[dict[str, float]] = []

    def put(self, holder: str, resource: str, count: int) -> int:
        """Take a pool's wish, and tell Ray the sum if it is another one now; return the sum."""
        from ray.autoscaler.sdk import request_resources

        self._wishes.put(holder, resource, count)
        bundles = self._wishes.bundles()
        if bundles != self._told:
            request_resources(bundles=bundles)
            self._told = bundles
        if self._wishes.is_idle():
            ray.actor.exit_actor()
        return len(bundles)


def find() -> Any:
    """Return the cluster's one such actor; it begins if there is none."""
    return (
        ray.remote(Demand)
        .options(
            name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0
        )
        .remote()
    )
