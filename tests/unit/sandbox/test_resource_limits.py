"""Limits: what is one, and what a machine is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from voidbox.errors import ConfigError
from voidbox.sandbox.process import resource_limits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpu": 1}, "no limit 'gpu'; there are|no limit 'gpu': there are cpu"),
        ({"cpu": "half"}, "cpu is a number, not 'half'"),
        ({"cpu": True}, "is a number"),
        ({"cpu": float("nan")}, "is a number"),
        ({"cpu": float("inf")}, "is a number"),
        ({"cpu": 0}, "give at least 0.01"),
        ({"disk_bytes_s": 0.5}, "give at least 1"),
        ({"net_bytes_s": -1}, "give at least 1"),
    ],
)
def test_what_is_no_limit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resource_limits.check(values)


def test_limits_are_numbers_of_their_kind() -> None:
    found = resource_limits.check({"cpu": 1, "disk_bytes_s": 5.0, "disk_ops_s": None})
    assert found == {"cpu": 1.0, "disk_bytes_s": 5, "disk_ops_s": None}
    assert isinstance(found["cpu"], float)


def test_memory_is_of_what_the_guest_has() -> None:
    told: list[Any] = []
    config = SimpleNamespace(net=None, memory_bytes=512 << 20)
    machine: Any = SimpleNamespace(config=config, limit=told.append)
    resource_limits.apply(machine, {"memory_bytes": 64 << 20}, {"memory_bytes": 64 << 20})
    resource_limits.apply(machine, {"memory_bytes": None}, {"memory_bytes": None})
    assert told == [{"memory_bytes": 64 << 20}, {"memory_bytes": None}]
    for wrong in (1 << 20, 513 << 20):
        with pytest.raises(ConfigError, match="give 16,777,216 to 536,870,912"):
            resource_limits.apply(machine, {"memory_bytes": wrong}, {"memory_bytes": wrong})


def test_a_machine_is_told_what_has_changed() -> None:
    told: list[Any] = []
    machine: Any = SimpleNamespace(
        config=SimpleNamespace(net=None, memory_bytes=1), limit=told.append
    )
    limits = resource_limits.check({"cpu": 0.5, "disk_bytes_s": 100, "disk_ops_s": 7})
    resource_limits.apply(machine, limits, {"disk_ops_s": 7})
    assert told == [{"disk_bytes_s": 100, "disk_ops_s": 7}]
    resource_limits.apply(machine, {**limits, "cpu": None}, {"cpu": None})
    assert told[1:] == [{"cpu": None}]
    with pytest.raises(ConfigError, match="no network"):
        resource_limits.apply(machine, {"net_bytes_s": 5}, {"net_bytes_s": 5})
