"""Sandboxes that stay, by the command line, with real guests."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.terminal import Session
from voidbox.cli import exit_status

pytestmark = pytest.mark.boot

DEADLINE_S = 300
SERVER = """
import http.server
http.server.ThreadingHTTPServer(("", 80), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


class Cli:
    """Runs `voidbox` with a state folder of its own."""

    def __init__(self, folder: Path, machine: list[str]) -> None:
        self.folder = folder
        self.machine = machine
        os.environ["VOIDBOX_STATE"] = str(folder / "state")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "voidbox", *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments), cwd=ROOT, text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               **options},
        )  # fmt: skip

    def __call__(
        self, *arguments: str, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        return subprocess.run(
            self.command(*arguments), cwd=ROOT, text=True, capture_output=True,
            timeout=DEADLINE_S, check=False, **stdin,  # type: ignore[call-overload]
        )  # fmt: skip

    def ok(self, *arguments: str, input: str | None = None) -> str:
        result = self(*arguments, input=input)
        assert (result.returncode, result.stderr) == (0, ""), (arguments, result)
        output: str = result.stdout
        return output

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.ok("inspect", "--json", name))
        return dict(found)

    def run(self, name: str, *options: str) -> str:
        assert self.ok("run", "-d", "--name", name, *self.machine, *options) == f"{name}\n"
        return name


@pytest.fixture(scope="module")
def cli(kernels: dict[str, str], guest_images: dict[str, str]) -> Iterator[Cli]:
    folder = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    machine = ["--kernel", kernels["minimal"], "--initramfs", guest_images["minimal"]]
    cli = Cli(folder, [*machine, "--memory", "256M"])
    yield cli
    left = cli("ps", "-aq").stdout.split()
    if left:
        cli.ok("rm", "-f", *left)
    assert os.listdir(folder / "state/sandboxes") == []
    del os.environ["VOIDBOX_STATE"]
    shutil.rmtree(folder)


@pytest.fixture
def box(cli: Cli) -> str:
    """A sandbox that runs: the one before, if its test has left it running, for a boot is dear."""
    if cli.ok("ps", "-q").split() != ["box"]:
        cli("rm", "-f", "box")
        cli.run("box", "-e", "A=1", "--team", "red")
    return "box"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_commands_and_what_is_told_of_a_sandbox(cli: Cli, box: str) -> None:
    assert cli.ok("exec", box, "--", "sh", "-c", "echo $A; id -un; pwd").split() == [
        "1", "sandbox", "/workspace",
    ]  # fmt: skip
    assert cli("exec", box, "sh", "-c", "exit 7").returncode == 7
    assert cli("exec", box, "nosuch").returncode == 127
    assert cli("exec", box, "/etc/hostname").returncode in (126, 127)
    assert cli.ok("exec", "-i", "-u", "root", box, "cat", input="piped\n") == "piped\n"
    assert cli.ok("shell", box, input="echo $((6 * 7))\n") == "42\n"
    cli.ok("pause", box)
    assert cli("exec", box, "true").returncode == exit_status.USAGE
    cli.ok("resume", box)
    (figures,) = json.loads(cli.ok("stats", "--no-stream", "--json"))
    assert figures["cpu_ns"] > 0 and figures["network_sent_bytes"] is not None


