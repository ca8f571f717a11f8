"""`voidbox image`, as a user runs it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.images.fake_registry import FakeRegistry, fake_registry
from tests.unit.images.made import StoreFolder
from tests.unit.images.oci import OciImage, make_image
from tests.unit.images.test_import import docker_archive, write_folder, write_tar
from voidbox.cli import main

pytestmark = pytest.mark.slow

IMAGE = make_image({"bin/": b"", "bin/sh": b"#!" * 500}, {"etc/motd": b"hello"})
RAW = make_image({"a": b"raw"}, raw=True)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        registry.add(IMAGE)
        yield registry


def stored(cli: Cli) -> StoreFolder:
    return StoreFolder(cli.folder / "state")


def test_pull_says_what_it_does(cli: Cli, registry: FakeRegistry) -> None:
    name = registry.name()
    result = cli("image", "pull", name)
    assert (result.returncode, result.stdout) == (0, f"{name}:latest\n")
    lines = result.stderr.splitlines()
    layers = [f"layer {digest[7:19]} {len(IMAGE.blobs[digest])}B" for digest in IMAGE.layers]
    assert sorted(lines[:2]) == sorted(f"{layer} downloaded" for layer in layers)
    assert lines[2:] == [f"{name}:latest is here: {IMAGE.id[7:19]}, 8K"]
    result = cli("image", "pull", name)
    assert result.stderr == f"{name}:latest is up to date: {IMAGE.id[7:19]}, 8K\n"
    assert cli.ok("image", "pull", "--quiet", name) == f"{name}:latest\n"


def test_pull_as_json(cli: Cli, registry: FakeRegistry) -> None:
    values = json.loads(cli("image", "pull", "--json", "--quiet", registry.name()).stdout)
    assert values["id"] == IMAGE.id and values["names"] == [f"{registry.name()}:latest"]
    assert values["config"]["cmd"] == ["sh"] and values["digest"] == IMAGE.digest
    assert [layer["digest"] for layer in values["layers"]] == list(IMAGE.layers)
    assert Path(values["path"]).stat().st_size == values["size_bytes"]
    assert cli.json("image", "inspect", registry.name()) == [values]
    assert cli.json("image", "ls") == [values]


@pytest.fixture
def refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return what runs an action here, and returns the one line with which it is refused."""
    monkeypatch.setenv("VOIDBOX_STATE", cli.environment["VOIDBOX_STATE"])

    def run(*arguments: str) -> str:
        assert main(["image", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("voidbox: ")

    return run


def test_what_is_refused_is_one_line(
    cli: Cli, registry: FakeRegistry, refused: Callable[..., str]
) -> None:
    assert "is no image's name" in refused("pull", "Nonsense:")
    assert "no such manifest" in refused("pull", registry.name(tag="none"))
    assert "is no platform" in refused("pull", registry.name(), "--platform", "amd64")
    assert "no image none" in refused("inspect", "none")
    assert "no image none" in refused("rm", "none")
    assert "cannot read" in refused("import", "x", "/none")
    source = str(write_folder(cli.folder / "root", {"a": b"a"}))
    assert "No closing quotation" in refused("import", "x", source, "--cmd", "'a")
    assert "is not absolute" in refused("import", "x", source, "--workdir", "a")
    assert "give NAME=VALUE" in refused("import", "x", source, "--env", "=a")
    assert "is no name of a Debian" in refused("build", "x", "--debian", "a b")
    assert "mirror" in refused("build", "x", "--debian", "sid", "--mirror", "file:/x")


def test_import(cli: Cli) -> None:
    root = write_folder(cli.folder / "root", {"etc/motd": b"hello"})
    arguments = ["--env", "A=1", "--entrypoint", "/bin/tool 'a b'", "--cmd=-x", "--user", "me"]
    result = cli("image", "import", "tool", str(root), *arguments, "--workdir", "/srv")
    assert (result.returncode, result.stdout) == (0, "tool:latest\n")
    (values,) = cli.json("image", "inspect", "tool")
    config = values["config"]
    assert (config["entrypoint"], config["cmd"]) == (["/bin/tool", "a b"], ["-x"])
    assert (config["user"], config["workdir"], config["env"]["A"]) == ("me", "/srv", "1")
    saved = write_tar(cli.folder / "saved", docker_archive((RAW, ["a"]), (IMAGE, ["b"])))
    assert "choose one with --tag: a, b" in cli.refused("image", "import", "x", str(saved))
    assert cli("image", "import", "x", "./saved", "--tag", "a", "--quiet").stdout == "x:latest\n"
    assert cli.json("image", "inspect", "x")[0]["id"] == RAW.id


def test_ls_and_inspect(cli: Cli) -> None:
    assert cli.ok("image", "ls") == "NAME  ID  SIZE  CREATED  PLATFORM\n"
    made = stored(cli).add("python:3.12", created_at=None)
    stored(cli).add("registry.example:5000/a/b", b"x" * 2000)
    rows = [line.split() for line in cli.ok("image", "ls").splitlines()[1:]]
    assert [row[0] for row in rows] == ["registry.example:5000/a/b:latest", "python:3.12"]
    assert re.fullmatch(r"[0-9]+m?[0-9]*s", rows[1].pop(3))  # since it was added
    assert rows[1][1:] == [made.id[7:19], "4B", "ago", "linux/amd64"]
    names = ["registry.example:5000/a/b:latest", "python:3.12"]
    assert cli.ok("image", "ls", "--quiet").split() == names
    text = cli.ok("image", "inspect", "python:3.12", made.id[7:13])
    assert text.count(made.path) == 2 and "config.cmd" in text and '["sh"]' in text


def test_damage_is_told_and_the_rest_is_listed(cli: Cli) -> None:
    made = stored(cli).add("bad", b"bad")
    stored(cli).add("good", b"good")
    (Path(made.path).parent / "config.json").write_text("{")
    result = cli("image", "ls", "--quiet")
    assert (result.returncode, result.stdout) == (2, "good:latest\n")
    assert len(result.stderr.splitlines()) == 1 and "is damaged" in result.stderr
    assert cli.ok("image", "rm", "bad") == "bad\n"
    assert cli.ok("image", "ls", "--quiet") == "good:latest\n"


def test_rm(cli: Cli) -> None:
    made = stored(cli).add("a")
    stored(cli).add("b", b"b")
    with open(made.path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert "a sandbox runs a" in cli.refused("image", "rm", "a")
        assert cli.ok("image", "rm", "--force", "a") == "a\n"
    result = cli("image", "rm", "--json", "b", "none")
    assert result.returncode == 2
    gone, missing = json.loads(result.stdout)
    assert gone == {"name": "b", "ok": True, "is_gone": True, "error": None}
    assert not missing["ok"] and "no image none" in missing["error"]


@pytest.mark.slow
def test_prune(cli: Cli, registry: FakeRegistry) -> None:
    cli("image", "pull", registry.name())
    old = stored(cli).add("a", b"old")
    stored(cli).add("a", b"new")
    (stored(cli).images / "partial" / ("0" * 64)).write_bytes(b"x")
    result = cli("image", "prune", "--dry-run", "--json")
    planned = json.loads(result.stdout)
    assert planned["images"] == [old.id] and planned["layers"] == 1 and planned["dry_run"]
    assert len(cli.json("image", "ls")) == 3
    result = cli("image", "prune")
    assert result.stdout == f"{old.id[7:19]}\n"
    assert result.stderr.startswith("freed 8K: images: 1, layers: 1")
    blobs = stored(cli).images / "blobs/sha256"
    assert len(list(blobs.iterdir())) == 2
    fd = os.open(blobs, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # as whoever pulls
        assert not cli.json("image", "prune", "--layers")["is_complete"]
        assert "is being pulled: its layers stay" in cli("image", "prune", "--layers").stderr
    finally:
        os.close(fd)
    assert cli.json("image", "prune", "--layers")["layers"] == 2
    assert len(stored(cli).store.list()[0]) == 2 and not list(blobs.iterdir())


@pytest.mark.parametrize("action", [["ls"], ["inspect", "a"], ["rm", "a"], ["prune"]])
def test_what_only_looks_starts_quickly(action: list[str], cli: Cli) -> None:
    stored(cli).add("a")
    code = f"import sys, voidbox.cli as c; c.main(['image', *{action!r}]); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {"asyncio", "logging", "cffi", "subprocess", "socket", "threading", "urllib3", "ssl"}
    assert not set(result.stdout.split()) & slow


def test_nothing_else_loads_what_pulling_needs(cli: Cli) -> None:
    code = "import sys; from voidbox import images; images.ImageStore; images.import_"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"],
        env=cli.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "urllib3" not in result.stdout.split()


def test_a_pull_that_is_interrupted(cli: Cli, registry: FakeRegistry) -> None:
    image: OciImage = IMAGE

    def stall(handler: object, request: object) -> bool:
        registry.release.wait(20)
        return False

    registry.on(image.layers[0], stall, times=1)
    process = cli.start("image", "pull", registry.name())
    while not registry.count(image.layers[0]):
        assert process.poll() is None
    process.send_signal(2)
    registry.release.set()
    assert process.wait(60) == 130
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
    assert process.stdout is not None
    process.stdout.close(), process.stderr.close()
    assert not stored(cli).names() and not stored(cli).leftovers()
