"""A worker does what its keeper orders, with the one machine that it has.

main thread ── reads orders; each is done on a thread of its own, but those that are done at once
others      ── the machine's
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from voidbox.errors import ConfigError, HostError, VoidboxError
from voidbox.jail import privileges
from voidbox.sandbox.worker import requests
from voidbox.sandbox.worker.confinement import Confinement
from voidbox.sandbox.worker.devices import Ends
from voidbox.sandbox.worker.orders import JAIL_LOG, MESSAGE_BYTES_MAX, Answers, describe, parse
from voidbox.sandbox.worker.plan import Plan
from voidbox.snapshot.checks import Host
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import Outcome
from voidbox.vsock.unix_listener import HandedListener

log = logging.getLogger(__name__)


class Worker:
    """Thread: main, where nothing else is said.

    Args:
        orders: see orders.
        ends: what the machine's devices get of the keeper.
        has_pids: whether this process is in user and pid namespaces of its own.
    """

    def __init__(self, orders: socket.socket, ends: Ends, has_pids: bool) -> None:
        self._orders = orders
        self._ends = ends
        self._has_pids = has_pids
        self._answers = Answers(orders)
        self._machine: Machine | None = None
        self._has_started = False
        self._jail: Confinement | None = None
        self._handed: list[int] = []  # descriptors that came with the order at hand
        self._quick: dict[str, Callable[[dict[str, Any]], object]] = {
            "build": self._build,
            "start": self._start,
            "stop": lambda values: self._made().stop(),
            "press_power_button": lambda values: self._made().press_power_button(),
            "adopt_vsock": self._adopt_vsock,
            "adopt_serial": self._adopt_serial,
            "publish_vsock": self._publish_vsock,
            "close": lambda values: self.close(),
        }

    def run(self) -> None:
        """Do what is ordered until the keeper is gone."""
        logging.getLogger("voidbox").handlers[:] = [_Telling(self._answers)]
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._orders, MESSAGE_BYTES_MAX, 1)
            except OSError:
                data, fds = b"", []
            if not data:
                return
            values = parse(data)
            self._handed = fds
            handler = self._quick.get(str(values.get("op")))
            if handler is not None:
                self._do(handler, values)
            else:
                threading.Thread(target=self._do, args=(self._slowly, values)).start()

    def _do(self, handler: Callable[[dict[str, Any]], object], values: dict[str, Any]) -> None:
        """Do one thing, and say how it went. Thread: main, or one of its own."""
        try:
            answer = handler(values)
            values_back = answer if isinstance(answer, dict) else {}
            self._answers.send(id=values.get("id"), ok=True, **values_back)
        except VoidboxError as error:
            self._answers.send(id=values.get("id"), **describe(error))
        except Exception as error:  # a fault of ours: told to the keeper
            log.exception("the machine's process failed at %s", values.get("op"))
            failure = HostError(f"voidbox failed: {error!r}")
            self._answers.send(id=values.get("id"), **describe(failure))

    def _made(self) -> Machine:
        if self._machine is None:
            raise HostError("there is no machine yet")
        return self._machine

    def _slowly(self, values: dict[str, Any]) -> object:
        return requests.perform(self._made(), values, self._answers)

    # The machine's making.

    def _build(self, values: dict[str, Any]) -> dict[str, object]:
        """Shut the process in, and make the machine; seccomp comes before its first instruction."""
        plan = Plan.unpacked(values["plan"])
        if self._has_pids:  # our parent is who it will stay: that has waited for the one before
            privileges.die_with_parent(signal.SIGKILL)
        Host.here()  # a snapshot says where it was made, and is looked at where it goes on
        self._jail = Confinement(plan.config, plan.walls, self._has_pids)
        self._jail.enter()
        config = self._ends.furnish(plan.config)
        if plan.snapshot is not None:
            self._machine = Machine.from_snapshot(plan.snapshot, config)
        else:
            self._machine = Machine(config)
        self._ends.attach(self._machine)
        self._jail.shut(self._ends.asks.hand_over)
        gc.freeze()
        gc.enable()
        return {"layers": self._jail.layers}

    def _start(self, values: dict[str, Any]) -> None:
        machine = self._made()
        machine.start()
        self._has_started = True
        threading.Thread(target=self._wait, args=(machine,), name="voidbox-end").start()

    def _wait(self, machine: Machine) -> None:
        """Tell the machine's end. Thread: its own."""
        outcome = machine.wait()
        assert outcome is not None
        self._ends.end_console(machine)
        self._answers.send(event="ended", **_plain(outcome))

    # What is done at once.

    def _adopt_vsock(self, values: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self._take_fd())
        try:
            self._made().adopt_vsock(sock, values["port"])
        except OSError as error:
            raise HostError(str(error), error.errno or 0) from error

    def _adopt_serial(self, values: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self._take_fd())
        self._made().adopt_serial(sock)

    def _publish_vsock(self, values: dict[str, Any]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self._take_fd())
        self._made().publish_vsock(HandedListener(sock))

    def _take_fd(self) -> int:
        if not self._handed:
            raise ConfigError("no descriptor came with the order")
        return self._handed.pop()

    def close(self) -> dict[str, object]:
        """End the machine; return what it has done. Idempotent."""
        machine, self._machine = self._machine, None
        if machine is None:
            return {}
        found = requests.metrics(machine) if self._has_started else {}
        machine.close()
        return found


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "reason": outcome.reason.name,
        "detail": outcome.detail,
        "registers": outcome.registers,
        "console_tail": outcome.console_tail,
        "error": repr(outcome.error) if outcome.error is not None else None,
    }


class _Telling(logging.Handler):
    """Has the keeper log what is logged here."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(logging.INFO)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        is_jail = record.name == JAIL_LOG
        self._answers.send(event="log", level=record.levelno, text=text, is_jail=is_jail)
