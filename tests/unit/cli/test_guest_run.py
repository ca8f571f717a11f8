"""`voidbox run -- COMMAND`: what signals do, with an agent that does not answer."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.agent.test_call import FakeAgent, started
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.packing import pack
from voidbox.cli import exit_status, guest_run, streams
from voidbox.cli.attach import Attachment
from voidbox.errors import AgentError
from voidbox.signals import SignalThread
from voidbox.vmm.outcome import EndReason, Outcome


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    agent = FakeAgent()
    yield agent
    agent.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def make_run(stops: list[bool]) -> Attachment:
    return Attachment(lambda: stops.append(True))


def test_a_second_signal_ends_the_vm_though_the_agent_hangs(agent: FakeAgent) -> None:
    agent.answer = started
    stops: list[bool] = []
    run = make_run(stops)
    run._process = agent.client.exec(["x"])
    assert run._process.pid == 7
    run.on_signal(signal.SIGINT)
    assert not stops
    agent.await_frame(protocol.KILL, 2)
    run.on_signal(signal.SIGINT)
    assert stops and run.interruption == exit_status.SIGNAL_BASE + signal.SIGINT


def test_a_signal_before_the_start_ends_the_vm(agent: FakeAgent) -> None:
    stops: list[bool] = []
    run = make_run(stops)
    run._process = agent.client.exec(["x"])
    run.on_signal(signal.SIGTERM)
    assert stops


@pytest.mark.parametrize("values", [{"pid": "x"}, {"pid": b"\7"}, {}], ids=repr)
def test_a_guest_that_gives_no_process_id_makes_nobody_deaf(
    values: dict[str, Any], agent: FakeAgent
) -> None:
    agent.answer = lambda frame: protocol.encode(protocol.EVENT, frame.request, pack(values))
    stops: list[bool] = []
    run = make_run(stops)
    run._process = agent.client.exec(["x"])
    wait_until(lambda: run._process._call.first_event() == values)  # type: ignore[union-attr]
    run._is_tty = True
    run._process.post_resize(24, 80)
    run.on_signal(signal.SIGINT)
    assert stops and run.interruption == exit_status.INTERRUPTED


def test_what_cannot_be_passed_on_ends_the_command() -> None:
    def fail(number: int) -> bool:
        raise ZeroDivisionError

    stops: list[bool] = []
    run = make_run(stops)
    process: Any = SimpleNamespace(post_signal=fail)
    run._process = process
    with pytest.raises(ZeroDivisionError):
        run.on_signal(signal.SIGINT)
    assert stops and run.interruption == exit_status.INTERRUPTED


def test_a_signal_is_taken_after_one_whose_handler_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failures.append(args.exc_type))
    taken = queue.SimpleQueue[int]()

    def on_signal(number: int) -> None:
        taken.put(number)
        raise ZeroDivisionError

    with SignalThread([signal.SIGUSR1], on_signal) as thread:
        ident = thread._thread.ident  # to no other: those of a test runner do not block it
        assert ident is not None
        for _ in range(2):
            signal.pthread_kill(ident, signal.SIGUSR1)
            assert taken.get(timeout=10) == signal.SIGUSR1
    assert failures == [ZeroDivisionError] * 2


def test_a_new_window_size_never_raises(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the thread that takes the signals."""
    agent.answer = started
    run = make_run([])
    run._process = agent.client.exec(["x"])
    assert run._process.pid == 7
    run._is_tty = True
    monkeypatch.setattr(streams, "window_size", lambda: (24, 80))
    run.on_signal(signal.SIGWINCH)
    agent.await_frame(protocol.RESIZE, 2)
    agent.link.close()
    run.on_signal(signal.SIGWINCH)

    def gone() -> tuple[int, int]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(streams, "window_size", gone)
    run.on_signal(signal.SIGWINCH)


@pytest.mark.parametrize(
    ("code", "status"),
    [("bad-request", exit_status.USAGE), ("ENOENT", exit_status.USAGE),
     ("EAGAIN", exit_status.AGENT), ("internal", exit_status.AGENT)],
)  # fmt: skip
def test_only_what_the_arguments_ask_for_is_a_usage_error(code: str, status: int) -> None:
    guest: Any = SimpleNamespace(machine=SimpleNamespace(wait=lambda timeout_s: None))
    assert guest_run.explain(guest, RequestFailed(code, "no")) == status


def test_a_guest_that_powers_off_before_it_answers_has_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As one does that cannot mount its root; afterwards it is the command's own affair."""
    outcome = Outcome(EndReason.POWER_OFF)
    guest: Any = SimpleNamespace(machine=SimpleNamespace(wait=lambda timeout_s: outcome))
    error = AgentError("the guest ended before its agent answered")
    assert guest_run.explain(guest, error, has_answered=False) == exit_status.AGENT
    assert capsys.readouterr().err == f"voidbox: {error}\n"
    assert guest_run.explain(guest, error) == exit_status.OK
    assert capsys.readouterr().err == ""
