"""Agent frameworks, as the registries have them, do a task with the server; models are stand-ins.

`make frameworks` fetches them. Nothing but the server can be reached from where they run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.serve.conftest import StandIn
from tests.unit.serve.sdk_versions import SDKS
from tests.unit.serve.test_interpreter import KERNELS, ended
from tests.unit.serve.test_sdks import HERE, run, server

__all__ = ["ended", "server"]

pytestmark = pytest.mark.slow


def python_of(name: str) -> str:
    python = SDKS / f"py-{name}" / "bin" / "python"
    if not python.exists() or not KERNELS.exists():
        pytest.skip("make frameworks fetches the frameworks, make sdks what runs code")
    return str(python)


def test_smolagents(server: StandIn) -> None:
    """Its code runs in the code interpreter."""
    found = run(server, [python_of("smolagents"), str(HERE / "smolagent.py"), str(KERNELS)])
    assert found["answer"] == [30, "true"], found  # type: ignore[comparison-overlap]
    assert "Traceback" not in server.log.read_text() and server.records() == []


def test_langchain_deepagents(server: StandIn, tmp_path: Path) -> None:
    """Its tools are commands and files."""
    found = run(server, [python_of("langchain"), str(HERE / "deepagent.py"), str(tmp_path)])
    wrote, ran, read = json.loads(found["answer"])
    assert "job.sh" in wrote and ran.startswith("42\ntrue") and "42" in read, found
    assert "Traceback" not in server.log.read_text() and server.records() == []
