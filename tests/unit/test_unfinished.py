"""What runs again after a run that failed, or that was killed, in pytest itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import os
import pytest

@pytest.fixture
def fragile():
    yield
    assert os.path.exists("calm")

def test_good(): pass
def test_skipped(): pytest.skip("elsewhere")
def test_of_a_fixture(fragile): pass
def test_killed():
    if not os.path.exists("calm"):
        os._exit(9)
def test_last(): pass
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    options = ["-p", "tests.unfinished", "--passed", "build/passed", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--no-header", *options, "test_it.py"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_what_has_not_passed_runs_again(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    assert run(tmp_path).returncode == 9

    (tmp_path / "calm").touch()
    second = run(tmp_path)
    assert second.returncode == pytest.ExitCode.OK
    assert "3 passed, 2 deselected" in second.stdout  # a fixture that failed has its test run again

    third = run(tmp_path)
    assert third.returncode == pytest.ExitCode.OK, "nothing is left, which is no failure"
    assert "5 deselected" in third.stdout


def test_a_mistyped_name_is_still_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("")
    assert run(tmp_path).returncode == pytest.ExitCode.NO_TESTS_COLLECTED
