"""How many are started at a time, and whether the host has memory for one more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.errors import ConfigError
from voidbox.pool.host_memory import AUTO, HostMemory, available_and_total
from voidbox.pool.start_limit import StartLimit

pytestmark = pytest.mark.slow

MIB = 1 << 20


def test_quick_starts_widen_the_limit() -> None:
    limit = StartLimit(1, 8)
    for _ in range(100):
        limit.succeeded(1.0)
    assert limit.limit == 8
    assert limit.mean_s == pytest.approx(1.0)


def test_slow_starts_narrow_it_once_for_all_that_were_under_way() -> None:
    limit = StartLimit(8, 8)
    limit.succeeded(1.0)
    for _ in range(8):
        limit.succeeded(10.0)
    assert limit.limit == 4
    for _ in range(4):
        limit.failed()
    assert limit.limit == 2


def test_a_host_that_got_slower_for_good_is_believed() -> None:
    limit = StartLimit(1, 8)
    limit.succeeded(1.0)
    for _ in range(200):
        limit.succeeded(4.0)
    assert limit.limit == 8


@given(st.lists(st.floats(0.001, 1000) | st.none()), st.integers(1, 64), st.integers(0, 64))
def test_the_limit_stays_within_its_bounds(
    starts: list[float | None], first: int, more: int
) -> None:
    limit = StartLimit(first, first + more)
    for took_s in starts:
        if took_s is None:
            limit.failed()
        else:
            limit.succeeded(took_s)
        assert 1 <= limit.limit <= first + more


def test_memory_is_what_is_available_less_what_begins_and_a_reserve() -> None:
    memory = HostMemory(AUTO, 512 * MIB, lambda: (1000 * MIB, 2000 * MIB))
    assert memory.admits(50, 4)  # 5 x (24 + 128) MiB, and 200 stay
    assert not memory.admits(0, 5)


def test_memory_that_the_guests_are_given() -> None:
    memory = HostMemory("2G", 512 * MIB, lambda: (0, 0))
    assert memory.admits(2, 1)
    assert not memory.admits(3, 1)
    assert HostMemory(1024, 512 * MIB, lambda: (0, 0)).admits(1, 0)
    assert HostMemory(None, 512 * MIB, lambda: (0, 0)).admits(10_000, 1)


@pytest.mark.parametrize("wrong", ["much", 0, -1, 1.5, True, "100M"])
def test_what_is_no_amount_of_memory(wrong: object) -> None:
    with pytest.raises(ConfigError, match="host_memory"):
        HostMemory(wrong, 512 * MIB)  # type: ignore[arg-type]


def test_the_host_tells_its_memory() -> None:
    available, total = available_and_total()
    assert 0 < available <= total


def test_a_control_group_is_the_host_of_what_is_in_it(tmp_path: Path) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup" / "box" / "program"
    group.mkdir(parents=True)
    for path, content in {
        tmp_path / "proc" / "meminfo": "MemTotal: 64000 kB\nMemAvailable: 32000 kB\n",
        tmp_path / "proc" / "self" / "cgroup": "0::/box/program\n",
        group.parent / "memory.max": f"{10 * MIB}\n",
        group.parent / "memory.current": f"{9 * MIB}\n",
        group.parent / "memory.stat": f"anon 1\ninactive_file {3 * MIB}\nactive_file 7\n",
        group / "memory.max": "max\n",
        group / "memory.current": f"{9 * MIB}\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert available_and_total(str(tmp_path)) == (4 * MIB, 10 * MIB)
    (group.parent / "memory.max").write_text("max\n")
    assert available_and_total(str(tmp_path)) == (32000 << 10, 64000 << 10)
