"""A machine in a worker of its own, as `voidbox run` and Guest have it."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.host_jail import WHY_NOT_STRICT, lacks_a_layer, needs_namespaces
from voidbox.errors import ConfigError, HostError
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import parse_forward
from voidbox.sandbox.worker import machine as machines
from voidbox.sandbox.worker.link import spawn_worker
from voidbox.sandbox.worker.machine import WorkerMachine, start_machine
from voidbox.sandbox.worker.surroundings import walls
from voidbox.snapshot.checks import Host
from voidbox.vmm.config import MachineConfig, VsockConfig
from voidbox.vmm.console import CallbackOutput
from voidbox.vmm.outcome import EndReason
from voidbox.vmm.restore import read_state

pytestmark = pytest.mark.kvm
LIMIT_S = 60.0


@contextmanager
def running(folder: Path, code: bytes, level: str = "default") -> Iterator[WorkerMachine]:
    """A machine that has said something."""
    kernel = tiny.write_elf(folder / "tiny.elf", tiny.say("x") + code)
    net = NatConfig(resolvers=())
    config = MachineConfig(kernel, memory_bytes=64 << 20, vsock=VsockConfig(), net=net)
    with closing(start_machine(config, level)) as machine:
        said = threading.Event()
        machine.console.attach(CallbackOutput(lambda data: said.set()))
        machine.start()
        assert said.wait(LIMIT_S)
        yield machine


@pytest.mark.parametrize("level", ["off", "default"])
def test_from_its_first_word_to_its_last(tmp_path: Path, level: str) -> None:
    code = tiny.say("last words\n") + tiny.out8(0x505, 1)
    with running(tmp_path, code, level) as machine:
        outcome = machine.wait(LIMIT_S)
        assert outcome is not None
        assert outcome.reason is EndReason.PANIC
        assert "last words" in outcome.console_tail
        assert "last words" in machine.console.tail()
        assert ("seccomp" in machine.layers) == (level == "default")
    assert machine.metrics()["exits"]["KVM_EXIT_IO"] > 0  # known after its end, too


def test_no_signal_is_for_its_threads(tmp_path: Path) -> None:
    """A program's SIGTERM would end it there, before its own handler hears of it."""
    before = set(os.listdir("/proc/self/task"))
    with running(tmp_path, tiny.SPIN):
        for task in set(os.listdir("/proc/self/task")) - before:
            status = Path(f"/proc/self/task/{task}/status").read_text()
            blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
            assert blocked >> (signal.SIGTERM - 1) & 1, status.splitlines()[0]


def test_its_keeper_s_loop_ends_before_what_it_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it reads from a descriptor that is closed, or by now somebody else's."""
    sockets_open: list[bool] = []
    with running(tmp_path, tiny.SPIN) as machine:
        stop, link = machine.loop.stop, machine._link

        def stop_and_look() -> None:
            stop()
            sockets_open.append(min(link.asks.fileno(), link.console.fileno()) >= 0)

        monkeypatch.setattr(machine.loop, "stop", stop_and_look)
    assert sockets_open[0]


def test_what_may_be_ordered(tmp_path: Path) -> None:
    with running(tmp_path, tiny.SPIN) as machine:
        machine.pause()
        assert machine.is_paused
        machine.resume()
        machine.limit({"cpu": 0.5, "net_bytes_s": 5000})
        forward = machine.publish(parse_forward("0:80"))
        assert forward.host_port and machine.published() == [forward]
        assert machine.unpublish(forward) and not machine.unpublish(forward)
        line = machine.connect_serial()
        assert line is None  # it was made without
        machine.stop()
        outcome = machine.wait(LIMIT_S)
        assert outcome is not None and outcome.reason is EndReason.STOPPED


def test_a_worker_that_is_killed_says_by_what(tmp_path: Path) -> None:
    with running(tmp_path, tiny.SPIN) as machine:
        machine._link.kill()
        outcome = machine.wait(LIMIT_S)
        assert outcome is not None and outcome.reason is EndReason.ERROR
        assert "killed by SIGKILL" in outcome.detail


