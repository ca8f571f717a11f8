"""`voidbox cp`, between this machine and a fake one, which are the same disk."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.sandbox.owned import wait_until
from voidbox.cli import cp
from voidbox.cli.progress import ProgressBar

pytestmark = pytest.mark.slow


@pytest.fixture
def guest(cli: Cli) -> Path:
    """A folder that is the workdir of a sandbox called box."""
    folder = cli.folder / "guest"
    folder.mkdir()
    cli.sandboxes.launch(name="box", user=str(os.getuid()), workdir=str(folder))
    return folder


@pytest.fixture
def here(cli: Cli) -> Path:
    """A folder with a few things in it, in the current one."""
    tree = cli.folder / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/file").write_bytes(bytes(range(256)) * 1000)
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("deep/er/file")
    return cli.folder


def contents(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found


def test_a_file_there_and_back(cli: Cli, guest: Path, here: Path) -> None:
    assert cli.ok("cp", "tree/script", "box:") == ""
    assert (guest / "script").stat().st_mode & 0o777 == 0o755
    cli.ok("cp", "tree/script", "box:other")
    cli.ok("cp", "box:other", str(here / "back"))
    assert (here / "back").read_text() == "#!/bin/sh\n"
    (here / "into").mkdir()
    cli.ok("cp", "box:other", "into")
    cli.ok("cp", "box:other", "into/name")
    assert sorted(os.listdir(here / "into")) == ["name", "other"]


def test_a_folder_there_and_back(cli: Cli, guest: Path, here: Path) -> None:
    cli.ok("cp", "tree", "box:new")  # under a new name
    assert contents(guest / "new") == contents(here / "tree")
    cli.ok("cp", "tree", "box:new")  # into what is there
    assert contents(guest / "new/tree") == contents(here / "tree")
    (guest / "flat").mkdir()
    cli.ok("cp", "tree/.", "box:flat")
    assert contents(guest / "flat") == contents(here / "tree")
    cli.ok("cp", "box:flat", "back")
    assert contents(here / "back") == contents(here / "tree")
    cli.ok("cp", "box:flat/.", "box2")
    assert contents(here / "box2") == contents(here / "tree")


def test_several_at_once_and_json(cli: Cli, guest: Path, here: Path) -> None:
    copied = cli.json("cp", "tree/script", "tree", "box:.")
    assert [(one["source"], one["files"], one["skipped"]) for one in copied] == [
        ("tree/script", 1, []), ("tree", 2, []),
    ]  # fmt: skip
    assert copied[1]["bytes"] == 256_010
    assert copied[1]["carrier"] == "vsock"
    assert cli.json("cp", "box:script", "box:tree", ".")[0]["source"] == "box:script"
    assert "is no folder" in cli.refused("cp", "tree/script", "tree", "box:nosuch")


def test_a_file_with_a_colon(cli: Cli, guest: Path, here: Path) -> None:
    (here / "a:b").write_text("colon")
    cli.ok("cp", "./a:b", "box:")
    assert (guest / "a:b").read_text() == "colon"


def test_links_out_of_the_folder_are_left_out_and_said(cli: Cli, guest: Path, here: Path) -> None:
    (guest / "evil").mkdir()
    (guest / "evil/passwd").symlink_to("/etc/passwd")
    (guest / "evil/fine").write_text("fine")
    result = cli("cp", "box:evil", "back")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "voidbox: left out passwd: a link to '/etc/passwd', outside the folder"
    ]
    assert os.listdir(here / "back") == ["fine"]


def test_what_is_neither_file_nor_folder_is_not_replaced(cli: Cli, guest: Path, here: Path) -> None:
    (guest / "fifo").write_text("text")
    os.mkfifo(here / "fifo")
    (here / "link").symlink_to("fifo")
    for target in ("fifo", "link", "."):
        assert "would be replaced" in cli.refused("cp", "box:fifo", target)
    assert (here / "fifo").is_fifo() and (here / "link").is_symlink()


@pytest.mark.slow
def test_bad_input_is_one_line(cli: Cli, guest: Path, here: Path) -> None:
    for arguments, message in (
        (["tree/nosuch", "box:"], "cannot read"),
        (["box:nosuch", "."], "nosuch"),
        (["tree", "here"], "from the host into one sandbox"),
        (["box:a", "box:b"], "from the host into one sandbox"),
        (["box:a", "tree", "box:b"], "from the host into one sandbox"),
        (["box:a"], "where to"),
        (["-", "box:a"], "cp copies no streams"),
        (["tree/script", "nosuch:"], "no sandbox nosuch"),
        (["tree/script", "a b:"], "is no sandbox's name"),
        (["tree/script", "box:/proc/nosuch/file"], ""),
        (["tree/script", "box:nosuch/"], "is no folder"),
    ):
        result = cli("cp", *arguments)
        assert result.returncode in (2, 122), result
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert message in result.stderr


def test_a_folder_of_dots_goes_nowhere_else(cli: Cli, guest: Path, here: Path) -> None:
    """As GNU's cp: what is in it is copied into the target itself."""
    (guest / "a").mkdir()
    (guest / "f").write_text("f")
    (here / "out/in").mkdir(parents=True)
    before = set(os.listdir(here))
    cli.ok("cp", "box:a/..", "out/in")
    assert set(os.listdir(here / "out/in")) == {"a", "f"}
    assert (set(os.listdir(here)), os.listdir(here / "out")) == (before, ["in"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("..", ""),
        ("../", ""),
        ("a/..", ""),
        ("a/.", ""),
        (".", ""),
        ("a/../b/", "b"),
        ("/", "root"),
    ],
)
def test_what_a_copy_is_called(path: str, name: str) -> None:
    assert cp._last(cp._Place("", path)) == cp._last(cp._Place("box", path)) == name


