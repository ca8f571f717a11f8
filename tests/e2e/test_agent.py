"""The agent in real guests: the same tests over both vsock backends and over the serial line."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.terminal import Session
from tests.in_process import InProcessGuest as Guest
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.cli import exit_status
from voidbox.errors import AgentError
from voidbox.sandbox.guest import MachineEndpoint
from voidbox.vmm.config import MachineConfig, VsockConfig

pytestmark = pytest.mark.boot

WAYS = ["unix", "vhost", "serial"]
RUN = [sys.executable, "-m", "voidbox", "run", "--image", "tiny"]
# 10,000 take five minutes in the lab.
CONNECTIONS_SEQUENTIAL = int(os.environ.get("VOIDBOX_CONNECTIONS", "1000"))
CONNECTIONS_PARALLEL = 1000
BOOT_S = 300
# Echoes on vsock port 7.
ECHO = """
import selectors, socket
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, 7))
listener.listen(4096)
print("up", flush=True)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
        elif data := key.fileobj.recv(4096):
            key.fileobj.sendall(data)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""


class Booted(NamedTuple):
    """A guest that runs, its client, and what was logged on the way."""

    guest: Guest
    client: AgentClient
    log: list[str]
    way: str


def make_guest(kernel: str, image: str, way: str, cpus: int = 1) -> Guest:
    config = MachineConfig(
        kernel,
        image,
        cpus=cpus,
        vsock=VsockConfig(cid=77, is_vhost=True) if way == "vhost" else None,
    )
    return Guest(config, has_vsock=way != "serial")


@pytest.fixture(
    scope="module",
    params=[(name, way) for name in ("minimal", "cloud") for way in WAYS],
    ids=lambda param: "-".join(param),
)
def booted(
    request: pytest.FixtureRequest, kernels: dict[str, str], guest_images: dict[str, str]
) -> Iterator[Booted]:
    name, way = request.param
    log: list[str] = []
    with make_guest(kernels[name], guest_images[name], way) as guest:
        guest.machine.start()
        with guest.connect(BOOT_S, log.append) as client:
            yield Booted(guest, client, log, way)


def run(client: AgentClient, line: str, **options: object) -> tuple[str, str, int]:
    process = client.exec(shell=line, **options)  # type: ignore[arg-type]
    streams = {protocol.STDOUT: b"", protocol.STDERR: b""}
    for stream, data in process.output():
        streams[stream] += data
    return (
        streams[protocol.STDOUT].decode(),
        streams[protocol.STDERR].decode(),
        process.wait().status,
    )


def test_how_it_was_reached_is_logged(booted: Booted) -> None:
    if booted.way == "serial":
        assert booted.client.is_serial
        assert "via serial" in booted.log[0]
    else:
        cid = booted.guest.machine.config.vsock.cid  # type: ignore[union-attr]
        assert not booted.client.is_serial
        assert booted.log[0].startswith("[vsock] attempt ")
        assert booted.log[0].endswith(f" connect OK (cid={cid}, port=1234)")
    assert booted.log[1].startswith("handshake OK (Pong received)")


def test_a_command_runs_as_the_sandbox_user(booted: Booted) -> None:
    out, err, status = run(booted.client, "id -u; id -g; pwd; echo $HOME; echo e >&2; exit 3")
    assert (out, err, status) == ("1000\n1000\n/workspace\n/home/sandbox\n", "e\n", 3)
    assert run(booted.client, "id -u; pwd", user="root")[0] == "0\n/root\n"
    assert run(booted.client, "echo x > /workspace/f && cat /workspace/f && rm f")[0] == "x\n"
    assert run(booted.client, "echo x > /root/f")[2] != 0


def test_a_user_opens_its_streams_again_by_their_names(booted: Booted) -> None:
    line = "ln -s /dev/stdout /tmp/access.log; echo out >/tmp/access.log; echo err >/dev/stderr"
    assert run(booted.client, f"{line}; rm /tmp/access.log") == ("out\n", "err\n", 0)


def test_what_left_a_commands_process_group_ends_at_its_time_limit(booted: Booted) -> None:
    line = "setsid sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 1000' & sleep 1000"
    process = booted.client.exec(shell=line, timeout_s=2.0)
    daemon = int(b"".join(data for _, data in process.output()))
    assert process.wait().timed_out
    line = f"until ! kill -0 {daemon}; do sleep 0.1; done; cat /proc/1/cgroup"
    assert "0::/\n" in run(booted.client, line, user="root", timeout_s=60.0)[0]


