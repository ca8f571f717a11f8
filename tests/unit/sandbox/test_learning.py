"""When a snapshot's working set is looked at; the machine is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from voidbox.errors import HostError
from voidbox.sandbox.process.learning import Learning
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.snapshots.record import FORK, TEMPLATE
from voidbox.snapshot import working_set


class FakeMachine:
    def __init__(self, is_gone: bool = False) -> None:
        self.looks = 0
        self.is_gone = is_gone

    def record_working_set(self, path: str, bytes_max: int) -> int:
        if self.is_gone:
            raise HostError("the machine's process has ended")
        self.looks += 1
        Path(path).write_text("touched")
        return 1


def learn(folder: Path, machine: FakeMachine, kind: str = TEMPLATE) -> Path:
    """A sandbox that ends at once after its agent's answer."""
    (folder / "own").mkdir(exist_ok=True)
    record: Any = type("Record", (), {"kind": kind})
    source = Source(str(folder), record, b"")
    learning = Learning(cast(Any, machine), source, str(folder / "own"), answered_s=15.0)
    learning.close()
    learning.close()
    return folder / working_set.NAME


def test_a_sandbox_that_lives_for_a_moment_is_looked_at_as_it_ends(tmp_path: Path) -> None:
    machine = FakeMachine()
    assert learn(tmp_path, machine).read_text() == "touched"
    assert learn(tmp_path, machine).exists() and machine.looks == 1  # once is enough
    assert not list((tmp_path / "own").iterdir())


def test_what_nobody_else_is_made_of_is_not_looked_at(tmp_path: Path) -> None:
    assert not learn(tmp_path, FakeMachine(), FORK).exists()


def test_a_machine_that_is_gone_teaches_nothing(tmp_path: Path) -> None:
    assert not learn(tmp_path, FakeMachine(is_gone=True)).exists()
