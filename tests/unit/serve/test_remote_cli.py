"""`voidbox --remote URL VERB` against a server, with stand-ins for the machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.serve.conftest import ROOT, StandIn

pytestmark = pytest.mark.slow

_LIMIT_S = 120


class Voidbox:
    """The command, as a user of the server has it."""

    def __init__(self, server: StandIn, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def __call__(
        self, *words: str, stdin: str | None = None, key: str | None = None, url: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        remote = url or f"http://127.0.0.1:{self._server.port}"
        return subprocess.run(
            [sys.executable, "-m", "voidbox", "--remote", remote, *words],
            cwd=self._folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "VOIDBOX_STATE": str(self._folder / "no-state-here"),
                "VOIDBOX_API_KEY": self._server.key if key is None else key,
            },
            input=stdin, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
        )  # fmt: skip

    def lines(self, *words: str) -> list[str]:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def voidbox(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Voidbox:
    return Voidbox(server, tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def builder(voidbox: Voidbox) -> Iterator[str]:
    """A sandbox that stays."""
    (name,) = voidbox.lines(
        "run", "--detach", "--name", "builder", "--env", "A=1", "--timeout", "9m"
    )
    yield name
    voidbox("kill", name)


def test_a_command_in_a_fresh_sandbox(voidbox: Voidbox, server: StandIn) -> None:
    before = server.records()
    done = voidbox("run", "--", "/bin/sh", "-c", "cat; echo err >&2; exit 7", stdin="in")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "err\n")
    assert server.records() == before


def test_exec_shell_and_cp(voidbox: Voidbox, builder: str, tmp_path: Path) -> None:
    assert voidbox.lines("exec", builder, "--", "/bin/sh", "-c", "echo $A") == ["1"]
    assert voidbox("exec", "-i", builder, "--", "cat", stdin="x").stdout == "x"
    assert voidbox("exec", builder, "--", "/bin/sh", "-c", "exit 3").returncode == 3
    assert voidbox("shell", builder, stdin="echo $((6 * 7))\n").stdout == "42\n"
    (tmp_path / "a").write_text("one")
    voidbox.lines("cp", "-q", str(tmp_path / "a"), f"{builder}:{tmp_path}/b")
    voidbox.lines("cp", "-q", f"{builder}:{tmp_path}/b", str(tmp_path / "c"))
    assert (tmp_path / "c").read_text() == "one"


def test_lists(voidbox: Voidbox, builder: str) -> None:
    assert voidbox.lines("ps", "--quiet") == [builder]
    (shown,) = json.loads("\n".join(voidbox.lines("ps", "--json")))
    assert shown["name"] == builder and shown["state"] == "running" and shown["envs"]["A"] == "1"
    assert builder in voidbox.lines("ps")[1]
    (shown,) = json.loads("\n".join(voidbox.lines("inspect", builder)))
    assert shown["name"] == builder
    assert "the guest boots" in voidbox.lines("logs", builder)


def test_its_life(voidbox: Voidbox, builder: str, server: StandIn) -> None:
    for verb, state in (("pause", "paused"), ("suspend", "suspended")):
        assert voidbox.lines(verb, builder) == [builder]
        assert json.loads("\n".join(voidbox.lines("ps", "--json")))[0]["state"] == state
        refused = voidbox("exec", builder, "--", "true")
        assert refused.returncode == 2 and f"{builder} is {state}" in refused.stderr
        assert voidbox.lines("resume", builder) == [builder]
        assert voidbox.lines("exec", builder, "--", "echo", "on") == ["on"]
    for end in (("stop", "other"), ("rm", "--force", "other")):
        voidbox.lines("run", "-d", "--name", "other", "--", "/bin/sleep", "1000")
        assert voidbox.lines(*end) == ["other"]
    assert len(server.records()) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("port", "ls", "x"), "port is not carried by a server"),
        (("prune",), "prune is not carried by a server"),
        (("run", "--publish", "80:80", "--", "true"), "run --publish is not carried by a server"),
        (("run", "--workspace", ".", "--", "true"), "run --workspace is not carried"),
        (("doctor",), "doctor is about this host"),
        (("run", "--memory", "64G", "--", "true"), "512 MiB at most"),
        (("exec", "no-such", "--", "true"), "'no-such' not found"),
        (("kill", "no-such"), "'no-such' not found"),
        (("rm", "builder"), "rm --force ends it first"),
        (("nonsense",), "no such verb: nonsense"),
        ((), "usage: voidbox --remote URL VERB"),
    ],
)
def test_what_is_refused(voidbox: Voidbox, builder: str, words: tuple[str, ...], why: str) -> None:
    done = voidbox(*words)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2


def test_wrong_keys_and_servers(voidbox: Voidbox) -> None:
    for done, why in (
        (voidbox("ps", key="e2b_wrong"), "Invalid API key"),
        (voidbox("ps", key=""), "set VOIDBOX_API_KEY"),
        (voidbox("ps", url="http://127.0.0.1:1"), "cannot reach http://127.0.0.1:1"),
        (voidbox("ps", url="nonsense"), "is no server"),
    ):
        assert done.returncode == 2 and why in done.stderr
        assert done.stderr.count("\n") == 1