def test_commands_have_nothing_of_the_agents(booted: Booted) -> None:
    line = "grep -E '^(SigBlk|CapPrm|CapEff|Threads)' /proc/self/status; ulimit -n; umask"
    zero = "0" * 16
    expected = f"Threads:\t1\nSigBlk:\t{zero}\nCapPrm:\t{zero}\nCapEff:\t{zero}\n1024\n0022\n"
    assert run(booted.client, line)[0] == expected


def test_many_messages_on_one_connection(booted: Booted) -> None:
    for number in range(10):
        assert run(booted.client, f"echo {number}")[0] == f"{number}\n"


def test_the_secret_is_nowhere_to_be_read(booted: Booted) -> None:
    out, _, _ = run(booted.client, "cat /etc/voidbox/secret /proc/cmdline", user="root")
    assert "secret" not in out
    assert booted.guest.secret.hex() not in out
    assert run(booted.client, "cat /proc/1/environ")[2] != 0


def test_stdin_files_and_checksums(booted: Booted) -> None:
    data = os.urandom(2_000 if booted.way == "serial" else 3 << 20)
    client = booted.client
    assert client.write_file("/workspace/dir/data", io.BytesIO(data), mode=0o640) == len(data)
    out, _, _ = run(client, "sha256sum < dir/data; stat -c %a:%u dir/data")
    assert out == f"{hashlib.sha256(data).hexdigest()}  -\n640:1000\n"
    back = io.BytesIO()
    client.read_file("/workspace/dir/data", back)
    assert back.getvalue() == data
    process = client.exec(["sha256sum"], stdin=True)
    process.write(data)
    process.end_input()
    assert next(process.output()).data.decode().split()[0] == hashlib.sha256(data).hexdigest()
    assert process.wait().status == 0
    assert [entry["name"] for entry in client.list_files("/workspace/dir")] == ["data"]
    client.remove("/workspace/dir", recursive=True)
    with pytest.raises(RequestFailed, match="No such file"):
        client.stat("/workspace/dir")


def test_a_full_disk_leaves_no_partial_file(booted: Booted) -> None:
    client = booted.client
    line = "mkdir -p /mnt/s && mount -t tmpfs -o size=4k,mode=777 t /mnt/s"
    assert run(client, line, user="root")[2] == 0
    with pytest.raises(RequestFailed, match="No space left"):
        client.write_file("/mnt/s/big", io.BytesIO(bytes(10_000)))
    assert list(client.list_files("/mnt/s")) == []
    assert run(client, "umount /mnt/s", user="root")[2] == 0


def test_a_watch_and_a_background_command(booted: Booted) -> None:
    client = booted.client
    client.make_dir("/workspace/w")
    watch = client.watch("/workspace/w")
    process = client.exec(shell="read x; touch w/$x; sleep 1000", stdin=True, background=True)
    process.write(b"made\n")
    event = watch.next(60)
    assert event is not None and (event["kind"], event["name"]) == ("create", "made")
    watch.close()
    process.kill()
    assert process.wait().signal == signal.SIGKILL
    client.remove("/workspace/w", recursive=True)


def test_a_terminal(booted: Booted) -> None:
    process = booted.client.exec(["/bin/sh"], window_size=(30, 90))
    process.write(b"stty size; echo got-$((6*7)); exit 4\n")
    seen = b"".join(output.data for output in process.output())
    assert b"30 90" in seen and b"got-42" in seen
    assert process.wait().status == 4


def test_metrics_and_entropy(booted: Booted) -> None:
    metrics = booted.client.metrics()
    assert metrics["cpus"] == 1
    assert 400 << 20 < metrics["memory_bytes"] < 512 << 20
    assert run(booted.client, "head -c 16 /dev/random | wc -c")[0] == "16\n"


def test_the_kernel_has_every_interrupt_it_was_told_of(booted: Booted) -> None:
    log = run(booted.client, "dmesg", user="root")[0]
    assert "Linux version" in log
    assert "failed to setup event handler" not in log


def test_python_is_whole(booted: Booted) -> None:
    line = "import bz2,ctypes,lzma,readline,sqlite3,ssl,zlib; print(sqlite3.connect(':memory:'))"
    out, err, status = run(booted.client, f'python3 -c "{line}"')
    assert status == 0 and "sqlite3.Connection" in out, err


def test_an_orphan_is_reaped(booted: Booted) -> None:
    run(booted.client, "(sleep 0.1 &) &")
    deadline = time.monotonic() + 60
    while "Z" in run(booted.client, "cat /proc/[0-9]*/stat | cut -d' ' -f3")[0]:
        assert time.monotonic() < deadline, "a zombie stays"