def test_a_shell_on_a_terminal(cli: Cli, box: str) -> None:
    with Session(cli.command("shell", box), str(ROOT)) as session:
        session.expect(r"\$ ")
        fcntl.ioctl(session.terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        session.process.send_signal(signal.SIGWINCH)
        session.type("until stty size | grep '33 101'; do sleep 0.2; done\n")
        session.expect("\n33 101\r")
        # What is typed before a program reads, busybox's shell swallows: a person waits.
        session.expect(r"\$ ")
        for key in ("\x04", "\x03"):
            session.type("sh -c \"echo g''o; cat\"\n")
            session.expect("\ngo\r")
            session.type("typed\n")
            session.expect("typed\r\ntyped")  # it runs: Ctrl-C is for it alone
            session.type(key)
            session.expect(r"\$ ")
        session.type("echo status=$?\n")
        session.expect("status=130")
        session.expect(r"\$ ")
        session.type("vi file\n")
        session.expect("~")
        session.type("i")
        session.expect("I file")
        session.type("hello\x1b")
        session.expect("- file")  # it knows now that no arrow was pressed
        session.type(":wq\n")
        session.expect(r"\$ ")
        session.type("cat file\n")
        session.expect("hello\r\n")
        session.expect(r"\$ ")
        session.type("\x04")
        assert session.wait() == 0
        assert session.is_mode_restored()


def test_copies_there_and_back(cli: Cli, box: str) -> None:
    tree = cli.folder / "tree"
    for number in range(200):
        path = tree / f"folder{number % 10}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000 + number * 10))
    big = cli.folder / "big"
    big.write_bytes(os.urandom(4 << 20))
    cli.ok("cp", str(tree), str(big), f"{box}:")
    assert cli.ok("exec", box, "sh", "-c", "find tree -type f | wc -l; wc -c < big").split() == [
        "200", str(4 << 20),
    ]  # fmt: skip
    (cli.folder / "back").mkdir()
    back = ("box:tree", "box:big", str(cli.folder / "back"))
    copied = json.loads(cli.ok("cp", "--json", *back))
    assert [(one["files"], one["carrier"]) for one in copied] == [(200, "vsock"), (1, "vsock")]
    for name in ("tree", "big"):
        subprocess.run(["diff", "-r", cli.folder / name, cli.folder / "back" / name], check=True)


def test_ports(cli: Cli, box: str) -> None:
    server = cli.start("exec", "-u", "root", box, "--", "python3", "-c", SERVER)
    (port,) = json.loads(cli.ok("port", "add", "--json", box, "0:80"))
    url = f"http://127.0.0.1:{port['host_port']}/"

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
        return False

    wait_until(answers, "the guest's server answers")
    assert json.loads(cli.ok("port", "ls", "--json", box)) == [port]
    cli.ok("port", "rm", box, f"{port['host_port']}:80")
    assert not answers()
    assert cli.ok("port", "ls", "--json") == "[]\n"
    server.send_signal(signal.SIGTERM)
    assert server.wait(DEADLINE_S) == 128 + signal.SIGTERM
    server.communicate()


def test_logs_are_followed_until_the_end(cli: Cli, box: str) -> None:
    process = cli.start("logs", "--follow", box)
    cli.ok("exec", "-u", "root", box, "--", "sh", "-c", "echo from the guest > /dev/console")
    assert process.stdout is not None
    while "from the guest" not in process.stdout.readline():
        assert process.poll() is None
    assert cli.ok("stop", box) == "box\n"
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    told = cli.inspect(box)
    assert (told["state"], told["reason"]) == ("stopped", "it was stopped")
    assert "asking the guest's agent" in cli.ok("logs", "--voidbox", box)
    assert cli.ok("rm", box) == "box\n"


def test_a_killed_process_is_found_and_removed(cli: Cli, box: str) -> None:
    process = cli.start("exec", box, "--", "sh", "-c", "echo ready; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(cli.inspect(box)["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == exit_status.AGENT
    assert "its process was killed" in errors and "Traceback" not in errors
    assert cli("ps", "-q").stdout == ""
    assert cli.inspect(box)["state"] == "crashed"
    assert cli.ok("rm", box) == "box\n"  # the next test finds its name and its CID free


def test_a_panic_is_told_with_the_console(cli: Cli, box: str) -> None:
    assert cli.inspect(box)["cid"] == 3
    result = cli("exec", "-u", "root", box, "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert result.returncode == exit_status.AGENT, result
    assert "sysrq" in result.stderr.lower()
    assert cli.inspect(box)["state"] == "crashed"
    again = cli("exec", box, "true")
    assert again.returncode == exit_status.USAGE
    assert "sysrq" in again.stderr.lower()


def test_a_panic_ends_an_attached_sandbox_with_its_own_status(cli: Cli) -> None:
    command = ("-u", "root", "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    result = cli("run", *cli.machine, *command)
    assert result.returncode == exit_status.PANIC, result
    assert "the guest's kernel panicked" in result.stderr
    result = cli("run", *cli.machine, "-u", "root", "--", "poweroff", "-f")
    assert (result.returncode, result.stderr) == (exit_status.OK, "")


def test_an_attached_sandbox_is_seen_and_ends_with_its_command(cli: Cli) -> None:
    line = "echo ready; read line; exit 4"
    options = ("--name", "attached", *cli.machine, "--", "sh", "-c", line)
    process = cli.start("run", *options, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert cli.ok("exec", "attached", "echo", "other") == "other\n"
    _, errors = process.communicate("line\n", timeout=DEADLINE_S)
    assert (process.returncode, errors) == (4, "")
    assert cli.inspect("attached")["state"] == "stopped"


def test_a_sandbox_is_killed(cli: Cli) -> None:
    cli.run("killed", "--", "sleep", "1000")
    assert cli.ok("kill", "killed") == "killed\n"
    assert cli.inspect("killed")["reason"] == "it was killed"
