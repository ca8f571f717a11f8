"""Commands, by the real client on the real agent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.agent.conftest import USER
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient, RemoteProcess

Connect = Callable[[], AgentClient]


def sh(client: AgentClient, line: str, **options: object) -> RemoteProcess:
    return client.exec(shell=line, user=USER, cwd="/tmp", **options)  # type: ignore[arg-type]


def gather(process: RemoteProcess) -> tuple[bytes, bytes]:
    streams = {protocol.STDOUT: b"", protocol.STDERR: b""}
    for stream, data in process.output():
        streams[stream] += data
    return streams[protocol.STDOUT], streams[protocol.STDERR]


def run(client: AgentClient, line: str, **options: object) -> tuple[bytes, bytes, int]:
    process = sh(client, line, **options)
    return *gather(process), process.wait().status


def test_output_and_status_come_back_apart(client: AgentClient) -> None:
    assert run(client, "echo out; echo err >&2; exit 7") == (b"out\n", b"err\n", 7)


def test_one_connection_serves_many_commands_at_once_and_after_one_another(
    client: AgentClient,
) -> None:
    slow = sh(client, "sleep 0.3; echo slow")
    for number in range(20):
        assert run(client, f"echo {number}")[0] == b"%d\n" % number
    assert gather(slow)[0] == b"slow\n"


def test_argv_is_not_a_shell_line(client: AgentClient) -> None:
    process = client.exec(["printf", "%s|", "a b", "$HOME", "*"], user=USER, cwd="/tmp")
    assert gather(process)[0] == b"a b|$HOME|*|"


def test_environment_and_folder(client: AgentClient) -> None:
    process = client.exec(shell='echo "$X $PWD $LANG"', env={"X": "y z"}, user=USER, cwd="/usr")
    assert gather(process)[0] == b"y z /usr C.UTF-8\n"


def test_stdin_reaches_the_command_and_ends(client: AgentClient) -> None:
    process = sh(client, "cat; echo end", stdin=True)
    process.write(b"some\0bytes\n")
    process.end_input()
    assert gather(process)[0] == b"some\0bytes\nend\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root's agent runs commands of others: sudo")
def test_a_user_may_open_its_streams_again_by_their_names(client: AgentClient) -> None:
    line = "cat /dev/stdin >/dev/stdout; echo err >/dev/stderr; stat -L -c %u /dev/stdout"
    process = client.exec(shell=line, user="65534", cwd="/tmp", stdin=True)
    process.write(b"in\n")
    process.end_input()
    assert gather(process) == (b"in\n65534\n", b"err\n")


@pytest.mark.skipif(os.getuid() != 0, reason="only root's agent runs commands of others: sudo")
def test_a_terminal_is_the_users_own(client: AgentClient) -> None:
    line = "stat -c '%u %a' $(tty)"
    process = client.exec(shell=line, user="65534", cwd="/tmp", window_size=(24, 80))
    assert b"".join(data for _, data in process.output()) == b"65534 620\r\n"


def test_a_command_without_stdin_reads_nothing(client: AgentClient) -> None:
    assert run(client, "cat; echo end")[0] == b"end\n"


def test_much_data_both_ways_through_windows_smaller_than_it(client: AgentClient) -> None:
    data = os.urandom(5 << 20)
    process = sh(client, "cat", stdin=True)

    def feed() -> None:
        for at in range(0, len(data), 100_000):
            process.write(data[at : at + 100_000])
        process.end_input()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert gather(process)[0] == data
    feeder.join()


def test_writing_to_a_command_that_has_ended_returns(client: AgentClient) -> None:
    process = sh(client, "exec <&-; sleep 0.1", stdin=True)
    for _ in range(100):
        process.write(bytes(100_000))
    assert process.wait().status == 0
    process.write(b"x")
    process.end_input()


def test_a_client_that_does_not_read_holds_the_command_up_and_nobody_else(
    client: AgentClient,
) -> None:
    flood = sh(client, "yes | head -c 8000000")
    assert run(client, "echo other")[0] == b"other\n"
    time.sleep(0.2)
    assert any(p["pid"] == flood.pid for p in client.processes()), "it should be waiting for us"
    assert len(gather(flood)[0]) == 8_000_000


def test_not_found_and_not_executable(client: AgentClient) -> None:
    end = client.exec(["no-such-program"], user=USER, cwd="/tmp").wait()
    assert (end.status, end.error) == (127, "no-such-program: command not found")
    assert client.exec(["/etc/passwd"], user=USER, cwd="/tmp").wait().status == 126
    assert client.exec(["/etc"], user=USER, cwd="/tmp").wait().status == 126


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cwd": "/no/such"}, "no such folder"),
        ({"cwd": "/etc/passwd"}, "no such folder"),
        ({"cwd": "relative"}, "absolute path"),
        ({"user": "nobody-of-that-name"}, "no user"),
        ({"user": "0:x"}, "no user"),
        ({"env": {"A=B": "c"}}, "names of variables"),
        ({"timeout_s": -1.0}, "positive number"),
    ],
)
def test_bad_requests_say_what_is_wrong(
    client: AgentClient, options: dict[str, object], message: str
) -> None:
    options = {"user": USER, "cwd": "/tmp"} | options
    with pytest.raises(RequestFailed, match=message):
        client.exec(["true"], **options).wait()  # type: ignore[arg-type]
    assert run(client, "echo still")[0] == b"still\n"


def test_a_signal_is_reported_as_such(client: AgentClient) -> None:
    end = sh(client, "kill -TERM $$").wait()
    assert (end.exit_code, end.signal, end.status) == (None, 15, 143)


def test_kill_reaches_the_whole_group(client: AgentClient) -> None:
    process = sh(client, "sleep 1000 & echo $!; wait")
    child = int(next(process.output()).data)
    process.kill(signal.SIGKILL)
    assert process.wait().signal == signal.SIGKILL
    assert_gone(child)
    process.kill()  # of one that has ended is no error


def end(process: RemoteProcess) -> None:
    """Kill it and wait: what is killed is still there for a moment."""
    process.kill()
    process.wait()


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} lives on")


@pytest.mark.slow
def test_the_time_limit_ends_a_command_that_ignores_sigterm(client: AgentClient) -> None:
    end = sh(client, "trap '' TERM; while :; do sleep 1; done", timeout_s=0.2).wait()
    assert end.timed_out and end.signal == signal.SIGKILL
    polite = sh(client, "sleep 1000", timeout_s=0.2).wait()
    assert polite.timed_out and polite.signal == signal.SIGTERM


def test_a_command_ends_though_what_it_started_lives_on(client: AgentClient) -> None:
    process = sh(client, "sleep 1000 & echo $!")
    out, _ = gather(process)
    assert process.wait().status == 0
    os.kill(int(out), signal.SIGKILL)


@pytest.mark.slow
def test_a_client_that_leaves_takes_its_commands_with_it(connect: Connect) -> None:
    client = connect()
    pid = sh(client, "trap '' HUP; sleep 1000 & wait").pid
    client.close()
    assert_gone(pid)


def test_cancelling_ends_the_command(client: AgentClient) -> None:
    process = sh(client, "sleep 1000")
    assert process.pid
    process.detach()
    assert process.wait().signal == signal.SIGTERM


def test_a_background_command_outlives_its_client_and_keeps_its_output(connect: Connect) -> None:
    first = connect()
    process = sh(first, "echo early; read line; echo got $line", background=True, stdin=True)
    assert next(process.output()).data == b"early\n"
    first.close()
    second = connect()
    again = second.attach(process.pid)
    again.write(b"word\n")
    assert gather(again)[0] == b"early\ngot word\n"
    assert again.wait().status == 0
    assert gather(second.attach(process.pid))[0] == b"early\ngot word\n"


def test_a_background_command_never_waits_for_a_reader(client: AgentClient) -> None:
    process = sh(client, "yes | head -c 30000000; echo done >&2", background=True)
    deadline = time.monotonic() + 60
    while not next(p for p in client.processes() if p["pid"] == process.pid)["end"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    out, err = gather(client.attach(process.pid))
    assert err == b"done\n" and 0 < len(out) <= 256 << 10
    assert len(gather(process)[0]) < 30_000_000 and process.lost_parts > 0


def test_attach_to_what_does_not_exist(client: AgentClient) -> None:
    with pytest.raises(RequestFailed, match="no command with process id 1$"):
        client.attach(1).wait()
    foreground = sh(client, "sleep 1000")
    with pytest.raises(RequestFailed, match="not in the background"):
        client.attach(foreground.pid).wait()
    end(foreground)


def test_a_terminal(client: AgentClient) -> None:
    process = sh(client, "tty; stty size; echo $TERM; read x; stty size", window_size=(33, 99))
    seen = b""
    output = process.output()
    while b"xterm" not in seen:
        seen += next(output).data
    process.resize(44, 111)
    process.write(b"\n")
    seen += b"".join(data for _, data in output)
    assert b"/dev/pts/" in seen and b"33 99" in seen and b"44 111" in seen
    assert process.wait().status == 0


def test_control_c_on_a_terminal_interrupts(client: AgentClient) -> None:
    # Not a shell: one that gets the signal just before it executes something may lose it.
    process = client.exec(["cat"], user=USER, cwd="/tmp", window_size=(24, 80))
    process.write(b"go\n")
    output, seen = process.output(), b""
    while seen.count(b"go") < 2:  # the terminal's echo and cat's
        seen += next(output).data
    process.write(b"\x03")
    assert process.wait().status == 128 + signal.SIGINT


def test_the_end_of_input_on_a_terminal(client: AgentClient) -> None:
    for _ in range(10):  # cat closes the terminal before it exits: no SIGHUP may hit it in between
        process = client.exec(["cat"], user=USER, cwd="/tmp", window_size=(24, 80))
        process.write(b"line\n")
        process.end_input()
        assert gather(process)[0].replace(b"\r", b"") == b"line\nline\n"
        assert process.wait().status == 0


def test_a_command_that_closes_its_terminal_before_it_ends_is_not_hung_up_on(
    client: AgentClient,
) -> None:
    line = "exec <&- >&- 2>&-; sleep 0.3; echo again > /dev/tty; exit 5"
    process = sh(client, line, window_size=(24, 80))
    assert gather(process)[0] == b"again\r\n"
    assert process.wait().exit_code == 5


def test_the_last_output_on_a_terminal_is_not_lost(client: AgentClient) -> None:
    for _ in range(20):
        process = sh(client, "printf %05000d 7", window_size=(24, 80))
        assert len(gather(process)[0]) == 5000


def test_a_signal_number_that_does_not_exist(client: AgentClient) -> None:
    process = sh(client, "sleep 1000")
    with pytest.raises(RequestFailed, match="no signal 99"):
        client.kill(process.pid, 99)
    end(process)


def test_commands_do_not_inherit_the_agents_descriptors_or_signals(client: AgentClient) -> None:
    out, _, _ = run(client, "ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status")
    count, ignored = out.decode().split("\n")[:2]
    assert int(count) == 4  # the three and ls's own
    c_library = 1 << (32 - 1) | 1 << (33 - 1)  # its own signals, which nobody can set
    assert int(ignored.split()[1], 16) & ~c_library == 0


@pytest.fixture(autouse=True)
def nothing_is_left_behind(client: AgentClient) -> Iterator[None]:
    yield
    assert not [p for p in client.processes() if p["end"] is None]


def test_a_command_whose_output_nobody_reads_ends_when_it_is_given_up(client: AgentClient) -> None:
    process = sh(client, "yes")
    pid = process.pid
    time.sleep(0.3)  # until the window is full
    process.detach()
    deadline = time.monotonic() + 60
    while any(p["pid"] == pid for p in client.processes()):
        assert time.monotonic() < deadline, "its request is never over"
        time.sleep(0.05)


def test_what_a_thread_asks_keeps_its_order_whoever_else_asks(client: AgentClient) -> None:
    """A cancellation that overtook its request would be lost, and the command run on."""
    failures: list[object] = []

    def work() -> None:
        for number in range(10):
            process = sh(client, "cat; exec sleep 1000", stdin=True)
            for part in range(5):
                process.write(b"%d" % part)
            if number % 2:
                process.end_input()
                seen = b""
                for _, data in process.output():
                    seen += data
                    if len(seen) == 5:
                        break
                if seen != b"01234":
                    failures.append(seen)
            process.detach()
            if process.wait().status == 0:
                failures.append("it ended by itself")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
