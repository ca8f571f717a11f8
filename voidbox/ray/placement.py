"""Which node a sandbox comes from: one that has what it is made of, and of two such the emptier.

Two, not all: many programs that choose at once, by what they knew a moment ago, would all choose
the same one. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A node, as far as the choice goes.

    Attributes:
        fullness: used and asked for, of its size; 1.0 and more: whoever comes has to wait.
    """

    @property
    def fullness(self) -> float: ...


C = TypeVar("C", bound=Candidate)
Sample = Callable[[Sequence[C], int], list[C]]


def choose(
    candidates: Sequence[C],
    has: Callable[[C], bool],
    sample: Sample[C] = random.sample,
) -> C | None:
    """Return a node; None where there is none.

    Args:
        has: whether a node has the image, or the snapshot, already. One that has not is taken only
            when those that have are full: fetching it takes longer than a look elsewhere.
    """
    near = [one for one in candidates if has(one) and one.fullness < 1.0]
    among = near or [one for one in candidates if one.fullness < 1.0] or list(candidates)
    if not among:
        return None
    return min(sample(among, min(2, len(among))), key=lambda one: one.fullness)
