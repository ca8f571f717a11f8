"""snapshot, fork, suspend, resume, and run --snapshot, with fake machines whose agents are real."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.sandbox.owned import wait_until
from voidbox.cli import exit_status

pytestmark = pytest.mark.slow


def test_from_create_to_rm(cli: Cli) -> None:
    cli.launch("box", envs={"A": "1"})
    assert cli.ok("snapshot", "create", "box", "ready") == "ready\n"
    (made,) = cli.json("snapshot", "ls")
    assert (made["name"], made["kind"], made["sandbox"]["name"]) == ("ready", "snapshot", "box")
    assert made["size_bytes"] > 0 and made["parent"] == "" and not made["is_in_use"]
    assert cli.json("snapshot", "inspect", made["id"][:6]) == [made]
    assert re.search(r"^sandbox +box \(", cli.ok("snapshot", "inspect", "ready"), re.M)
    assert cli.ok("snapshot", "ls", "-q") == "ready\n"
    assert cli.ok("run", "-d", "--snapshot", "ready", "--name", "copy", "-e", "B=2") == "copy\n"
    assert cli.ok("exec", "copy", "sh", "-c", "echo $A$B") == "12\n"
    child = cli.json("snapshot", "create", "copy")
    assert child["parent"] == made["id"]
    table = cli.ok("snapshot", "ls").splitlines()
    assert " ".join(table[0].split()) == "NAME ID AGE SIZE MEMORY SANDBOX PARENT IN USE"
    assert " ready " in table[2]
    assert cli.ok("snapshot", "rm", "ready", child["id"]) == f"ready\n{child['id']}\n"
    assert cli.json("snapshot", "ls") == []
    assert cli.refused("run", "-d", "--snapshot", "ready").startswith("no snapshot ready")


def test_a_command_in_what_a_snapshot_becomes(cli: Cli) -> None:
    cli.launch("box")
    cli.ok("snapshot", "create", "box", "ready")
    assert cli.ok("run", "--rm", "--snapshot", "ready", "--", "echo", "hi") == "hi\n"
    assert [box["name"] for box in cli.json("ps", "--all")] == ["box"]
    for option in (["--memory", "1G"], ["--cpus", "2"], ["--image", "x"], ["--vsock", "none"]):
        problem = cli.refused("run", "-d", "--snapshot", "ready", *option)
        assert "a sandbox that is restored has what its snapshot had" in problem


def test_verify_tells_what_is_not_as_it_was(cli: Cli) -> None:
    cli.launch("box")
    cli.ok("snapshot", "create", "box", "ready")
    (made,) = cli.json("snapshot", "inspect", "ready")
    result = cli("snapshot", "verify", "ready")  # the fake machine's machine.bin is empty
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and made["folder"] in result.stderr


def test_fork(cli: Cli) -> None:
    cli.launch("box")
    names = cli.ok("fork", "box", "-n", "2").split()
    assert len(names) == 2
    assert {box["name"] for box in cli.json("ps")} == {"box", *names}
    (child,) = cli.json("fork", "box")
    assert child["ok"] and child["state"] == "running"
    assert cli.json("snapshot", "ls") == []
    cli.environment["VOIDBOX_FAKE_RESTORE"] = "bad"
    result = cli("fork", "box")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "voidbox: the snapshot is of another CPU\n"
    assert cli.refused("fork", "box", "-n", "0").startswith("--count 0")
    assert cli.refused("fork", "nobody").startswith("no sandbox nobody")


def test_ctrl_c_while_forks_start_leaves_none(cli: Cli) -> None:
    cli.launch("box")
    cli.environment["VOIDBOX_FAKE_RESTORE"] = "waits"  # for a file that nobody makes
    process = cli.start("fork", "box", "-n", "2")
    wait_until(lambda: len(cli.json("ps")) == 3, "they start")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == exit_status.INTERRUPTED
    assert [box["name"] for box in cli.json("ps", "--all")] == ["box"]
    assert cli.json("snapshot", "ls") == []


def test_what_a_copy_may_use(cli: Cli) -> None:
    cli.launch("box", limits={"cpu": 2, "pids": 1000})
    cli.ok("snapshot", "create", "box", "ready")
    options = ("--cpu-limit", "0.5", "--pids", "none", "--jail", "off")
    made = cli.json("run", "-d", "--snapshot", "ready", *options)
    assert (made["limits"], made["jail"]) == ({"cpu": 0.5}, "off")


def test_suspend_and_resume(cli: Cli) -> None:
    cli.launch("box")
    assert cli.ok("suspend", "box") == "box\n"
    assert [box["state"] for box in cli.json("ps")] == ["suspended"]
    for verb in (["exec", "box", "true"], ["pause", "box"], ["suspend", "box"]):
        assert cli.refused(*verb) == "box is suspended: voidbox resume box wakes it"
    assert cli.ok("resume", "box") == "box\n"
    assert cli.ok("exec", "box", "echo", "hi") == "hi\n"
    cli.ok("suspend", "box")
    assert "voidbox rm --force box removes it" in cli.refused("rm", "box")
    assert cli.ok("stop", "box") == "box\n"
    assert cli.json("inspect", "box")[0]["state"] == "stopped"
    cli.launch("other")
    cli.ok("suspend", "other")
    assert cli.ok("rm", "--force", "box", "other") == "box\nother\n"
    assert cli.json("ps", "--all") == []


def test_prune(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", *cli.machine())
    while not (found := cli.json("snapshot", "prune", "--dry-run"))["templates"]:
        pass
    cli.ok("snapshot", "create", "box", "ready")
    assert found["snapshots"] == [] and found["bytes"] > 0
    gone = cli.json("snapshot", "prune")
    assert gone["templates"] == found["templates"]
    assert cli.ok("snapshot", "ls", "-q") == "ready\n"
    (box,) = cli.sandboxes.store.list()
    forking = cli.sandboxes.control(box).request("snapshot", fork=True)["snapshot"]
    assert cli.json("snapshot", "prune", "--all")["snapshots"] == ["ready"]
    assert cli.json("snapshot", "ls") == []
    assert os.listdir(f"{cli.sandboxes.store.folder}/snapshots") == [forking]  # somebody's
