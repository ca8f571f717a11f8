"""`voidbox setup` in an empty home with nothing of Debian's in the PATH, and what it made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.disk_images import saved_archive

pytestmark = [pytest.mark.boot, pytest.mark.slow]


class Home:
    """A user who has just installed voidbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()

    def voidbox(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        values = {"HOME": str(self.folder), "PATH": f"{self.folder}/bin", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "voidbox", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=values, cwd=self.folder
        )


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with TemporaryDirectory(prefix="vb-", dir=saved_archive().parent) as folder:
        yield Home(Path(folder))


def test_set_up_and_run(home: Home) -> None:
    none = home.voidbox("run", "--", "true")
    assert none.returncode == 2
    assert "voidbox setup" in none.stderr
    made = home.voidbox("setup", "--offline", str(saved_archive()))
    assert made.returncode == 0, made.stderr
    done = home.voidbox("run", "--memory", "512M", "--", "python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
