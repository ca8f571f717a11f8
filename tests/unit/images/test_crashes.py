"""Killed, or out of room, at any call to the disk: no half-made image, and the next try works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.images.crash_points import ACTS


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("how", ["kill", "full"])
def test_every_point(tmp_path: Path, how: str, act: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.unit.images.crash_points", str(tmp_path), how, act],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    least = {"pull": 15, "import": 8, "remove": 4, "prune": 6}[act]
    assert int(result.stdout.split()[0]) >= least, result.stdout
