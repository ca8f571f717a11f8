"""The coding agent's example, where there is no VM."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.examples.conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.slow

FAKE_CLAUDE = Path(__file__).with_name("fake_claude.py")


def example(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example where there is neither kernel nor image."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "claude_in_voidbox.py"), *arguments],
        env={**os.environ, "VOIDBOX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def in_order(text: str, *pieces: str) -> None:
    at = 0
    for piece in pieces:
        assert piece in text[at:], f"{piece!r} is missing, or too early, in:\n{text}"
        at = text.index(piece, at) + len(piece)


def test_the_mock_works_without_anything(tmp_path: Path) -> None:
    result = example(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    in_order(
        result.stdout,
        "no VM here (", "NOTHING IS ISOLATED",
        "[vsock] attempt 1 connect OK (cid=", "handshake OK (Pong received)",
        "plan: $ ", "ExecResponse received exit_code=0", "PLAN: in calc.py",
        "apply: $ ", "ExecResponse received exit_code=0", "DONE: calc.py is mended",
        "ExecResponse received exit_code=0", "tests: all tests passed",
        "-        result -= number", "+        result += number", "Demo completed\n",
    )  # fmt: skip
    assert result.stdout.endswith("Demo completed\n")
    first, second = (line.split()[-1] for line in result.stdout.splitlines() if ": $ " in line)
    assert first == second, "the second turn resumes the first one's session"


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--real"], 1, "Demo failed: --real needs a VM, but "),
        (["--mock-api"], 2, "go with --real"),
        (["--real", "--mock-api", "--task", "x", "--folder", "/"], 2, "one task alone"),
        (["--real", "--mock-api", "--key-in-guest"], 2, "no key in the guest"),
        (["--real", "--task", "x"], 2, "both, or neither"),
        (["--real", "--task", "x", "--folder", "/nowhere"], 2, "no such folder"),
    ],
)
def test_what_cannot_be_is_told(
    arguments: list[str], status: int, why: str, tmp_path: Path
) -> None:
    result = example(tmp_path, *arguments)
    assert result.returncode == status
    assert why in result.stdout + result.stderr


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example with a local guest for a VM, and a program of ours for Claude Code."""
    pytest.importorskip("cryptography")
    import claude_in_voidbox
    from local_guest import LocalGuest

    options: dict[str, Any] = {}

    @contextlib.contextmanager
    def sandbox(folder: Path, agent: Any, **given: Any) -> Iterator[Any]:
        options.update(given)
        if "secrets" in given:  # no guard is between: the program has the key itself
            (secret,) = given["secrets"]
            agent.envs.update(
                {secret.name: secret.value, "SSL_CERT_FILE": os.environ["SSL_CERT_FILE"]}
            )
        with LocalGuest() as guest:
            options["workspace"] = str(guest.workspace)
            apis[0].folder = str(guest.workspace)
            guest.files.upload(folder, ".")
            yield guest
            guest.files.download(".", folder)

    apis: list[Any] = []
    make_api = claude_in_voidbox.MockApi

    def api(**given: Any) -> Any:
        apis.append(make_api(**given))
        return apis[-1]

    fake = claude_in_voidbox.CLAUDE._replace(command=(sys.executable, str(FAKE_CLAUDE)))
    monkeypatch.setattr(claude_in_voidbox, "CLAUDE", fake)
    monkeypatch.setattr(claude_in_voidbox, "MockApi", api)
    monkeypatch.setattr(claude_in_voidbox, "_sandbox", sandbox)
    monkeypatch.setattr(claude_in_voidbox, "no_vm_reason", lambda: "")
    monkeypatch.setattr(claude_in_voidbox, "MOCK_HOST", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", "")  # what the example sets does not stay
    logger = logging.getLogger("voidbox")
    handlers, level = logger.handlers[:], logger.level
    claude_in_voidbox.options, claude_in_voidbox.apis = options, apis  # type: ignore[attr-defined]
    yield claude_in_voidbox
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_the_real_ones_way_to_the_mock_api(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["claude_in_voidbox.py", "--real", "--mock-api"])
    assert demo.main() == 0, capsys.readouterr().out
    in_order(
        capsys.readouterr().out,
        "the key stays here: the guest has a placeholder, and reaches localhost:",
        "0.0 (fake), uid ",
        "plan: $ ", "api: Read", "api: PLAN", "  PLAN: in calc.py",
        "apply: $ ", "api: Read", "api: Edit", "api: Bash", "  DONE: ",
        "tests: all tests passed",
        "+        result += number", "+all tests passed", "Demo completed",
    )  # fmt: skip
    (api,) = demo.apis
    assert set(api.keys) == {"the real key"}
    place = f"localhost:{api.port}"
    (secret,) = demo.options["secrets"]
    assert (secret.name, secret.hosts) == ("ANTHROPIC_API_KEY", [place])
    assert demo.options["http"] == [f"POST {place}/v1/messages*"]
    assert demo.options["outbound_domain_allowlist"] == []
    assert len(demo.options["allow_host_ports"]) == 1


def test_a_key_is_needed_for_the_real_api(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["claude_in_voidbox.py", "--real"])
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert demo.main() == 1
    assert "set ANTHROPIC_API_KEY, which stays on this host" in capsys.readouterr().out


def test_a_key_in_the_guest_opens_the_apis_host_alone(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.apis.append(SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["claude_in_voidbox.py", "--real", "--key-in-guest"])
    monkeypatch.setenv("ANTHROPIC_API_KEY", "mine")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")  # of the fake: nobody listens
    assert demo.main() == 1
    assert demo.options["allow"] == ["api.anthropic.com:443"]
    assert "allow_host_ports" not in demo.options
    assert "the guest has the key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("print('nonsense')", "makes no sense"),
        ("print('[]')", "makes no sense"),
        ("print('[' * 100000)", "makes no sense"),
        ("import sys; sys.exit('\\x1b[2Jno luck')", r"exit code 1: \x1b[2Jno luck"),
        ('print(\'{"is_error": true, "result": "I give up"}\')', "says that it failed"),
    ],
)
def test_an_agent_that_fails_is_told_and_its_words_are_harmless(
    written: str, why: str, tmp_path: Path
) -> None:
    import claude_in_voidbox as example
    from local_guest import LocalGuest

    (tmp_path / "agent.py").write_text(written)
    agent = example.Agent((sys.executable, str(tmp_path / "agent.py")), {})
    with LocalGuest() as guest, pytest.raises(example.DemoFailed) as raised:
        example.two_turns(guest, agent, "a task")
    assert why in str(raised.value)


