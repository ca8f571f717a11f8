"""What a worker is told to make."""

from __future__ import annotations

import pickle

from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.worker.surroundings import Walls
from voidbox.vmm.config import MachineConfig


class Plan(NamedTuple):
    """What a worker is to make.

    Attributes:
        config: the machine's, with absolute paths.
        snapshot: the folder of what it is restored from, or None.
        walls: what it shuts itself in with.
    """

    config: MachineConfig
    snapshot: str | None
    walls: Walls

    def packed(self) -> bytes:
        """Return it as the worker takes it: from its keeper alone, whom it has to believe."""
        return pickle.dumps(self)

    @classmethod
    def unpacked(cls, data: bytes) -> Plan:
        """Return what packed() made."""
        plan: Plan = pickle.loads(data)
        return plan
