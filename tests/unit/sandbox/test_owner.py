"""A sandbox's process: how it begins, what can be asked of it, and all the ways it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.unit.sandbox.owned import DEADLINE_S, FAKE_OWNER, Sandboxes, wait_until
from tests.unit.sandbox.states import ROOT, wanted
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.launch import launch, reap, wait_ended
from voidbox.sandbox.state.lifecycle import State
from voidbox.storage.locking import FileLock


def sockets(sandboxes: Sandboxes, id: str) -> list[str]:
    return [name for name in os.listdir(sandboxes.store.path(id)) if name.endswith(".sock")]


def test_a_sandbox_from_its_start_to_its_stop(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    assert record.state is State.RUNNING
    assert record.started_at is not None
    assert os.getsid(record.pid) == record.pid != os.getsid(0)
    pidfd = os.pidfd_open(record.pid)
    with sandboxes.connect(record) as client:
        process = client.exec(["echo", "hello"], user=str(os.getuid()), cwd="/")
        assert b"".join(part.data for part in process.output()) == b"hello\n"
    assert "the guest boots" in sandboxes.file(record, "console.log")
    assert "via vsock" in sandboxes.file(record, "owner.log")
    sandboxes.control(record).request("stop", timeout=20)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason, ended.crash) == (State.STOPPED, "it was stopped", "")
    assert ended.ended_at is not None
    assert not sandboxes.store.is_alive(record.id)
    assert sockets(sandboxes, record.id) == ["agent.sock"]  # which the fake machine leaves
    assert sandboxes.create().cid == record.cid
    select.select([pidfd], [], [])  # its last words were not quite its end
    os.close(pidfd)
    reap()
    with pytest.raises(ChildProcessError):
        os.waitpid(record.pid, os.WNOHANG)


@pytest.mark.parametrize(("start_s", "agent_s"), [(None, 60), (1.0, 60), (300.0, 300)])
def test_a_guest_has_a_minute_to_answer_or_as_long_as_its_start_may_take(
    sandboxes: Sandboxes, start_s: float | None, agent_s: int
) -> None:
    record = sandboxes.launch(start_s=start_s)
    assert f"the agent has {agent_s} s\n" in sandboxes.file(record, "owner.log")


def test_its_output_goes_to_its_log_and_it_reads_nothing(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    targets = [os.readlink(f"/proc/{record.pid}/fd/{number}") for number in range(3)]
    log = sandboxes.store.path(record.id, "owner.log")
    assert targets == ["/dev/null", log, log]
    os.kill(record.pid, signal.SIGHUP)  # a terminal was closed
    assert sandboxes.control(record).request("info")["record"]["state"] == "running"  # type: ignore[index]


def test_kill_and_wait(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    answers: list[dict[str, object]] = []
    waiter = threading.Thread(
        target=lambda: answers.append(sandboxes.control(record).request("wait"))
    )
    waiter.start()
    sandboxes.control(record).request("kill")
    waiter.join(DEADLINE_S)
    assert answers[0]["record"]["state"] == "stopped"  # type: ignore[index]
    assert answers[0]["record"]["reason"] == "it was killed"  # type: ignore[index]
    # Whoever was told that it has ended can remove it.
    sandboxes.store.remove(record.id)
    with pytest.raises(AgentError, match="gone"):
        sandboxes.control(record).request("info")


def test_a_kill_that_leaves_nothing(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    sandboxes.control(record).request("kill", leaves_nothing=True)
    assert wait_ended(sandboxes.store, record.id, DEADLINE_S)
    assert not sandboxes.store.list()


def test_a_kill_waits_for_nobody_who_has_the_folders_lock(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    with FileLock(f"{sandboxes.store.folder}/lock"):
        sandboxes.control(record).request("kill", leaves_nothing=True)
        wait_until(
            lambda: "killing the guest" in sandboxes.file(record, "owner.log"), "it is killed"
        )
    assert wait_ended(sandboxes.store, record.id, DEADLINE_S)
    assert not sandboxes.store.list()


def test_a_guest_that_powers_off_has_ended_well(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    with sandboxes.connect(record) as client:
        client.shut_down()
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.STOPPED, "the guest powered off")


def test_a_guest_that_panics_ends_what_is_asked_of_it_with_its_story(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    with sandboxes.connect(record) as client:
        process = client.exec(["sleep", "60"], user=str(os.getuid()), cwd="/")
        assert process.pid
        os.kill(sandboxes.agent_pid(record), signal.SIGKILL)
        with pytest.raises(AgentError, match=r"(?s)panicked: Attempted.*the guest boots"):
            process.wait()
    ended = sandboxes.wait_ended(record)
    assert ended.state is State.CRASHED
    assert ended.reason == "the guest's kernel panicked: Attempted to kill init!"
    assert "the guest boots" in ended.crash
    with pytest.raises(AgentError, match="panicked"):
        sandboxes.connect(record)


def test_a_killed_process_is_a_crash_that_the_next_command_sees(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    endpoint = StoredEndpoint(sandboxes.store, record)
    assert not endpoint.has_ended(0)
    os.kill(record.pid, signal.SIGKILL)
    assert endpoint.has_ended(DEADLINE_S)
    assert "its process was killed" in endpoint.explain_end()
    assert wait_ended(sandboxes.store, record.id, DEADLINE_S)
    reap()
    assert [crashed.id for crashed in sandboxes.store.clean()] == [record.id]
    ended = sandboxes.store.read(record.id)
    assert (ended.state, ended.reason) == (State.CRASHED, "its process was killed")
    assert "control.sock" not in sockets(sandboxes, record.id)
    assert "vsock.sock" not in sockets(sandboxes, record.id)


def test_the_time_limit(sandboxes: Sandboxes) -> None:
    """It begins with the start, which takes a busy machine seconds: see tests/guest for that."""
    record = sandboxes.launch(timeout_s=1000.0)
    sandboxes.control(record).request("set_timeout", timeout=0.1)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.STOPPED, "its time limit ran out")
    assert ended.ended_at is not None


@pytest.mark.slow
def test_the_time_limit_can_be_changed(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(timeout_s=10.0)
    control = sandboxes.control(record)
    control.request("set_timeout", timeout=None)
    assert not wait_ended(sandboxes.store, record.id, 10.5)
    assert sandboxes.store.read(record.id).timeout_s is None
    control.request("set_timeout", timeout=0.1)
    assert sandboxes.wait_ended(record).reason == "its time limit ran out"
    for wrong in (-1, "1", True, [], 1e400):
        with pytest.raises((ConfigError, AgentError)):
            control.request("set_timeout", timeout=wrong)


def test_it_ends_with_the_process_that_owns_it(sandboxes: Sandboxes) -> None:
    reader, writer = os.pipe()
    try:
        record = sandboxes.launch(parent_fd=reader, is_owned=True)
        os.write(writer, b"words mean nothing")
        assert not wait_ended(sandboxes.store, record.id, 0.3)
    finally:
        os.close(reader)
        os.close(writer)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.STOPPED, "the process that owned it ended")


@pytest.mark.slow
def test_a_lost_agent_is_a_crash(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch("nervous")
    os.kill(sandboxes.agent_pid(record), signal.SIGSTOP)
    ended = sandboxes.wait_ended(record)
    assert (ended.state, ended.reason) == (State.CRASHED, "the guest's agent does not answer")
    assert "the guest boots" in ended.crash
    assert "(2 of 3)" in sandboxes.file(record, "owner.log")


@pytest.mark.slow
def test_pause_and_resume(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch("nervous")
    control = sandboxes.control(record)
    control.request("pause")
    assert sandboxes.store.read(record.id).state is State.PAUSED
    with pytest.raises(ConfigError, match="paused cannot be paused"):
        control.request("pause")
    assert not wait_ended(sandboxes.store, record.id, 2), "a paused guest need not answer"
    control.request("resume")
    assert sandboxes.store.read(record.id).state is State.RUNNING
    with sandboxes.connect(record) as client:
        assert client.metrics()["cpus"] >= 1
    with pytest.raises(ConfigError, match="running cannot be resumed"):
        control.request("resume")
    control.request("pause")
    control.request("stop", timeout=20)
    assert sandboxes.wait_ended(record).reason == "it was stopped"


@pytest.mark.slow
def test_a_guest_that_does_not_react_is_killed_in_the_end(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    os.kill(sandboxes.agent_pid(record), signal.SIGSTOP)
    sandboxes.control(record).request("stop", timeout=0.3)
    assert sandboxes.store.read(record.id).state is State.STOPPING
    sandboxes.control(record).request("stop", timeout=9)  # no error, and no longer wait
    # The button's SIGTERM does nothing to a stopped process.
    ended = sandboxes.wait_ended(record)
    assert ended.state is State.STOPPED
    assert "was killed" in ended.reason
    log = sandboxes.file(record, "owner.log")
    for step in ("asking the guest's agent", "pressing the power button", "killing it"):
        assert step in log
    assert "the power button was pressed" in sandboxes.file(record, "console.log")


def test_sigterm_stops_and_a_second_one_kills(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    os.kill(record.pid, signal.SIGTERM)
    assert sandboxes.wait_ended(record).reason == "it was stopped"
    record = sandboxes.launch()
    os.kill(sandboxes.agent_pid(record), signal.SIGSTOP)
    os.kill(record.pid, signal.SIGTERM)
    wait_until(
        lambda: sandboxes.store.read(record.id).state is State.STOPPING, "SIGTERM was not heard"
    )
    wait_until(lambda: "asking" in sandboxes.file(record, "owner.log"), "it did not begin")
    os.kill(record.pid, signal.SIGTERM)
    assert sandboxes.wait_ended(record).reason == "it was killed by a second SIGTERM"


def test_one_that_removes_itself_leaves_nothing(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch(removes_itself=True)
    answers: list[dict[str, object]] = []
    waiter = threading.Thread(
        target=lambda: answers.append(sandboxes.control(record).request("wait"))
    )
    waiter.start()
    time.sleep(0.1)
    sandboxes.control(record).request("stop")
    waiter.join(DEADLINE_S)
    assert answers[0]["record"]["reason"] == "it was stopped"  # type: ignore[index]
    assert sandboxes.store.list() == []
    assert not os.path.exists(sandboxes.store.path(record.id))


def test_one_that_nobody_waits_for_any_more_does_not_begin(sandboxes: Sandboxes) -> None:
    record = sandboxes.create()
    ours, theirs = os.pipe()
    os.close(ours)  # whoever starts it is gone
    command = [sys.executable, "-P", "-m", FAKE_OWNER, sandboxes.store.path(record.id)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--status-fd", str(theirs)], pass_fds=[theirs], env=environment
    ) as process:
        os.close(theirs)
        sandboxes.store.release(record.id)
        assert process.wait(DEADLINE_S) == 1
    assert [one.id for one in sandboxes.store.clean()] == [record.id]


def test_what_cannot_begin_leaves_nothing_and_says_why(sandboxes: Sandboxes) -> None:
    with pytest.raises(ConfigError, match="the kernel is no kernel"):
        sandboxes.launch("bad")
    with pytest.raises(HostError, match="voidbox failed: ZeroDivisionError"):
        sandboxes.launch("bug")
    with pytest.raises(ConfigError, match="vsock 'carrier pigeon'"):
        sandboxes.launch(vsock="carrier pigeon")
    with pytest.raises(ConfigError, match="no color"):
        sandboxes.launch(net={"color": "red"})
    assert sandboxes.store.list() == []


def test_a_failed_boot_is_told_and_kept(sandboxes: Sandboxes) -> None:
    with pytest.raises(AgentError, match=r"(?s)panicked.*the guest boots"):
        sandboxes.launch("panic")
    (record,) = sandboxes.store.list()
    assert record.state is State.CRASHED
    assert "the guest boots" in record.crash
    sandboxes.store.remove(record.id)


def test_it_can_be_killed_while_it_boots(sandboxes: Sandboxes) -> None:
    record = sandboxes.create("slow")
    errors: list[BaseException] = []

    def start() -> None:
        try:
            launch(sandboxes.store, record, owner=FAKE_OWNER)
        except AgentError as error:
            errors.append(error)

    launcher = threading.Thread(target=start)
    launcher.start()
    log = Path(sandboxes.store.path(record.id, "console.log"))
    wait_until(lambda: log.exists() and "boots" in log.read_text(), "it did not boot")
    sandboxes.control(record).request("stop")
    launcher.join(DEADLINE_S)
    assert [str(error) for error in errors] == ["it was stopped before it had booted"]
    assert sandboxes.store.read(record.id).state is State.STOPPED


def test_a_process_that_dies_at_its_start_is_told(sandboxes: Sandboxes) -> None:
    record = sandboxes.create()
    with pytest.raises(HostError, match="No module named"):
        launch(sandboxes.store, record, owner="voidbox.sandbox.no_such_module")
    assert sandboxes.store.list() == []  # nothing had begun


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("os.pipe", OSError(24, "EMFILE"), "pipe: EMFILE"),
        ("subprocess.Popen", BlockingIOError(11, "EAGAIN"), "start .*: EAGAIN"),
    ],
)
def test_a_process_that_cannot_be_started_leaves_nothing(
    sandboxes: Sandboxes, target: str, error: OSError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sandboxes.create()

    def fail(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(target, fail)
        with pytest.raises(HostError, match=message):
            launch(sandboxes.store, record, owner=FAKE_OWNER)
    assert sandboxes.store.list() == []
    assert not os.listdir(f"{sandboxes.store.folder}/sandboxes")


@pytest.mark.parametrize("descriptors", [7, 10])
def test_a_process_that_cannot_set_itself_up_leaves_nothing(
    descriptors: int, sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With seven it cannot take its record, with ten no epoll."""
    start = subprocess.Popen
    limit = ["prlimit", f"--nofile={descriptors}"]
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start([*limit, *command], **options)
    )
    with pytest.raises(HostError, match="Too many open files") as caught:
        sandboxes.launch()
    assert "\n" not in str(caught.value)
    assert sandboxes.store.list() == []


