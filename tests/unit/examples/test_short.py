"""The short examples, with fake machines: everything but the VM is real."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.unit.agent.conftest import agent_path
from tests.unit.examples.conftest import EXAMPLES, ROOT
from tests.unit.mcp_server.test_server import Server
from tests.unit.test_docs import fake_machines
from voidbox.mcp_server.server import make_server
from voidbox.mcp_server.shelf import Shelf

pytestmark = pytest.mark.slow

__all__ = ["agent_path", "fake_machines"]


def test_run_script(fake_machines: None, capsys: pytest.CaptureFixture[str]) -> None:
    import run_script

    run_script.main(0.3)
    assert capsys.readouterr().out.splitlines() == [
        'exit code 0: [["to", 2], ["be", 2]]',
        "ended by its time limit: exit code 143",
        "crashed: exit code 139, signal 11",
    ]


def test_plot(fake_machines: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import plot

    plot.main(output=str(tmp_path / "plot.png"))
    out = capsys.readouterr().out
    assert out.startswith("288 rows, mean ") and "drawn by" in out
    assert (tmp_path / "plot.png").read_bytes().startswith(plot.PNG)


def test_ten_sandboxes(fake_machines: None, capsys: pytest.CaptureFixture[str]) -> None:
    import ten_sandboxes

    asyncio.run(ten_sandboxes.main(2))
    assert "669 primes below 5000, by 2 sandboxes in " in capsys.readouterr().out


def test_mcp_agent(agent_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mcp_agent

    server = Server(agent_path, tmp_path)
    asyncio.run(mcp_agent.main(make_server(Shelf(server.make))))
    out = capsys.readouterr().out
    assert "sandbox_exec: exit code: 0\nstdout:\n13\n" in out
    assert "sandbox_read_file: error: " in out
    assert "sandbox_list: box-1: running, 512 MiB" in out


def test_all_are_told_and_tested() -> None:
    page = (ROOT / "docs/examples.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tests += (ROOT / "tests/e2e/test_examples.py").read_text()
    tests += (ROOT / "tests/unit/ray/test_cluster.py").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in page, path.name
        assert re.search(rf"\b{path.stem}\b", tests), path.name