def test_nothing_changed_is_a_failure(tmp_path: Path) -> None:
    import claude_in_voidbox as example

    with pytest.raises(example.DemoFailed, match="nothing has changed"):
        example._show_changes({"a": "1"}, {"a": "1"}, tmp_path)


def test_the_stand_in_needs_its_sessions_plan(tmp_path: Path) -> None:
    import claude_in_voidbox as example

    for name, text in example.PROJECT.items():
        (tmp_path / name).write_text(text)

    def turn(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "stand_in_agent.py"), "-p", "x", *arguments],
            cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == answer["is_error"]
        return answer

    assert turn("--resume", "one")["is_error"]
    assert turn("--session-id", "one")["result"].startswith("PLAN: ")
    assert turn("--resume", "other")["is_error"]
    assert turn("--resume", "one")["result"].startswith("DONE: ")
    assert "nothing to do" in turn("--session-id", "two")["result"]


def test_the_mock_api_wants_the_plan_of_the_first_turn() -> None:
    import mock_anthropic_api as api

    prompt = {"role": "user", "content": "do it"}
    plan = {"role": "assistant", "content": [{"type": "text", "text": api.PLAN}]}
    other = {"role": "assistant", "content": [{"type": "text", "text": "something else"}]}

    def step(*messages: Any, tools: Any = ("Read",)) -> Any:
        return api.next_step({"messages": list(messages), "tools": list(tools)}, "/workspace")

    assert step(prompt, tools=()) == "ok"
    assert step(prompt)[0] == "Read"
    assert step(prompt, plan, prompt)[0] == "Read"
    assert "no plan" in step(prompt, other, prompt)