def test_it_keeps_no_folder_of_its_callers(
    sandboxes: Sandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"lib{os.pathsep}")
    record = sandboxes.launch()
    assert os.readlink(f"/proc/{record.pid}/cwd") == "/"
    environment = Path(f"/proc/{record.pid}/environ").read_bytes().decode().split("\0")
    (path,) = (line for line in environment if line.startswith("PYTHONPATH="))
    assert path == f"PYTHONPATH={ROOT}:{tmp_path}/lib"


def test_it_counts_from_the_start_of_its_machine(sandboxes: Sandboxes) -> None:
    """Its time limit does; so what says when it ends must, too."""
    record = sandboxes.launch()
    before = time.time()
    uptime_s = sandboxes.control(record).request("metrics")["uptime_s"]
    after = time.time()
    assert record.started_at is not None
    assert isinstance(uptime_s, float)
    assert before - uptime_s - 0.05 < record.started_at < after - uptime_s + 0.05


def test_the_folder_one_is_in_cannot_replace_modules(
    sandboxes: Sandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit('gotcha')")
    monkeypatch.chdir(tmp_path)
    assert sandboxes.launch().state is State.RUNNING


def test_metrics_ports_and_the_serial_line(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    control = sandboxes.control(record)
    metrics = control.request("metrics")
    assert metrics["exits"] == {"KVM_EXIT_IO": 7}
    assert isinstance(metrics["rss_bytes"], int)
    assert metrics["rss_bytes"] > 1 << 20
    assert control.request("port_list")["forwards"] == []
    with pytest.raises(ConfigError, match="no network"):
        control.request("port_add", publish="8080:80")
    with control.request_socket("connect_serial") as line:
        assert line.recv(100) == b"hello from the line"
    with pytest.raises(ConfigError, match="no op 'dance'; there are info"):
        control.request("dance")


@pytest.mark.slow
def test_many_rounds_leave_nothing(sandboxes: Sandboxes) -> None:
    def round_trip() -> None:
        record = sandboxes.launch(removes_itself=True)
        sandboxes.control(record).request("kill")
        assert wait_ended(sandboxes.store, record.id, DEADLINE_S)

    children = Path(f"/proc/self/task/{os.getpid()}/children")
    round_trip()
    descriptors, before = len(os.listdir("/proc/self/fd")), children.read_text()
    for _ in range(3):
        round_trip()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert os.listdir(f"{sandboxes.store.folder}/sandboxes") == []
    assert children.read_text() == before


def test_a_silent_process_is_a_timeout(sandboxes: Sandboxes) -> None:
    record = sandboxes.launch()
    os.kill(record.pid, signal.SIGSTOP)
    from voidbox.sandbox.control import ControlClient

    client = ControlClient(sandboxes.store.path(record.id, "control.sock"), 0.2)
    with pytest.raises(SandboxTimeout, match="within 0.2 s"):
        client.request("info")
    os.kill(record.pid, signal.SIGCONT)
    assert sandboxes.control(record).request("info")


@pytest.mark.parametrize("content", ["{bad", None])
def test_a_corrupted_record_is_made_anew_by_what_its_process_knows(
    sandboxes: Sandboxes, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = sandboxes.store
    record = sandboxes.launch(name="live")
    state = Path(store.path(record.id, "state.json"))

    def corrupt() -> None:
        state.unlink() if content is None else state.write_text(content)

    corrupt()
    with pytest.raises(ConfigError, match="there is a sandbox called live already"):
        store.create(wanted("live"))
    corrupt()
    assert store.read("live") == store.read(record.id) == record
    corrupt()
    assert store.list() == [record] and store.clean() == []
    corrupt()
    fd = store.open_owner(record.id)
    assert fd is not None
    os.close(fd)
    corrupt()
    assert store.rename(record.id, "other").pid == record.pid
    assert json.loads(state.read_text())["name"] == "other"
    aside = Path(store.folder, "set-aside")
    assert (len(list(aside.iterdir())) if aside.exists() else 0) == (5 if content else 0)
    assert caplog.text.count("made anew, for the sandbox runs") == 5
