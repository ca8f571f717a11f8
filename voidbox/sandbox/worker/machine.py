"""A machine in a worker, as its keeper sees it: what Machine offers, done by orders.

What the worker says is not believed: it says how its own machine does, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from voidbox import signals
from voidbox.errors import HostError, VoidboxError
from voidbox.event_loop import EventLoop
from voidbox.jail import namespaces
from voidbox.sandbox.jail_level import check_level
from voidbox.sandbox.keeper.serving import Serving
from voidbox.sandbox.worker.link import Link, spawn_worker
from voidbox.sandbox.worker.orders import JAIL_LOG, Orders
from voidbox.sandbox.worker.plan import Plan
from voidbox.sandbox.worker.process_limits import ProcessLimits
from voidbox.sandbox.worker.socket_line import SocketLine
from voidbox.sandbox.worker.surroundings import Walls, absolute, inherited_fds, walls
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import Console, wait_flushed
from voidbox.vmm.outcome import EndReason, Outcome
from voidbox.vsock.unix_listener import UnixListener

if TYPE_CHECKING:
    from voidbox.nat.forwards import Forward
    from voidbox.secrets.guard import Guard

_STOP_S = 10.0  # for a machine that was stopped to say how it ended
_END_S = 10.0  # for a worker to end that was told to
_ANSWER_S = 60.0
_FLUSH_S = 1.0
_TEXT_MAX = 64 << 10

log = logging.getLogger(__name__)


class WorkerMachine:
    """One virtual machine. Thread: any, where nothing else is said.

    Args:
        link: to a worker that has done nothing yet; is this object's from here on.
        config: with absolute paths.
        walls: what the worker shuts itself in with.
        snapshot: the folder of what it is restored from, or None.
        guard: looks at the connections to guarded hosts; None: there are none.
    Raises:
        ConfigError, HostError: see Machine, and Confinement.

    Attributes:
        layers: of its jail, in words.
        loop: of the keeper.
        console: on that loop.
    """

    def __init__(
        self,
        link: Link,
        config: MachineConfig,
        walls: Walls,
        snapshot: str | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.config = config
        self._guard = guard
        self.layers: list[str] = []
        self.is_paused = False
        self._link = link
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._is_closed = False
        self._last_metrics: dict[str, Any] = {}
        self._lock = threading.Lock()  # covers _is_closed, and _outcome's first setting
        self._listener: UnixListener | None = None
        self.loop = EventLoop(self._on_fault, name="voidbox-keeper")
        self._serving: Serving | None = None
        self._limits = ProcessLimits(link.settle, config.memory_bytes, link.group)
        self._line = SocketLine(self.loop, link.console)
        self.console = Console(self.loop, self._line)
        with signals.blocked():  # our program may have handlers, or get some
            self._orders = Orders(link.orders, self._on_event, self._on_lost)
            self.loop.start()
        try:
            self._build(Plan(config, snapshot, walls.around(snapshot)))
        except BaseException:
            self.close()
            raise

    def _build(self, plan: Plan) -> None:
        config, link = self.config, self._link
        config.validate()
        link.settle()
        vsock = config.vsock if config.vsock is not None and not config.vsock.is_vhost else None
        path = vsock.path if vsock is not None else None
        self._serving = Serving(self.loop, link.asks, link.queries, config.net, path, self._guard)
        answer = self._orders.ask("build", plan=plan.packed())
        self.layers = [str(layer)[:40] for layer in answer.get("layers", ())][:20]
        self._limits.is_alone = "user" in self.layers and namespaces.count_tasks()
        if link.group is not None:
            self.layers.append("cgroup")
        if path is not None:
            self.publish_vsock(path)

    # Its life.

    def start(self) -> None:
        """Let it run. Once.

        Raises:
            ConfigError, HostError: see Machine.
        """
        self._orders.ask("start")

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for its end; None if `timeout_s` seconds pass before. See Machine."""
        if timeout_s is not None:
            timeout_s = min(timeout_s, threading.TIMEOUT_MAX)
        if not self._ended.wait(timeout_s):
            return None
        self._line.ended.wait(_FLUSH_S)  # its last words are on their way to the outputs
        wait_flushed(self.loop, self.console, _FLUSH_S)
        return self._outcome

    def stop(self) -> None:
        """End it at once, as if its power were cut. Never blocks."""
        self._orders.tell("stop")
        self.loop.call_soon(self._expect_end)

    def _expect_end(self) -> None:
        self.loop.call_later(_STOP_S, self._see_to_end)

    def _see_to_end(self) -> None:
        """A worker that was told to stop, and does not, is somebody else's. Thread: loop."""
        if not self._ended.is_set():
            log.warning("the machine's process does not stop its machine, and is killed")
            self._link.kill()

    def pause(self) -> None:
        """See Machine."""
        self._orders.ask("pause", timeout_s=_ANSWER_S)
        self.is_paused = True

    def resume(self) -> None:
        """See Machine."""
        self._orders.ask("resume", timeout_s=_ANSWER_S)
        self.is_paused = False

    def press_power_button(self) -> None:
        """See Machine."""
        self._orders.tell("press_power_button")

    def close(self) -> None:
        """End it, and its worker; free everything. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        with contextlib.suppress(VoidboxError):
            self._last_metrics = _metrics_of(self._orders.ask("close", timeout_s=_END_S))
        self._orders.close()
        self._link.end(_END_S)  # which may ask until then
        self.loop.stop()
        if self._serving is not None:
            self._serving.close()
        self._line.close()
        self.loop.close()
        self._link.close(_END_S)
        if self._listener is not None:
            self._listener.close()

    # Ways to the guest.

    def adopt_vsock(self, sock: socket.socket, port: int) -> None:
        """See Machine. The socket is the worker's from here on.

        Raises:
            OSError: the machine has no vsock of its own, or has ended.
        """
        with sock:
            try:
                self._orders.ask("adopt_vsock", sock.fileno(), port=port, timeout_s=_ANSWER_S)
            except HostError as error:
                raise OSError(error.errno, str(error)) from error
            except VoidboxError as error:
                raise ConnectionResetError(str(error)) from error

    def publish_vsock(self, path: str) -> None:
        """See Machine.

        Raises:
            ConfigError, HostError: it cannot be made.
        """
        assert self._listener is None
        self._listener = listener = UnixListener(path)
        if self._serving is not None:
            self._serving.vsock_path = path
        self._orders.ask("publish_vsock", listener.socket.fileno(), timeout_s=_ANSWER_S)
        listener.let_go()

    def connect_serial(self) -> socket.socket | None:
        """See Machine."""
        if not self.config.serial_line:
            return None
        ours, theirs = socket.socketpair()
        self.adopt_serial(theirs)
        return ours

    def adopt_serial(self, sock: socket.socket) -> None:
        """See Machine. The socket is the worker's from here on."""
        with sock, contextlib.suppress(VoidboxError):
            self._orders.ask("adopt_serial", sock.fileno(), timeout_s=_ANSWER_S)

    def publish(self, forward: Forward) -> Forward:
        """Offer a port of the guest's on the host; return it with the host's port that it got.

        Raises:
            ConfigError: there is no network.
            HostError: the host's port is taken, or not ours to take.
        """
        from voidbox.nat.forwards import parse_forward

        self._allow(forward, True)
        try:
            answer = self._orders.ask("publish", forward=str(forward), timeout_s=_ANSWER_S)
        finally:
            self._allow(forward, False)
        return parse_forward(str(answer.get("forward")))

    def unpublish(self, forward: Forward) -> bool:
        """Offer it no longer; False if it was not."""
        self._allow(forward, False)
        answer = self._orders.ask("unpublish", forward=str(forward), timeout_s=_ANSWER_S)
        return answer.get("is_gone") is True

    def published(self) -> list[Forward]:
        """Return what is offered."""
        if self.config.net is None:
            return []
        from voidbox.nat.forwards import parse_forward

        found = self._orders.ask("published", timeout_s=_ANSWER_S).get("forwards")
        return [parse_forward(str(one)) for one in found] if isinstance(found, list) else []

    def _allow(self, forward: Forward, is_allowed: bool) -> None:
        if self._serving is not None:
            self._serving.allow(forward, is_allowed)

    # What it does, and may do.

    def metrics(self) -> dict[str, Any]:
        """Return what it has done; see requests. Numbers, and texts of a bounded length."""
        if self._is_closed:
            return self._last_metrics
        found = _metrics_of(self._orders.ask("metrics", timeout_s=_ANSWER_S))
        return {**found, "group": self._limits.statistics()}

    def limit(self, limits: Mapping[str, int | float | None]) -> None:
        """Have it keep to limits; see resource_limits.

        Raises:
            ConfigError: this host cannot keep one.
            HostError: the host gives no thread for it, or the kernel refuses it.
        """
        left = self._limits.set(limits)
        if left:
            self._orders.ask("limit", timeout_s=_ANSWER_S, limits=left)

    def record_working_set(self, path: str, bytes_max: int) -> int:
        """See Machine. `path` is one that the worker may make."""
        answer = self._orders.ask(
            "record_working_set", path=path, bytes_max=bytes_max, timeout_s=_ANSWER_S
        )
        touched = answer.get("touched")
        return touched if isinstance(touched, int) else 0

    def snapshot(
        self,
        folder: str,
        *,
        stop: bool,
        disks: str,
        timeout_s: float,
        extra: Mapping[str, bytes],
        on_frozen: Callable[[], None] = lambda: None,
    ) -> str:
        """See Machine; returns its report in words. `folder` is one that the worker may make."""

        assert self._serving is not None
        frozen = threading.Thread(target=on_frozen, name="voidbox-frozen")

        def begin(values: dict[str, Any]) -> None:
            if frozen.ident is None:
                frozen.start()

        try:
            with self._serving.one_fork():
                answer = self._orders.ask(
                    "snapshot",
                    folder=folder,
                    stop=stop,
                    disks=disks,
                    within_s=timeout_s,
                    timeout_s=timeout_s + _ANSWER_S,
                    extra=dict(extra),
                    on_event=begin,
                )
        finally:
            if frozen.ident is not None:
                frozen.join()
        return str(answer.get("report"))[:_TEXT_MAX]

    # What comes from the worker. Thread: that of the orders.

    def _on_event(self, values: dict[str, Any]) -> None:
        if values.get("event") == "log":
            level = values.get("level")
            line = _text(values, "text")
            shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in line)
            logger = logging.getLogger(JAIL_LOG) if values.get("is_jail") else log
            logger.log(level if isinstance(level, int) else logging.INFO, "%s", shown)
        elif values.get("event") == "ended":
            self._end(_outcome_of(values))

    def _on_lost(self) -> None:
        if self._ended.is_set():
            return
        self._link.wait(_END_S)  # it hung up, and so has ended, or is about to
        why = "ended"
        status = self._link.status
        if status is not None and os.WIFSIGNALED(status):
            why = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        if reason := self._limits.explain_end():
            why = f"{why}: {reason}"
        self._end(Outcome(EndReason.ERROR, f"the machine's process {why}"))

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
        self._ended.set()

    def _on_fault(self, error: BaseException) -> None:
        log.error("the machine's keeper failed: %r", error, exc_info=error)


