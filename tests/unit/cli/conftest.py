"""`voidbox` as a user runs it, with a state folder of its own and fake machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sandbox.owned import Sandboxes
from voidbox.sandbox.state.records import SandboxRecord

ROOT = Path(__file__).parents[3]


class Cli:
    """Runs `voidbox`.

    Attributes:
        folder: for what a test likes; its path is short, for there are sockets in it.
        sandboxes: makes some without the command line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sandboxes = Sandboxes(folder)
        self.environment = {
            **os.environ, "VOIDBOX_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.environment.pop("NO_COLOR", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.unit.cli.fake_voidbox", *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.environment,
            **{"text": True, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
               "stderr": subprocess.PIPE, **options},
        )  # fmt: skip

    def __call__(
        self, *arguments: str, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(
            *arguments, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL
        )
        try:
            output, errors = process.communicate(input, timeout=60)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def ok(self, *arguments: str, input: str | None = None) -> str:
        """What a command prints that has nothing to complain about."""
        result = self(*arguments, input=input)
        assert (result.returncode, result.stderr) == (0, ""), (arguments, result)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: str, input: str | None = None) -> str:
        """The one line of a command that is refused."""
        result = self(*arguments, input=input)
        assert result.returncode == 2, (arguments, result)
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr.removeprefix("voidbox: ").rstrip()

    def machine(self) -> list[str]:
        """The options of `run` for a fake machine, whose user and workdir exist here."""
        (self.folder / "kernel").touch()
        (self.folder / "image").write_text('{"mode": ""}')
        return [
            "--kernel", str(self.folder / "kernel"), "--initramfs", str(self.folder / "image"),
            "--user", str(os.getuid()), "--workdir", str(self.folder),
        ]  # fmt: skip

    def launch(self, name: str, **values: object) -> SandboxRecord:
        """A sandbox that runs."""
        return self.sandboxes.launch(
            name=name, user=str(os.getuid()), workdir=str(self.folder), **values
        )

    def ended(self, name: str, **values: object) -> SandboxRecord:
        """A sandbox that has been made, and whose maker is gone: the next command buries it."""
        record = self.sandboxes.create(name=name, **values)
        self.sandboxes.store.release(record.id)
        return record


@pytest.fixture
def cli() -> Iterator[Cli]:
    folder = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    cli = Cli(folder)
    yield cli
    left = cli("ps", "--all", "--quiet").stdout.split()
    if left:
        cli("rm", "--force", *left)
    cli.sandboxes.close()
    shutil.rmtree(folder)
