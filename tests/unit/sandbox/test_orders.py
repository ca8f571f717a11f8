"""Orders to a worker, which answers well, badly, late, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from voidbox.agent.packing import pack
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.worker import orders
from voidbox.sandbox.worker.orders import MESSAGE_BYTES_MAX, Answers, Orders, parse

LIMIT_S = 60.0


class Worker:
    """The other end, played by the test."""

    def __init__(self) -> None:
        ours, self.socket = channel.pair()
        self.socket.settimeout(LIMIT_S)
        self.events: list[dict[str, Any]] = []
        self.is_lost = threading.Event()
        self.orders = Orders(ours, self.events.append, self.is_lost.set)
        self._threads: list[threading.Thread] = []

    def take(self) -> dict[str, Any]:
        return parse(self.socket.recv(MESSAGE_BYTES_MAX))

    def answer(self, *messages: bytes | dict[str, Any]) -> None:
        """Take an order, on a thread; answer with these, its id added to dictionaries."""

        def run() -> None:
            id = self.take()["id"]
            for message in messages:
                raw = message if isinstance(message, bytes) else pack({"id": id, **message})
                self.socket.send(raw)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        self.socket.close()
        self.orders.close()
        for thread in self._threads:
            thread.join(LIMIT_S)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_an_answer_and_what_comes_before_it(worker: Worker) -> None:
    seen: list[dict[str, Any]] = []
    worker.answer({"event": "frozen"}, {"ok": True, "value": 7})
    answer = worker.orders.ask("snapshot", timeout_s=LIMIT_S, on_event=seen.append)
    assert answer["value"] == 7
    assert [values["event"] for values in seen] == ["frozen"]


def test_errors_are_what_they_were(worker: Worker) -> None:
    worker.answer(orders.describe(HostError("taken", 98)))
    with pytest.raises(HostError, match="taken") as caught:
        worker.orders.ask("publish", timeout_s=LIMIT_S)
    assert caught.value.errno == 98
    worker.answer(orders.describe(ConfigError("no network")))
    with pytest.raises(ConfigError, match="no network"):
        worker.orders.ask("publish", timeout_s=LIMIT_S)


def test_nonsense_of_a_worker_is_passed_over(worker: Worker) -> None:
    junk = [
        b"\xc1", b"\x81", pack([]), pack(5), pack({"id": "x", "ok": True}), pack({"id": [1]}),
        pack({"id": 1 << 60, "ok": True}), pack({"id": -1, "event": "frozen"}), b"\xff" * 1000,
    ]  # fmt: skip
    worker.answer(*junk, {"ok": True})
    assert worker.orders.ask("pause", timeout_s=LIMIT_S)["ok"] is True
    worker.answer({"ok": "yes", "error": 5, "kind": [], "errno": "x"})
    with pytest.raises(AgentError):
        worker.orders.ask("pause", timeout_s=LIMIT_S)


def test_a_worker_that_does_not_answer(worker: Worker) -> None:
    with pytest.raises(SandboxTimeout, match="did not pause within 0.01 s"):
        worker.orders.ask("pause", timeout_s=0.01)
    late = worker.take()["id"]
    worker.socket.send(pack({"id": late, "ok": True}))  # nobody waits for it any more
    worker.answer({"ok": True})
    assert worker.orders.ask("resume", timeout_s=LIMIT_S)


def test_a_worker_that_is_gone(worker: Worker) -> None:
    worker.answer()
    thread = threading.Timer(0.05, worker.socket.shutdown, (socket.SHUT_RDWR,))
    thread.start()
    with pytest.raises(AgentError, match="has ended"):
        worker.orders.ask("pause", timeout_s=LIMIT_S)
    thread.join()
    assert worker.is_lost.wait(LIMIT_S)
    with pytest.raises(AgentError, match="has ended"):
        worker.orders.ask("pause", timeout_s=LIMIT_S)
    worker.orders.tell("stop")  # never raises for that


def test_what_is_too_long_is_said(worker: Worker) -> None:
    with pytest.raises(HostError, match="too many"):
        worker.orders.tell("build", plan=bytes(MESSAGE_BYTES_MAX))
    ours, theirs = channel.pair()
    Answers(ours).send(id=3, ok=True, text="x" * MESSAGE_BYTES_MAX)
    assert parse(theirs.recv(MESSAGE_BYTES_MAX))["error"] == "too long an answer"
    ours.close()
    theirs.close()