def start_machine(
    config: MachineConfig, jail: str | None = None, snapshot: str | None = None
) -> WorkerMachine:
    """Return a machine in a worker of its own, for whatever process this is.

    Args:
        jail: see check_level.
        snapshot: the folder of what it is restored from, or None.
    Raises:
        ConfigError, HostError: see WorkerMachine.
    """
    config = absolute(config)
    around = walls(config, check_level(jail))
    link = spawn_worker(around.level, inherited_fds(config))
    return WorkerMachine(link, config, around, snapshot)


def _metrics_of(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: _sane(value) for name, value in answer.items() if name not in ("id", "ok")}


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return value[:_TEXT_MAX] if isinstance(value, str) else ""


def _outcome_of(values: dict[str, Any]) -> Outcome:
    try:
        reason = EndReason[str(values.get("reason"))]
    except KeyError:
        reason = EndReason.ERROR
    error = values.get("error")
    return Outcome(
        reason,
        _text(values, "detail"),
        _text(values, "registers"),
        _text(values, "console_tail"),
        HostError(str(error)[:_TEXT_MAX]) if error is not None else None,
    )


def _sane(value: Any) -> Any:
    """Return a value as JSON can have it."""
    if isinstance(value, dict):
        return {str(name)[:100]: _sane(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_sane(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)[:100]
