"""The agent's named tuples, and what it must not import: each guest pays for it at its start."""

from __future__ import annotations

import subprocess
import sys

from guest_agent.records import NamedTuple
from tests.unit.agent.conftest import ROOT


class Point(NamedTuple):
    """A place."""

    x: int
    y: int


def test_a_named_tuple() -> None:
    point = Point(1, y=2)
    assert point == (1, 2)
    assert point._replace(x=3).x == 3
    assert Point.__doc__ == "A place."
    assert Point.__module__ == __name__
    assert repr(point) == "Point(x=1, y=2)"


def test_the_agent_starts_without_what_is_dear() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import guest_agent.__main__; "
        "print(*sorted(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "guest_agent.server" in found
    dear = {"typing", "re", "subprocess", "logging", "json", "threading", "tempfile", "shutil"}
    assert not dear & set(found)
