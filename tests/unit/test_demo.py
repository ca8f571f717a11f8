"""scripts/demo.sh ends with whatever fails, and says that it is completed only if it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ("scripts/with-kvm",)


def demo(folder: Path, failing: str | None) -> subprocess.CompletedProcess[str]:
    """Run it beside steps that only say their names."""
    (folder / "scripts").mkdir()
    for step in STEPS:
        status = 3 if step == failing else 0
        (folder / step).write_text(f"#!/bin/sh\necho {step} was run\nexit {status}\n")
        (folder / step).chmod(0o755)
    shutil.copy(ROOT / "scripts/demo.sh", folder / "scripts")
    return subprocess.run(
        [folder / "scripts/demo.sh"], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_demo(tmp_path: Path) -> None:
    result = demo(tmp_path, None)
    assert (result.returncode, result.stderr) == (0, "")
    assert "scripts/with-kvm was run" in result.stdout and "Demo completed" in result.stdout


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_ends_it(tmp_path: Path, step: str) -> None:
    result = demo(tmp_path, step)
    assert result.returncode == 3
    assert "Demo completed" not in result.stdout
    later = STEPS[STEPS.index(step) + 1 :]
    assert not any(f"{name} was run" in result.stdout for name in later)