def test_a_worker_that_does_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be somebody else's by now: here it is stopped, and hears nothing."""
    monkeypatch.setattr(machines, "_STOP_S", 0.1)
    with running(tmp_path, tiny.SPIN) as machine:
        os.kill(machine._link.settle(), signal.SIGSTOP)
        machine.stop()
        outcome = machine.wait(LIMIT_S)
        assert outcome is not None and outcome.reason is EndReason.ERROR


def test_bad_input_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the kernel"):
        start_machine(MachineConfig(str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="choose default, strict, off"):
        start_machine(MachineConfig("k"), "loose")


@pytest.mark.parametrize("level", ["default", "strict"])
def test_it_copies_itself_for_a_snapshot_that_was_ordered_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    if level == "strict" and lacks_a_layer():
        pytest.skip(WHY_NOT_STRICT)
    kernel = tiny.write_elf(tmp_path / "tiny.elf", tiny.say("x") + tiny.SPIN)
    config = MachineConfig(kernel, memory_bytes=64 << 20)
    own = tmp_path / "own"
    own.mkdir()
    around = walls(config, level, str(own))

    def save(name: str) -> str:
        return machine.snapshot(
            str(own / name), stop=False, disks="copy", timeout_s=LIMIT_S, extra={}
        )

    with closing(WorkerMachine(spawn_worker(level), config, around)) as machine:
        machine.start()
        for name in ("one", "two"):
            save(name)
            assert (own / name / "memory").stat().st_size
        # As if nobody had ordered it: the worker tries all the same.
        monkeypatch.setattr(type(machine._serving), "one_fork", lambda self: nullcontext())
        with pytest.raises(HostError, match="fork: EPERM"):
            save("three")
        assert "jail: refused clone (0x1200011" in caplog.text
        assert machine.metrics()["vcpu_ns"] > 0  # it goes on


@pytest.mark.parametrize("level", ["off", "default"])
def test_a_snapshot_says_of_which_processor_it_is(tmp_path: Path, level: str) -> None:
    kernel = tiny.write_elf(tmp_path / "tiny.elf", tiny.say("x") + tiny.SPIN)
    config = MachineConfig(kernel, memory_bytes=64 << 20)
    own = tmp_path / "own"
    own.mkdir()
    around = walls(config, level, str(own))
    path = str(own / "one")
    with closing(WorkerMachine(spawn_worker(level), config, around)) as machine:
        machine.start()
        machine.snapshot(path, stop=False, disks="copy", timeout_s=LIMIT_S, extra={})
    assert read_state(path).host == Host.here()


def test_a_snapshot_outlives_the_guest_that_it_is_of(tmp_path: Path) -> None:
    """A template of a sandbox that lives for a moment is written to its end."""
    kernel = tiny.write_elf(tmp_path / "tiny.elf", tiny.say("x") + tiny.SPIN)
    config = MachineConfig(kernel, memory_bytes=64 << 20)
    own = tmp_path / "own"
    own.mkdir()

    with closing(
        WorkerMachine(spawn_worker("default"), config, walls(config, "default", str(own)))
    ) as machine:
        machine.start()

        def end() -> None:
            machine.stop()
            assert machine.wait(LIMIT_S)

        machine.snapshot(
            str(own / "one"), stop=False, disks="copy", timeout_s=LIMIT_S, extra={}, on_frozen=end
        )
    assert (own / "one" / "machine.bin").stat().st_size


@needs_namespaces
def test_it_is_process_1_and_ends_with_its_warden(tmp_path: Path) -> None:
    with running(tmp_path, tiny.SPIN) as machine:
        assert "pid" in machine.layers
        pid = machine._link.settle()
        status = Path(f"/proc/{pid}/status").read_text()
        assert status.partition("NSpid:")[2].split("\n")[0].split() == [str(pid), "1"]
        warden_pid = machine._link._child_pid
        assert f"PPid:\t{warden_pid}\n" in status
        warden = Path(f"/proc/{warden_pid}/status").read_text()
        assert "CapPrm:\t0000000000000000" in warden and "NoNewPrivs:\t1" in warden
        worker_fd = os.pidfd_open(pid)
        os.kill(warden_pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(worker_fd, select.POLLIN)
        assert poll.poll(LIMIT_S * 1000)
        os.close(worker_fd)
        outcome = machine.wait(LIMIT_S)
        assert outcome is not None and "killed by SIGKILL" in outcome.detail
