"""`voidbox volume` and `--volume`, as a user gives them."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli

pytestmark = pytest.mark.slow


def test_a_volume_from_create_to_rm(cli: Cli) -> None:
    assert cli.ok("volume", "ls").splitlines() == ["NAME  SIZE  USED  CREATED  IN USE"]
    assert cli.ok("volume", "create", "cache", "b", "--size", "20G") == "cache\nb\n"
    b, cache = cli.json("volume", "ls")
    assert (b["name"], cache["name"], cache["size_bytes"]) == ("b", "cache", 20 << 30)
    row = cli.ok("volume", "ls").splitlines()[2].split()
    assert row[:3] == ["cache", "20G", "0B"] and row[-1] == "-"
    assert cli.ok("volume", "ls", "-q") == "b\ncache\n"
    assert cli.json("volume", "inspect", "cache") == [cache]
    shown = dict(line.split(maxsplit=1) for line in cli.ok("volume", "inspect", "b").splitlines())
    assert (shown["size_bytes"], shown["is_in_use"]) == ("20G", "no")
    assert cli.json("volume", "create", "c")[0]["size_bytes"] == 8 << 30
    fd = os.open(cache["path"], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert cli.ok("volume", "ls").splitlines()[3].split()[-1] == "yes"
    result = cli("volume", "rm", "cache", "b", "none", "--json")
    os.close(fd)
    assert result.returncode == 2
    outcomes = {one["name"]: one["error"] for one in json.loads(result.stdout)}
    assert outcomes["cache"] == "a sandbox has the volume cache: stop it first"
    assert outcomes["b"] is None and outcomes["none"].startswith("no volume 'none'")
    assert cli.ok("volume", "rm", "cache", "c") == "cache\nc\n"
    assert cli.ok("volume", "ls", "-q") == ""


def test_what_cannot_be_is_one_line(cli: Cli) -> None:
    assert "choose 16M to 16T" in cli.refused("volume", "create", "x", "--size", "1M")
    assert "no amount of memory" in cli.refused("volume", "create", "x", "--size", "much")
    assert "cannot be a volume's name" in cli.refused("volume", "create", "a/b")
    assert "no volume 'x'" in cli.refused("volume", "inspect", "x")
    for volume, why in (
        ("x:/x", "no volume 'x': voidbox volume create x makes one"),
        ("./none:/x", "none: make it first"),
        ("x", "give SOURCE:TARGET[:ro]"),
        (".:/proc", "is the guest's own"),
    ):
        for kept in ([], ["-d"]):
            message = cli.refused("run", *kept, *cli.machine(), "--volume", volume, "--", "true")
            assert why in message
    cli.ok("volume", "create", "x")
    options = ["--workspace", ".", "--volume", "x:/workspace/x", "--", "true"]
    assert "copied back with it" in cli.refused("run", *cli.machine(), *options)
    console = cli.refused("run", *cli.machine(), "--console", "--volume", "x:/x")
    assert "need the agent" in console
    assert not os.listdir(cli.folder / "state/sandboxes") and cli.ok("ps", "-a", "-q") == ""


def test_a_sandbox_has_its_volumes(cli: Cli) -> None:
    cli.ok("volume", "create", "cache")
    (cli.folder / "data").mkdir()
    volumes = ["--volume", "cache:/c", "--volume", "./data:/d:ro"]
    cli.ok("run", "-d", "--name", "box", *cli.machine(), *volumes)
    (box,) = cli.json("inspect", "box")
    assert box["volumes"] == ["cache:/c", f"{cli.folder}/data:/d:ro"]
    result = cli("run", "--name", "two", *cli.machine(), *volumes, "--", "pwd")
    assert (result.returncode, result.stdout.strip()) == (0, str(cli.folder))
    (two,) = cli.json("inspect", "two")
    assert two["reason"] == "it was stopped"  # and not killed
    log = Path(cli.sandboxes.store.path(two["id"], "owner.log")).read_text()
    assert "asking the guest's agent to shut down" in log
