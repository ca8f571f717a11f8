"""`voidbox run --workspace` and `voidbox workspace`, with fake machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from voidbox.cli.kept_options import parse_workspace
from voidbox.cli.workspace import parse_limit
from voidbox.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture
def guest(cli: Cli) -> Path:
    """What stands for /workspace, and the current folder of commands."""
    folder = cli.folder / "guest"
    folder.mkdir()
    cli.environment["FAKE_WORKSPACE"] = str(folder)
    return folder


@pytest.fixture
def work(cli: Cli) -> Path:
    folder = cli.folder / "work"
    folder.mkdir()
    (folder / "a").write_text("a\n")
    (folder / "b").write_text("b\n")
    return folder


def run(cli: Cli, *arguments: str) -> tuple[str, ...]:
    return ("run", *cli.machine(), "--net", "off", *arguments)


def test_the_option(tmp_path: Path) -> None:
    path = str(tmp_path)
    assert parse_workspace(None) == (None, "copy", "auto")
    assert parse_workspace(path) == (path, "copy", "auto")
    for mode in ("copy", "ro", "rw"):
        assert parse_workspace(f"{path}:{mode}") == (path, mode, "auto")
    for cache in ("auto", "always", "none"):
        assert parse_workspace(f"{path}:ro,cache={cache}") == (path, "ro", cache)
    for wrong in (f"{path}:rw,cache=some", f"{path},cache=always", f"{path}:copy,cache=none"):
        with pytest.raises(ConfigError, match="cache="):
            parse_workspace(wrong)
    (tmp_path / "a:b").mkdir()
    assert parse_workspace(f"{path}/a:b") == (f"{path}/a:b", "copy", "auto")
    for wrong in ("", "/", f"{path}/none", f"{path}:rx", "/dev/null"):
        with pytest.raises(ConfigError, match="workspace"):
            parse_workspace(wrong if wrong else "/nowhere")


def test_the_limit() -> None:
    for text, size in (("1K", 1024), ("0.5k", 512), ("4096", 4096), ("8G", 8 << 30)):
        assert parse_limit(text) == size
    for text in ("0", "0G", "", "-1", "1Q", "0.0001"):
        with pytest.raises(ConfigError, match="--limit"):
            parse_limit(text)


def test_a_command_and_its_changes(cli: Cli, guest: Path, work: Path) -> None:
    script = f"cd {guest} && echo more >> a && rm b && echo new > c; exit 7"
    result = cli(*run(cli, "--name", "box", "--workspace", "work", "-v", "--", "sh", "-c", script))
    assert result.returncode == 7
    lines = [line for line in result.stderr.splitlines() if line.startswith("workspace:")]
    assert lines[:-1] == ["workspace: + c", "workspace: * a", "workspace: - b"]
    assert lines[-1].endswith("work: 1 added, 1 changed, 1 deleted")
    assert sorted(os.listdir(work)) == ["a", "c"]
    assert (work / "a").read_text() == "a\nmore\n"


def test_a_conflict_is_told(cli: Cli, guest: Path, work: Path) -> None:
    script = f"echo g > {guest}/a; echo h > {work}/a"
    result = cli(*run(cli, "--name", "box", "--workspace", "work", "--", "sh", "-c", script))
    assert result.returncode == 0
    assert "conflict: a: changed on both sides: the sandbox's is a.voidbox-conflict" in (
        result.stderr
    )
    assert (work / "a").read_text() == "h\n"
    assert (work / "a.voidbox-conflict").read_text() == "g\n"


def test_a_sandbox_that_dies_before(cli: Cli, guest: Path, work: Path) -> None:
    script = f"echo g > {guest}/a; kill -9 $PPID; sleep 20"
    result = cli(*run(cli, "--name", "box", "--workspace", "work", "--", "sh", "-c", script))
    assert result.returncode not in (0, 125)
    assert f"nothing was copied back, and {work} is untouched" in result.stderr
    assert (work / "a").read_text() == "a\n"


def test_what_could_not_be_copied_back(cli: Cli, guest: Path, work: Path) -> None:
    (work / "d").mkdir()
    script = f"echo c > {guest}/d/c; mv {work}/d {work}/e; ln -s e {work}/d"
    result = cli(*run(cli, "--name", "box", "--workspace", "work", "--", "sh", "-c", script))
    assert result.returncode == 122
    assert "cannot copy back d/c: something on the way is a link" in result.stderr


@pytest.mark.slow
def test_stop_and_pull_say_what_they_could_not_copy(cli: Cli, guest: Path, work: Path) -> None:
    (work / "d").mkdir()
    cli.ok(*run(cli, "--detach", "--name", "box", "--workspace", "work"))
    (guest / "d/c").write_text("c")
    os.rename(work / "d", work / "e")
    (work / "d").symlink_to("e")
    assert cli("workspace", "pull", "box").returncode == 1
    result = cli("stop", "box")
    assert result.returncode == 2
    assert "not all was copied back" in result.stderr
    (work / "d").unlink()
    os.rename(work / "e", work / "d")
    cli.ok("stop", "box")
    assert os.listdir(work / "d") == ["c"]


@pytest.mark.slow
def test_pull_and_stop(cli: Cli, guest: Path, work: Path) -> None:
    cli.ok(*run(cli, "--detach", "--name", "box", "--workspace", "work"))
    shown = cli.json("inspect", "box")[0]
    assert (shown["workspace"], shown["workspace_mode"]) == (str(work), "copy")
    assert cli.ok("workspace", "pull", "box") == "0 added, 0 changed, 0 deleted\n"
    (guest / "c").write_text("c")
    assert cli.json("workspace", "pull", "box")["added"] == ["c"]
    (guest / "d").write_text("d" * 100_000)
    assert "nothing was" in cli.refused("workspace", "pull", "--limit", "4K", "box")
    cli.ok("stop", "box")
    assert sorted(os.listdir(work)) == ["a", "b", "c", "d"]
    cli.refused("workspace", "pull", "box")


def test_kill_copies_nothing(cli: Cli, guest: Path, work: Path) -> None:
    cli.ok(*run(cli, "--detach", "--name", "box", "--workspace", "work"))
    (guest / "c").write_text("c")
    cli.ok("kill", "box")
    assert sorted(os.listdir(work)) == ["a", "b"]


def test_what_does_not_fit(cli: Cli, work: Path) -> None:
    assert "no folder" in cli.refused(*run(cli, "-d", "--workspace", "none"))
    assert "--console" in cli.refused("run", "--console", "--workspace", "work")
    cli.launch("plain")
    assert "no workspace" in cli.refused("workspace", "pull", "plain")