def test_the_guests_end_in_the_middle_of_a_command_is_told_at_once(booted: Booted) -> None:
    """The last one of these, for it ends the guest."""
    process = booted.client.exec(["sleep", "1000"])
    assert process.pid
    booted.client.exec(shell="echo c > /proc/sysrq-trigger; poweroff -f", user="root")
    with pytest.raises(AgentError, match="(?s)lost.*the guest"):
        process.wait()


def cli(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*RUN, *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_the_command_line_passes_everything_through() -> None:
    data = os.urandom(100_000)
    result = cli("-v", "-e", "X=a b", "--", "sh", "-c", 'cat; echo "$X" >&2; exit 9', stdin=data)
    assert (result.returncode, result.stdout) == (9, data)
    lines = result.stderr.decode().splitlines()
    assert "a b" in lines
    assert any(line.startswith("handshake OK (Pong received)") for line in lines)
    assert "ExecResponse received exit_code=9" in lines


def test_the_command_lines_failures_are_lines() -> None:
    result = cli("--", "no-such-command")
    assert (result.returncode, result.stderr) == (
        127,
        b"voidbox: no-such-command: command not found\n",
    )
    result = cli("-w", "/nowhere", "--", "true")
    assert result.returncode == exit_status.USAGE
    assert result.stderr == b"voidbox: cannot work in /nowhere: there is no such folder\n"
    result = cli("--timeout", "15", "--", "sleep", "1000")
    assert result.returncode == exit_status.TIMEOUT and b"15 s" in result.stderr


def test_a_signal_reaches_the_command() -> None:
    process = subprocess.Popen(
        [*RUN, "--", "sh", "-c",
         "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n", process.stderr.read()
        assert process.wait(120) == 5


def test_a_shell_on_a_terminal() -> None:
    with Session(RUN, str(ROOT)) as session:
        session.expect(r"sandbox@voidbox:/workspace\$ ")
        session.type("tty; echo $((40 + 2))-\r")
        session.expect("42-")
        session.type("sh -c \"echo g''o; cat\"\r")
        session.expect("\ngo\r")
        session.type("typed\r")
        session.expect("typed\r\ntyped")  # it runs: Ctrl-C is for it alone
        session.type("\x03")
        session.expect(r"\$ ")
        session.type("exit 6\r")
        assert session.wait() == 6


def test_many_connections_and_a_shutdown(
    kernels: dict[str, str], guest_images: dict[str, str]
) -> None:
    """Through a real guest's rings, which wrap many times; nothing is left behind."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # both ends of each are ours
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with make_guest(kernels["minimal"], guest_images["minimal"], "unix") as guest:
        guest.machine.start()
        with guest.connect(BOOT_S) as client:
            server = client.exec(["python3", "-c", ECHO], user="root")
            assert next(server.output()).data == b"up\n"
            check_connections(guest)
            server.kill()
            check_shutdown(guest, client)


def check_shutdown(guest: Guest, client: AgentClient) -> None:
    """A request is enough to power the machine off, also where a command ignores SIGTERM."""
    client.exec(shell="trap '' TERM; sleep 1000", background=True)
    client.shut_down()
    outcome = guest.machine.wait(120)
    assert outcome is not None and outcome.reason.name == "POWER_OFF"


def check_connections(guest: Guest) -> None:
    endpoint = MachineEndpoint(guest.machine)
    backend = guest.machine._peripherals.unix_backend
    assert backend is not None

    def count_fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    def rss_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def exchange(number: int) -> None:
        with endpoint.connect(7, 60) as sock:
            sock.sendall(b"%d" % number)
            assert sock.recv(100) == b"%d" % number

    for number in range(200):
        exchange(number)
    fds, rss = count_fds(), rss_bytes()
    for number in range(CONNECTIONS_SEQUENTIAL):
        exchange(number)
    held = [endpoint.connect(7, 60) for _ in range(CONNECTIONS_PARALLEL)]
    for number, sock in enumerate(held):
        sock.sendall(b"%d" % number)
    for number, sock in enumerate(held):
        assert sock.recv(100) == b"%d" % number
        sock.close()
    deadline = time.monotonic() + 60
    while backend.statistics().muxer.connections > 1 or count_fds() > fds:
        assert time.monotonic() < deadline, (backend.statistics(), count_fds(), fds)
        time.sleep(0.05)
    assert rss_bytes() - rss < 16 << 20
    assert threading.active_count() < 12
