"""The verbs about what is on the disk, with sandboxes that do not run; and a disk in odd states."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from voidbox.cli.output import shown_size, shown_span

CRASHED = "its process was killed"
KEYS = {
    "id", "name", "state", "created_at", "started_at", "ended_at", "pid", "cid", "ports", "kernel",
    "image", "memory_bytes", "cpus", "envs", "metadata", "workdir", "user", "timeout_s", "net",
    "vsock", "team", "is_owned", "removes_itself", "cmdline", "disks", "root", "end",
    "workspace", "workspace_mode", "workspace_cache", "volumes", "secret_envs", "idle_timeout_s",
    "is_pooled", "is_held",
    "snapshot", "is_cold", "start_s", "ran_s", "forwards", "paused_s", "paused_at",
    "limits", "guarded", "jail", "jail_layers",
    "reason", "crash", "folder",
}  # fmt: skip


def test_a_dead_process_is_told_once_and_the_sandbox_listed_as_crashed(cli: Cli) -> None:
    cli.ended("box")
    result = cli("ps")
    assert result.stderr == f"voidbox: box has crashed: {CRASHED}\n"
    assert len(result.stdout.splitlines()) == 1
    assert re.search(rf"^box +[0-9a-f]{{12}} +crashed .* {CRASHED}$", cli.ok("ps", "-a"), re.M)
    assert cli.ok("ps", "-aq") == "box\n"


def test_ps_and_inspect_show_the_same_object(cli: Cli) -> None:
    record = cli.sandboxes.create(name="box", metadata={"for": "x\ny"}, team="red")
    (listed,) = cli.json("ps")
    (inspected,) = cli.json("inspect", record.id[:6])
    assert listed == inspected
    assert listed.keys() == KEYS
    assert (listed["id"], listed["state"], listed["metadata"]) == (
        record.id, "creating", {"for": "x\ny"},
    )  # fmt: skip
    assert listed["folder"] == cli.sandboxes.store.path(record.id)
    assert re.search(r"^team +red$", cli.ok("inspect", "box"), re.M)


def test_inspect_tells_of_a_crash_at_the_end(cli: Cli) -> None:
    record = cli.ended("box")
    Path(cli.sandboxes.store.path(record.id), "console.log").write_bytes(b"oh no\x1b[31m\n")
    cli("ps")
    lines = cli.ok("inspect", "box").splitlines()
    assert lines[lines.index("crash") + 1 :] == [
        f"  {CRASHED}", "  the console's last lines:", "  oh no[31m",
    ]  # fmt: skip


def test_several_names_some_wrong(cli: Cli) -> None:
    for name in ("a1", "b2", "c3"):
        cli.ended(name)
    cli("ps")
    result = cli("rm", "a1", "nosuch", "b2", "b2")
    assert (result.returncode, result.stdout.split()) == (2, ["a1", "b2"])
    assert result.stderr == "voidbox: no sandbox nosuch: voidbox ps -a lists them\n"
    result = cli("rm", "--json", "c3", "d4")
    assert [(one["name"], one["ok"]) for one in json.loads(result.stdout)] == [
        ("d4", False), ("c3", True),
    ]  # fmt: skip
    assert result.returncode == 2
    assert cli.ok("ps", "-aq") == ""


BAD_NAMES = ["../../etc", "a/b", "", ".", "-x", "a b", "x" * 64, "é", "a\nb"]
VERBS = ["rm", "logs", "stop", "exec", "cp", "port"]


@pytest.mark.parametrize(
    ("name", "verb"),
    [*((name, "inspect") for name in BAD_NAMES), *zip(BAD_NAMES, VERBS, strict=False)],
)
def test_bad_names_are_one_line(name: str, verb: str, cli: Cli) -> None:
    arguments = {
        "exec": ["exec", "--", name, "true"], "cp": ["cp", "--", f"{name}:x", "y"],
        "port": ["port", "ls", "--", name],
    }.get(verb, [verb, "--", name])  # fmt: skip
    result = cli(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "no sandbox" in result.stderr or verb == "cp"


@pytest.mark.parametrize("name", ["../up", "a/b", "-", ".x", "a b", "", "0123456789ab", "x" * 64])
def test_a_sandbox_gets_no_bad_name(name: str, cli: Cli) -> None:
    assert "cannot be a sandbox's name" in cli.refused(
        "run", "-d", f"--name={name}", *cli.machine()
    )
    cli.ended("box")
    cli("ps")
    assert "cannot be a sandbox's name" in cli.refused("rename", "--", "box", name)
    assert cli.ok("ps", "-aq") == "box\n"


def test_rename(cli: Cli) -> None:
    record = cli.sandboxes.create(name="box")
    cli.sandboxes.create(name="fox")
    assert cli.refused("rename", "box", "fox") == "there is a sandbox called fox already"
    assert cli.ok("rename", "box", "new") == "new\n"
    assert cli.json("rename", "new", "newer")["id"] == record.id
    assert cli.ok("ps", "-q").split() == ["newer", "fox"]


def test_a_second_sandbox_of_the_same_name(cli: Cli) -> None:
    cli.sandboxes.create(name="box")
    message = cli.refused("run", "-d", "--name", "box", *cli.machine())
    assert message.startswith("there is a sandbox called box already, which is creating")
    assert len(cli.json("ps", "-a")) == 1


def test_rm_refuses_what_lives(cli: Cli) -> None:
    cli.sandboxes.create(name="box")
    assert cli.refused("rm", "box") == "box is alive: stop it first, with voidbox stop box"


def test_prune_removes_what_has_ended_and_nothing_else(cli: Cli) -> None:
    cli.ended("gone")
    cli.sandboxes.create(name="alive")
    cli("ps")
    dry = cli("prune", "--dry-run")
    assert (dry.stdout, dry.stderr.split()[:2]) == ("gone\n", ["would", "free"])
    assert cli.json("prune")["removed"] == ["gone"]
    assert cli.json("prune") == {"removed": [], "bytes": 0, "dry_run": False}
    assert cli.ok("ps", "-aq") == "alive\n"


def test_logs_of_one_that_has_ended(cli: Cli) -> None:
    record = cli.ended("box")
    cli("ps")
    assert cli.ok("logs", "box") == ""
    folder = Path(cli.sandboxes.store.path(record.id))
    (folder / "console.log").write_bytes(b"".join(b"line %d\n" % n for n in range(20_000)))
    (folder / "owner.log").write_bytes(b"said\n")
    lines = cli.ok("logs", "box").splitlines()
    assert len(lines) == 20_000
    for count in (0, 1, 7, 19_999, 20_000, 30_000):
        shown = cli.ok("logs", "--follow", "-n", str(count), "box").splitlines()
        assert shown == lines[len(lines) - min(count, len(lines)) :]
    assert cli.ok("logs", "--voidbox", "box") == "said\n"
    (folder / "console.log").write_bytes(b"one\ntwo")
    assert cli.ok("logs", "-n", "1", "box") == "two"
    assert cli.refused("logs", "-n", "-1", "box").startswith("--tail -1")


def test_binary_output_and_long_lines_pass_as_they_are(cli: Cli) -> None:
    record = cli.ended("box")
    cli("ps")
    data = bytes(range(256)) * 40_000  # no line end for 10 MB but the one in it
    Path(cli.sandboxes.store.path(record.id), "console.log").write_bytes(data)
    result = subprocess.run(
        cli.command("logs", "box"), env=cli.environment, capture_output=True, check=True
    )
    assert result.stdout == data


# A disk in odd states.


def test_a_corrupted_record_is_set_aside_and_said(cli: Cli) -> None:
    bad, good = cli.ended("bad"), cli.ended("good")
    cli("ps")
    state = Path(cli.sandboxes.store.path(bad.id), "state.json")
    state.write_text("{ this is no JSON")
    result = cli("ps", "-aq")
    assert (result.returncode, result.stdout) == (0, "good\n")
    assert f"{bad.id}/state.json cannot be read" in result.stderr
    assert "set-aside" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(list((cli.folder / "state/set-aside").iterdir())) == 1
    assert cli.ok("ps", "-aq") == "good\n"
    assert cli.json("inspect", good.id)[0]["name"] == "good"


@pytest.mark.parametrize("verb", [["ps"], ["rm", "box"], ["logs", "box"], ["stop", "box"]])
def test_a_newer_state_folder_is_refused_in_one_line(verb: list[str], cli: Cli) -> None:
    record = cli.ended("box")
    cli("ps")
    state = Path(cli.sandboxes.store.path(record.id), "state.json")
    values = json.loads(state.read_text())
    state.write_text(json.dumps({**values, "version": 99}))
    before = state.read_bytes()
    assert "newer voidbox" in cli.refused(*verb)
    assert state.read_bytes() == before
    state.write_text(json.dumps(values))


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/voidbox", "open", "/etc/hostname/x"])
def test_an_unusable_state_folder_is_one_line(folder: str, cli: Cli) -> None:
    cli.environment["VOIDBOX_STATE"] = folder
    if folder == "open":
        os.mkdir(cli.folder / folder)
        os.chmod(cli.folder / folder, 0o777)
    assert "VOIDBOX_STATE" in cli.refused("ps")


def test_a_full_disk_is_one_line_and_leaves_nothing(cli: Cli) -> None:
    cli("ps")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    process = cli.start(
        "run", "-d", "--name", "box", *cli.machine(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard)),
    )  # fmt: skip
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert cli.json("ps", "-a") == []


def test_output_that_cannot_be_written(cli: Cli) -> None:
    cli.ended("box")
    cli("ps")
    with open("/dev/full", "wb") as full:
        process = cli.start("ps", "-a", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        2, "voidbox: cannot write the output: No space left on device\n",
    )  # fmt: skip


def test_words_for_sizes_and_times() -> None:
    assert [shown_size(n) for n in (0, 1023, 1024, 1536, 512 << 20, 5 << 40, 9 << 50)] == [
        "0B", "1023B", "1K", "1.5K", "512M", "5T", "9216T",
    ]  # fmt: skip
    assert [shown_span(s) for s in (0, 59.9, 60, 3599, 3600, 86400, 200_000, -5)] == [
        "0s", "59s", "1m00s", "59m59s", "1h00m", "1d0h", "2d7h", "0s",
    ]  # fmt: skip


def test_nothing_needs_a_home_or_a_terminal(cli: Cli) -> None:
    environment = {key: cli.environment[key] for key in ("VOIDBOX_STATE", "PYTHONPATH")}
    result = subprocess.run(
        [sys.executable, "-m", "voidbox", "ps"], env=environment, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")
