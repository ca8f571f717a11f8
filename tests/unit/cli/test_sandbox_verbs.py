"""The verbs about sandboxes that run, with fake machines whose agents are real."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.terminal import Session
from tests.unit.cli.conftest import Cli
from tests.unit.sandbox.owned import wait_until
from voidbox.cli import exit_status, port
from voidbox.cli.sandboxes import control
from voidbox.errors import ConfigError
from voidbox.sandbox.process.control_server import ControlServer, Handler
from voidbox.sandbox.state.lifecycle import Event

pytestmark = pytest.mark.slow


def ids(cli: Cli) -> list[str]:
    return os.listdir(cli.folder / "state/sandboxes")


# run


@pytest.mark.slow
def test_a_sandbox_from_run_to_rm(cli: Cli) -> None:
    options = [*cli.machine(), "--metadata", "for=test", "-e", "A=1", "--team", "red"]
    assert cli.ok("run", "-d", "--name", "box", *options) == "box\n"
    (box,) = cli.json("ps")
    assert (box["state"], box["metadata"], box["team"]) == ("running", {"for": "test"}, "red")
    assert cli.ok("exec", "box", "sh", "-c", "echo $A; pwd").split() == ["1", str(cli.folder)]
    assert "via vsock" in cli.ok("logs", "--voidbox", "box")
    assert cli.ok("stop", "-t", "20", "box") == "box\n"
    assert cli.ok("stop", "box") == "box\n"  # once more is no error
    assert cli.json("inspect", "box")[0]["reason"] == "it was stopped"
    assert cli.ok("rm", "box") == "box\n"
    assert ids(cli) == []


def test_run_detached_as_json_and_with_a_name_of_its_own(cli: Cli) -> None:
    box = cli.json("run", "-d", *cli.machine())
    assert box["state"] == "running"
    assert box["name"].count("-") == 2
    (listed,) = cli.json("ps")
    assert listed == box


def test_run_detached_starts_a_command(cli: Cli) -> None:
    made = cli.folder / "made"
    cli.ok(
        "run",
        "-d",
        "--name",
        "box",
        *cli.machine(),
        "--",
        "sh",
        "-c",
        f"echo up > {made}; sleep 60",
    )
    wait_until(lambda: made.exists() and made.read_text() == "up\n", "the command runs")
    assert cli.ok("ps", "-q") == "box\n"


def test_run_detached_with_a_command_that_does_not_exist_leaves_nothing(cli: Cli) -> None:
    result = cli("run", "-d", "--name", "box", *cli.machine(), "--", "nosuch")
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == "voidbox: nosuch: command not found\n"
    assert ids(cli) == []


def test_run_attached_ends_with_its_command(cli: Cli) -> None:
    script = "read word; echo $word; exit 7"
    result = cli("run", "--name", "box", *cli.machine(), "--", "sh", "-c", script, input="hello\n")
    assert (result.returncode, result.stdout, result.stderr) == (7, "hello\n", "")
    (box,) = cli.json("ps", "-a")
    assert (box["name"], box["state"]) == ("box", "stopped")
    result = cli("run", "--name", "other", "--rm", *cli.machine(), "--", "nosuch")
    assert (result.returncode, result.stderr) == (127, "voidbox: nosuch: command not found\n")
    assert [one["name"] for one in cli.json("ps", "-a")] == ["box"]


def test_run_attached_is_seen_and_ends_with_its_process(cli: Cli) -> None:
    process = cli.start("run", "--name", "box", *cli.machine(), "--", "sleep", "60")
    wait_until(lambda: cli.ok("ps", "-q") == "box\n", "it is listed")
    wait_until(lambda: cli.json("ps")[0]["state"] == "running", "it runs")
    assert cli.ok("exec", "box", "echo", "hi") == "hi\n"
    process.kill()
    process.communicate()
    wait_until(lambda: cli.ok("ps", "-q") == "", "it has ended")
    assert cli.json("ps", "-a")[0]["reason"] == "the process that owned it ended"


@pytest.mark.slow
def test_the_time_limit_of_an_attached_sandbox(cli: Cli) -> None:
    result = cli("run", "--name", "box", "--timeout", "2", *cli.machine(), "--", "sleep", "60")
    assert result.returncode == exit_status.TIMEOUT
    assert "its time limit ran out" in result.stderr
    assert cli.json("inspect", "box")[0]["reason"] == "its time limit ran out"


def test_an_attached_sandbox_ends_with_its_guests_status(cli: Cli) -> None:
    machine = cli.machine()
    result = cli("run", "--name", "box", *machine, "--", "sh", "-c", "kill -9 $PPID")
    assert result.returncode == exit_status.PANIC
    assert "Attempted to kill init" in result.stderr
    assert cli.json("inspect", "box")[0]["end"] == "PANIC"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--console"], "--console is for a VM"),
        (["--stats", "x"], "--stats is for a VM"),
        (["--console-log", "x"], "--console-log is for a VM"),
        (["--self-extract"], "--self-extract is for a VM"),
        (["--vsock", "/tmp/x"], "--vsock PATH"),
        (["--tty"], "--tty does not go with --detach"),
        (["--metadata", "x"], "give KEY=VALUE"),
        (["--memory", "much"], "512M or 4G"),
        (["--team", "a/b"], "cannot be"),
        (["--publish", "x"], "HOSTPORT:GUESTPORT"),
    ],
)
def test_bad_options_of_run_are_one_line(options: list[str], message: str, cli: Cli) -> None:
    assert message in cli.refused("run", "-d", *cli.machine(), *options)
    assert ids(cli) == []


def test_a_guest_that_fails_is_told_and_kept_if_it_had_begun(cli: Cli) -> None:
    machine = cli.machine()
    (cli.folder / "image").write_text('{"mode": "bad"}')
    assert cli.refused("run", "-d", "--name", "box", *machine) == "the kernel is no kernel"
    assert ids(cli) == []
    (cli.folder / "image").write_text('{"mode": "panic"}')
    result = cli("run", "-d", "--name", "box", *machine)
    assert result.returncode == 2
    assert "Attempted to kill init" in result.stderr
    assert "Traceback" not in result.stderr
    (box,) = cli.json("ps", "-a")
    assert box["state"] == "crashed"
    result = cli("exec", "box", "true")
    assert result.returncode == 2
    assert "the guest boots" in result.stderr  # the console's last lines


def test_ctrl_c_while_it_boots_leaves_nothing(cli: Cli) -> None:
    machine = cli.machine()
    (cli.folder / "image").write_text('{"mode": "slow"}')
    process = cli.start("run", "-d", "--name", "box", *machine)
    wait_until(lambda: "the guest boots" in cli("logs", "box").stdout, "it boots")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == exit_status.INTERRUPTED
    assert ids(cli) == []


# exec, shell


def test_exec_passes_streams_and_status(cli: Cli) -> None:
    cli.launch("box", envs={"A": "1", "B": "2"})
    result = cli(
        "exec",
        "-e",
        "B=3",
        "-w",
        "/",
        "box",
        "--",
        "sh",
        "-c",
        "echo $A$B; pwd; echo e >&2; exit 9",
    )
    assert (result.returncode, result.stdout, result.stderr) == (9, "13\n/\n", "e\n")
    assert cli("exec", "box", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    assert cli.ok("exec", "-i", "box", "cat", input="in\n") == "in\n"
    assert cli.ok("exec", "box", "cat", input="never read\n") == ""
    assert cli.ok("exec", "box", "echo", "-n", "--", "-x") == "-- -x"
    assert cli.ok("exec", "box", "--", "echo", "--") == "--\n"
    assert cli.ok("shell", "box", input="echo from a shell\n") == "from a shell\n"
    assert cli("shell", "box", input="exit 5\n").returncode == 5


@pytest.mark.slow
def test_exec_of_what_cannot_be_executed(cli: Cli) -> None:
    cli.launch("box")
    (cli.folder / "text").write_text("text")
    for command, status in (("nosuch", 127), ("/no/such", 127), (str(cli.folder / "text"), 126)):
        result = cli("exec", "box", command)
        assert result.returncode == status, result
        assert len(result.stderr.splitlines()) == 1
    assert "no user" in cli.refused("exec", "-u", "nobody-here", "box", "true").lower()
    assert cli.refused("exec", "-w", "/no/such", "box", "true")
    assert cli.refused("exec", "-t", "box", "true").startswith("--tty: standard input")
    assert "--env" in cli.refused("exec", "-e", "=x", "box", "true")
    assert cli("exec", "--timeout", "0.3", "box", "sleep", "60").returncode == exit_status.TIMEOUT
    assert cli("exec", "box").stderr.splitlines()[-1].endswith("or voidbox shell box")


def test_a_long_line_of_binary_output(cli: Cli) -> None:
    cli.launch("box")
    script = "import os; [os.write(1, bytes(range(256)) * 256) for _ in range(640)]"
    process = cli.start("exec", "box", sys.executable, "-c", script, text=False)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert output == bytes(range(256)) * 256 * 640  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("<&-", 0, ""),
        (">&-", 2, "voidbox: cannot write the output: Bad file descriptor\n"),
        (">/dev/full", 2, "voidbox: cannot write the output: No space left on device\n"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    redirection: str, status: int, message: str, cli: Cli
) -> None:
    cli.launch("box")
    line = f'"$@" {redirection}'
    command = ["sh", "-c", line, "sh", *cli.command("exec", "-i", "box", "--", "sh", "-c")]
    result = subprocess.run(
        [*command, "cat; echo hi"], env=cli.environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (status, message)
    assert result.stdout == ("hi\n" if not status else "")


def test_a_signal_goes_to_the_command_and_a_second_one_ends_us(cli: Cli) -> None:
    cli.launch("box")
    script = "trap 'echo got it' INT; echo ready; while :; do sleep 0.1; done"
    process = cli.start("exec", "box", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "got it\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert process.communicate() == ("", "")
    assert cli.ok("exec", "box", "echo", "alive") == "alive\n"


def test_a_reader_that_left_ends_the_command(cli: Cli) -> None:
    cli.launch("box")
    process = cli.start("exec", "box", "yes")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == exit_status.BROKEN_PIPE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_sandbox_that_dies_under_a_command_is_told_at_once(cli: Cli) -> None:
    record = cli.launch("box")
    process = cli.start("exec", "box", "--", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(record.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_status.AGENT
    assert "its process was killed" in errors
    assert "the guest boots" in errors  # the console's last lines
    assert "Traceback" not in errors
    result = cli("ps", "-a")
    assert "crashed" in result.stdout
    assert cli.ok("rm", "box") == "box\n"


@pytest.mark.slow
def test_what_does_not_run_is_refused(cli: Cli) -> None:
    cli.launch("box")
    cli.ok("pause", "box")
    assert cli.json("ps")[0]["state"] == "paused"
    assert "voidbox resume box" in cli.refused("exec", "box", "true")
    assert "cannot be paused" in cli.refused("pause", "box")
    cli.ok("resume", "box")
    assert "cannot be resumed" in cli.refused("resume", "box")
    cli.ok("kill", "box")
    ended = "box does not run: it is stopped (it was killed)"
    for arguments in (
        ["exec", "box", "true"], ["shell", "box"], ["pause", "box"], ["port", "add", "box", "1:2"],
        ["send", "box", "hi"], ["cp", "/etc/hosts", "box:"], ["stats", "box"],
    ):  # fmt: skip
        assert cli.refused(*arguments) == ended


def test_a_terminal(cli: Cli) -> None:
    cli.launch("box")
    os.environ.update({"VOIDBOX_STATE": cli.environment["VOIDBOX_STATE"]})
    try:
        with Session(cli.command("exec", "-it", "box", "--", "sh"), str(Path.cwd())) as session:
            session.type("tty\n")
            session.expect("/dev/pts/")
            fcntl.ioctl(session.terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
            session.process.send_signal(signal.SIGWINCH)
            session.type("until stty size | grep '33 101'; do sleep 0.1; done\n")
            session.expect("33 101\r")
            session.type("echo rea''dy; cat\n")
            session.expect("ready")  # the prompt is on the screen, too
            session.type("words\n")
            session.expect("words\r\nwords")
            session.type("\x04")  # cat ends
            session.type("cat\n")
            session.type("more\n")
            session.expect("more\r\n.*more\r")  # it runs: Ctrl-C is for it alone
            session.type("\x03")
            session.expect(r"[#$] ")  # a shell whose command Ctrl-C has ended forgets what it read
            session.type("echo status=$?\n")
            session.expect("status=130")
            session.type("exit 3\n")
            assert session.wait() == 3
            assert session.is_mode_restored()
    finally:
        del os.environ["VOIDBOX_STATE"]


# ending


@pytest.mark.slow
def test_several_at_once_are_stopped_and_killed(cli: Cli) -> None:
    for name in ("a1", "b2", "c3"):
        cli.launch(name)
    assert cli.ok("stop", "a1", "b2").split() == ["a1", "b2"]
    outcomes = json.loads(cli("kill", "--json", "c3", "nosuch").stdout)
    assert [(one["name"], one["ok"]) for one in outcomes] == [("nosuch", False), ("c3", True)]
    assert cli.ok("ps", "-q") == ""
    assert cli.ok("rm", "a1", "b2", "c3").split() == ["a1", "b2", "c3"]


@pytest.mark.slow
def test_kill_ends_a_sandbox_whose_process_hangs(cli: Cli) -> None:
    record = cli.launch("box")
    os.kill(record.pid, signal.SIGSTOP)
    result = cli("kill", "box")
    assert (result.returncode, result.stdout) == (0, "box\n"), result
    assert cli("ps", "-q").stdout == ""
    assert cli.ok("rm", "box") == "box\n"


def test_rm_force_and_remove_itself(cli: Cli) -> None:
    cli.launch("box")
    cli.launch("own", removes_itself=True)
    assert cli.refused("rm", "box") == "box is alive: stop it first, with voidbox stop box"
    assert cli.ok("rm", "--force", "box", "own").split() == ["box", "own"]
    assert ids(cli) == []


# logs, stats


def test_logs_are_followed_to_the_end(cli: Cli) -> None:
    record = cli.launch("box")
    console = Path(cli.sandboxes.store.path(record.id), "console.log")
    process = cli.start("logs", "-f", "box")
    assert process.stdout is not None
    assert process.stdout.readline() == "the guest boots\n"
    with console.open("a") as file:
        file.write("more\n")
    assert process.stdout.readline() == "more\n"
    console.rename(f"{console}.1")
    console.write_text("a new file\n")
    assert process.stdout.readline() == "a new file\n"
    cli.ok("kill", "box")
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
def test_stats(cli: Cli) -> None:
    cli.launch("box")
    (figures,) = cli.json("stats", "--no-stream")
    assert figures["name"] == "box"
    assert figures["rss_bytes"] > 1 << 20
    assert figures["cpu_ns"] > 0
    assert figures["exits"] == 7
    assert figures["network_sent_bytes"] == 5 << 10
    process = cli.start("stats", "--json", "box")
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(process.stdout.readline())[0]["name"] == "box"
    cli.ok("kill", "box")
    process.communicate(timeout=60)
    assert process.returncode == 0


# What a fake machine has not got: a network, a relay.


@contextmanager
def answering(cli: Cli, **handlers: Handler) -> Iterator[None]:
    """A sandbox called box whose process is this one, and answers so."""
    store = cli.sandboxes.store
    record = cli.sandboxes.create(name="box")
    store.update(record.id, Event.BOOTED)
    server = ControlServer(store.path(record.id, "control.sock"), handlers)
    server.start()
    try:
        yield
    finally:
        server.close()


def test_ports(cli: Cli) -> None:
    forwards = ["127.0.0.1:9000:80/tcp"]

    def add(values: dict[str, object]) -> dict[str, object]:
        if values["publish"] == "1:2":
            raise ConfigError("127.0.0.1:1: Permission denied")
        forwards.append("127.0.0.1:40000:53/udp")
        return {"forward": forwards[-1]}

    def remove(values: dict[str, object]) -> dict[str, object]:
        forwards.clear()
        return {}

    def show(values: dict[str, object]) -> dict[str, object]:
        return {"forwards": list(forwards)}

    with answering(cli, port_add=add, port_remove=remove, port_list=show):
        (found,) = cli.json("port", "ls")
        del found["id"]
        assert found == {
            "name": "box", "host_ip": "127.0.0.1", "host_port": 9000, "guest_port": 80,
            "protocol": "tcp",
        }  # fmt: skip
        assert cli.ok("port", "add", "box", "0:53/udp") == "127.0.0.1:40000:53/udp\n"
        assert cli.ok("port", "ls", "box").splitlines()[2].split() == [
            "box", "127.0.0.1:40000", "53/udp",
        ]  # fmt: skip
        assert cli.refused("port", "add", "box", "1:2") == "127.0.0.1:1: Permission denied"
        result = cli("port", "add", "--json", "box", "0:53/udp", "1:2", "0:54/udp")
        assert (result.returncode, result.stderr) == (
            2,
            "voidbox: 127.0.0.1:1: Permission denied\n",
        )
        assert [one["host_port"] for one in json.loads(result.stdout)] == [40000]
        assert cli("port", "add", "--json", "box", "1:2").stdout == ""
        assert cli.json("port", "rm", "box", "9000:80")["removed"] == ["9000:80"]
        assert cli.json("port", "ls", "box") == []


def test_ports_of_all_though_one_process_hangs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(values: dict[str, object]) -> dict[str, object]:
        return {"forwards": ["127.0.0.1:9000:80/tcp"]}

    cli.sandboxes.create(name="hangs")
    hanging = cli.sandboxes.store.read("hangs")
    monkeypatch.setenv("VOIDBOX_STATE", cli.environment["VOIDBOX_STATE"])
    monkeypatch.setattr(port, "control", lambda store, record: control(store, record, 0.1))
    with answering(cli, port_list=show), socket.socket(socket.AF_UNIX) as silent:
        silent.bind(cli.sandboxes.store.path(hanging.id, "control.sock"))
        silent.listen()
        assert port.main(["ls", "--json"]) == exit_status.USAGE
        said = capsys.readouterr()
        assert [one["name"] for one in json.loads(said.out)] == ["box"]
        assert said.err.startswith("voidbox: hangs: port_list: ") and said.err.count("\n") == 1


def test_a_stop_may_take_any_time(cli: Cli) -> None:
    cli.launch("box")
    assert cli.ok("stop", "--timeout", "9999999", "box") == "box\n"


def test_messages(cli: Cli) -> None:
    came: list[dict[str, object]] = []

    def deliver(values: dict[str, object]) -> dict[str, object]:
        came.append(values)
        return {"outcome": "delivered" if len(came) < 3 else "full"}

    with answering(cli, deliver=deliver):
        assert cli.ok("send", "box", "two", "words") == ""
        assert cli.ok("send", "box", "-", input="from\na pipe\n") == ""
        assert [(one["from"], one["text"]) for one in came] == [
            ("@host", "two words"), ("@host", "from\na pipe"),
        ]  # fmt: skip
        result = cli("send", "box", "more")
        assert (result.returncode, result.stderr) == (1, "voidbox: not delivered to box: full\n")
        assert json.loads(cli("send", "--json", "box", "more").stdout)["outcome"] == "full"
        assert "8192 bytes" in cli.refused("send", "box", "-", input="x" * 9000)
