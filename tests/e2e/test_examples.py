"""The examples in real VMs, as docs/examples.md says to run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from voidbox.errors import ConfigError
from voidbox.images.store import ImageStore

pytestmark = pytest.mark.boot
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def built(guest_images: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default kernel and image are there."""
    monkeypatch.chdir(tmp_path)


def run(*command: str, timeout_s: float = 300) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / command[0]), *command[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def in_order(text: str, *pieces: str) -> None:
    at = 0
    for piece in pieces:
        assert piece in text[at:], f"{piece!r} is missing, or too early, in:\n{text}"
        at = text.index(piece, at) + len(piece)


def test_a_coding_agent_in_a_vm() -> None:
    in_order(
        run("claude_in_voidbox.py"),
        "[vsock] attempt 1 connect OK (cid=", "handshake OK (Pong received)", "a VM with 512 MiB",
        "plan: $ python3 ", "ExecResponse received exit_code=0", "PLAN: in calc.py",
        "apply: $ ", "ExecResponse received exit_code=0", "DONE: calc.py is mended",
        "tests: all tests passed", "+        result += number", "Demo completed",
    )  # fmt: skip


def test_run_script() -> None:
    assert run("run_script.py").splitlines() == [
        'exit code 0: [["to", 2], ["be", 2]]',
        "ended by its time limit: exit code 143",
        "crashed: exit code 139, signal 11",
    ]


def test_plot(tmp_path: Path) -> None:
    out = run("plot.py", "--output", "by-hand.png")
    assert "drawn by hand" in out
    assert (tmp_path / "by-hand.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_web_server() -> None:
    out = run("web_server.py")
    assert re.match(r"http://127\.0\.0\.1:\d+/ → <h1>Hello from a VM</h1>\n", out)
    assert '"GET / HTTP/1.1" 200' in out


def test_ten_sandboxes() -> None:
    assert "669 primes below 5000, by 10 sandboxes in " in run("ten_sandboxes.py")


def test_mcp_agent() -> None:
    out = run("mcp_agent.py")
    assert "sandbox_exec: exit code: 0\nstdout:\n13" in out
    assert "/workspace/divisors.py  " in out
    assert "sandbox_read_file: error: " in out
    assert re.search(r"sandbox_list: [\w-]+: running, 512 MiB", out)


def need_image(name: str, how: str) -> None:
    """Skip what needs an image that is not there."""
    try:
        ImageStore().find(name)
    except ConfigError:
        pytest.skip(f"no image {name!r}: {how}")


def test_claude_code_against_a_stand_in_for_its_api() -> None:
    need_image(
        "claude",
        "scripts/build_claude_rootfs.sh --version 2.1.112 makes it from npm, under Anthropic's "
        "terms, which is why make test does not",
    )
    in_order(
        run("claude_in_voidbox.py", "--real", "--mock-api", timeout_s=500),
        "the key stays here: the guest has a placeholder, and reaches host.voidbox.internal:",
        "[vsock] attempt 1 connect OK (cid=", "handshake OK (Pong received)",
        "(Claude Code), uid 1000",
        "plan: $ claude -p ", "api: Read", "api: PLAN", "ExecResponse received exit_code=0",
        "apply: $ claude -p ", "api: Edit", "api: Bash", "ExecResponse received exit_code=0",
        "DONE: total() adds now", "tests: all tests passed",
        "+        result += number", "+all tests passed", "Demo completed",
    )  # fmt: skip


def test_plot_by_matplotlib(tmp_path: Path) -> None:
    need_image(
        "plot",
        "voidbox image build plot --debian bookworm --package python3-matplotlib makes it, of "
        "1.1 GB of packages",
    )
    out = run("plot.py", "--image", "plot", "--output", "plot.png")
    assert "drawn by matplotlib " in out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