def test_sources_of_one_name_are_refused(cli: Cli, guest: Path, here: Path) -> None:
    for name in ("x", "y"):
        (here / name).mkdir()
        (here / name / "f").write_text(name)
    assert "more than one of these would be ./f" in cli.refused("cp", "x/f", "y/f", "box:")
    assert os.listdir(guest) == []


def test_what_cannot_be_read_is_said_and_makes_a_status(cli: Cli, guest: Path, here: Path) -> None:
    (guest / "d").mkdir()
    fd = os.open(guest / "d", os.O_RDONLY)
    for _ in range(20):  # longer than a path may be: an error for root too
        os.mkdir("d" * 250, dir_fd=fd)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    (guest / "d/fine").write_text("fine")
    result = cli("cp", "--json", "box:d", "back")
    assert result.returncode == 1 and (here / "back/fine").exists()
    assert len(result.stderr.splitlines()) == 1 and "File name too long" in result.stderr
    assert json.loads(result.stdout)[0]["errors"] == 1


def test_what_the_guest_refuses_is_said_with_its_name(cli: Cli, guest: Path, here: Path) -> None:
    os.mkfifo(guest / "fifo")
    assert cli.refused("cp", "box:fifo", "x") == f"box: {guest}/fifo: not a regular file"


def test_too_few_descriptors_are_not_called_an_output_error(cli: Cli, guest: Path) -> None:
    limited = subprocess.run(
        ["sh", "-c", 'ulimit -n 6; exec "$@"', "sh", *cli.command("cp", "box:f", ".")],
        cwd=cli.folder, env=cli.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert limited.returncode == 2
    said = [line for line in limited.stderr.splitlines() if line.startswith("voidbox: ")]
    assert said == ["voidbox: Too many open files: see ulimit"]
    assert "never awaited" not in limited.stderr


@pytest.fixture
def agent(cli: Cli, guest: Path) -> Iterator[int]:
    """The process of the guest's agent, which a test may stop."""
    pid = cli.sandboxes.agent_pid(cli.sandboxes.store.read("box"))
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_ctrl_c_while_the_guest_hangs(cli: Cli, agent: int, here: Path) -> None:
    os.kill(agent, signal.SIGSTOP)
    process = cli.start("cp", "tree", "box:")
    threads = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: len(os.listdir(threads)) > 2, "it does not connect")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_copied(
    cli: Cli, agent: int, guest: Path, here: Path, number: signal.Signals
) -> None:
    with open(guest / "big", "wb") as file:
        file.write(b"x" * (256 << 20))  # and no hole, which would be there in no time
    (here / "out").mkdir()
    ours = signal.signal(number, signal.SIG_DFL)  # under nohup(1) it would mean nothing
    try:
        process = cli.start("cp", "box:big", "out/")
    finally:
        signal.signal(number, ours)
    wait_until(lambda: os.listdir(here / "out") != [], "nothing comes")
    os.kill(agent, signal.SIGSTOP)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 128 + number and os.listdir(here / "out") == []


def test_a_signal_leaves_nothing_half_copied_in_the_guest(
    cli: Cli, guest: Path, here: Path
) -> None:
    with open(here / "big", "wb") as file:
        file.write(b"x" * (256 << 20))  # and no hole, which would be there in no time
    process = cli.start("cp", "big", "box:")
    wait_until(lambda: any(path.stat().st_size > 9 << 20 for path in guest.iterdir()), "no part")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    wait_until(lambda: not os.listdir(guest), "a part is left")


def test_the_bar_is_for_terminals(cli: Cli, guest: Path, here: Path) -> None:
    leader, follower = pty.openpty()
    try:
        process = cli.start("cp", "tree", "box:", stderr=follower)
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0
        shown = os.read(leader, 65536).decode()
        assert "100%" in shown and "250K" in shown
        assert shown.endswith("\r\n")
        process = cli.start("cp", "--quiet", "tree", "box:", stderr=follower)
        process.communicate(timeout=60)
        os.set_blocking(leader, False)
        with pytest.raises(BlockingIOError):
            os.read(leader, 1)
    finally:
        os.close(leader)
        os.close(follower)


def test_a_bar_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    with open(follower, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with ProgressBar("name") as bar:
            bar.update(0, 10)
            os.close(leader)
            bar.update(10, 10)


@pytest.mark.slow
def test_a_gigabyte_is_not_held_in_memory(cli: Cli, guest: Path, here: Path) -> None:
    with open(here / "big", "wb") as file:
        file.truncate(200 << 20)
    process = cli.start("cp", "big", "box:")
    # Not ru_maxrss: a child begins with the peak of whoever forked it.
    peak_kib = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak_kib = max(peak_kib, int(found[1]) if found else 0)
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == 0
    assert 0 < peak_kib < 150 << 10
    assert subprocess.run(["cmp", here / "big", guest / "big"], check=False).returncode == 0
