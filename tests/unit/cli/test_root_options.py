"""`run --image` and what goes with it: the record, the disk, and what is run. Fake machines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.images.made import StoreFolder
from voidbox.images.config import ImageConfig
from voidbox.sandbox.root import UPPER_FILE

pytestmark = pytest.mark.slow


@pytest.fixture
def images(cli: Cli) -> StoreFolder:
    """A store of images, and a cache with what boots them: a fake machine's options."""
    built = cli.folder / "cache" / "images" / "current-builtin"
    built.mkdir(parents=True)
    for name in ("boot.cpio", "runtime.erofs", "initramfs.cpio"):
        (built / name).write_text(json.dumps({"mode": ""}))
    (cli.folder / "kernel").touch()
    cli.environment["VOIDBOX_CACHE"] = str(cli.folder / "cache")
    return StoreFolder(cli.folder / "state")


def machine(cli: Cli) -> list[str]:
    """The options for a fake machine, whose agent can only act as this user."""
    return [
        "--kernel", str(cli.folder / "kernel"), "--user", str(os.getuid()), "--workdir",
        str(cli.folder),
    ]  # fmt: skip


def test_a_sandbox_has_an_image_and_a_disk(cli: Cli, images: StoreFolder) -> None:
    made = images.add("web:1", config=ImageConfig(env={"A": "1", "B": "2"}))
    arguments = ["run", "-d", *machine(cli), "--image", "web:1", "--disk-size", "1G", "-e", "B=3"]
    shown = json.loads(cli.ok(*arguments, "--name", "box", "--json"))
    assert (shown["image"], shown["envs"]) == ("web:1", {"A": "1", "B": "3"})
    assert shown["root"] == {
        "boot": str(cli.folder / "cache/images/current-builtin/boot.cpio"),
        "runtime": str(cli.folder / "cache/images/current-builtin/runtime.erofs"),
        "image": made.path, "disk_bytes": 1 << 30, "digest": made.id, "user": "", "workdir": "",
        "volumes": [], "init": "", "modules": "",
    }  # fmt: skip
    disk = Path(shown["folder"], UPPER_FILE)
    assert disk.stat().st_size == 1 << 30
    assert " web:1 " in cli.ok("ps")
    assert made.id in cli.ok("inspect", "box")
    cli.ok("stop", "box")
    assert disk.exists()
    # It is as large as what was written.
    freed = json.loads(cli.ok("prune", "--dry-run", "--json"))
    assert freed["removed"] == ["box"] and freed["bytes"] < 1 << 20
    cli.ok("rm", "box")
    assert not disk.exists()


@pytest.mark.slow
def test_the_entrypoint_is_run_in_the_background(cli: Cli, images: StoreFolder) -> None:
    target = cli.folder / "ran"
    config = ImageConfig(entrypoint=("touch", f"{target}-1"), cmd=(f"{target}-2",))
    images.add("tool", config=config)
    run = ["run", "-d", *machine(cli), "--image", "tool", "--name"]
    cli.ok(*run, "one")
    cli.ok(*run, "two", "--", f"{target}-3")
    cli.ok(*run, "three", "--entrypoint", "touch", "--", f"{target}-4")
    for name in ("one", "two", "three"):
        cli.ok("exec", name, "--", "true")  # which comes after
    names = sorted(path.name for path in cli.folder.glob("ran-*"))
    assert names == ["ran-1", "ran-2", "ran-3", "ran-4"]
    cli.ok("rm", "--force", "one", "two", "three")


def test_the_tiny_image_has_no_disk(cli: Cli, images: StoreFolder) -> None:
    shown = json.loads(cli.ok("run", "-d", *machine(cli), "--name", "own", "--json"))
    assert shown["image"] == "tiny"
    assert (shown["root"]["image"], shown["root"]["disk_bytes"]) == ("", 0)
    assert not Path(shown["folder"], UPPER_FILE).exists()
    assert cli.ok("ps").splitlines()[1].split().count("-") >= 1
    cli.ok("rm", "--force", "own")


@pytest.mark.parametrize("detach", [["-d"], []])
def test_what_cannot_be_is_refused(cli: Cli, images: StoreFolder, detach: list[str]) -> None:
    run = ["run", *detach, *machine(cli)]
    images.add("web")
    assert "no image nothing" in cli.refused(*run, "--image", "nothing")
    assert "give a name" in cli.refused(*run, "--image", "")
    assert "give one of them" in cli.refused(*run, "--image", "web", "--initramfs", "x", "--", "a")
    assert "no amount of memory" in cli.refused(*run, "--image", "web", "--disk-size", "big")
    assert "choose 16M to 16T" in cli.refused(*run, "--image", "web", "--disk-size", "1M")
    told = cli.refused(*run, "--initramfs", "x", "--disk-size", "1G", "--", "a")
    assert "is an initramfs" in told
    assert cli.ok("ps", "--all", "--quiet") == ""
