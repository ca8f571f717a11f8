"""What a node needs where there is no virtual machine: see the stand-ins of the pool's tests."""

from __future__ import annotations

from tests.unit.pool.test_stand_ins import options, state_folder

__all__ = ["options", "state_folder"]
