"""A sandbox's life, as its process's main thread sees it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError, HostError, VoidboxError
from voidbox.sandbox.control import describe_error
from voidbox.sandbox.process import restoring
from voidbox.sandbox.process.control_server import ControlServer
from voidbox.sandbox.process.heartbeat import IDLE_PERIOD_S, PERIOD_S, Heartbeat
from voidbox.sandbox.process.learning import Learning
from voidbox.sandbox.process.operations import Operations
from voidbox.sandbox.process.preparing import Prepared
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.process.sandbox import Sandbox
from voidbox.sandbox.process.starting import Starting
from voidbox.sandbox.process.verdict import Verdict
from voidbox.sandbox.state.lifecycle import Event
from voidbox.sandbox.state.state_folder import MACHINE, SUSPENDED
from voidbox.signals import SignalThread
from voidbox.storage.durable import remove_tree
from voidbox.vmm.outcome import Outcome

RECONNECT_S = 30.0

log = logging.getLogger("voidbox.sandbox.process.owner")


class Life:
    """From the control socket's making to the last word in the record. Thread: main.

    Args:
        parent_fd: see Limits.
        report: takes what the status descriptor gets.
    """

    def __init__(
        self,
        prepared: Prepared,
        parent_fd: int | None,
        report: Callable[[dict[str, object]], None],
    ) -> None:
        self._prepared = prepared
        self._store = prepared.store
        self._id = prepared.record.id
        self._report = report
        self._sandbox = Sandbox(prepared.store, prepared.record, parent_fd)
        self._own = contextlib.ExitStack()  # what ends before the last word is written
        self._control: ControlServer | None = None
        self._starting: Starting | None = None
        self._is_waking = restoring.is_suspended(prepared.store, prepared.record)

    def run(self) -> None:
        """Boot it, wait for its end, and leave nothing behind but its record and its logs."""
        sandbox = self._sandbox
        outcome, error = None, None
        with SignalThread((signal.SIGTERM, signal.SIGINT), sandbox.on_signal):
            try:
                client = self._begin()
                self._report({"ok": True})
                if self._prepared.kept is not None:
                    self._prepared.kept.end_spare()
                self._watch(client)
                outcome = sandbox.machine.wait()
            except VoidboxError as problem:
                error = problem
            except Exception as problem:  # whatever it is, the sandbox ends and says so
                log.exception("voidbox failed")
                error = HostError(f"voidbox failed: {problem!r}")
            self._bequeath(self._end(outcome, error))
        if error is not None:
            if sandbox.decision.is_made:
                error = AgentError(sandbox.decision.reason)
            has_begun = self._starting is not None and self._starting.has_begun
            self._report({**describe_error(error), "has_begun": has_begun})

    def _begin(self) -> AgentClient:
        """Serve the socket, start the guest, and have the record say so."""
        sandbox, prepared = self._sandbox, self._prepared
        handlers = Operations(sandbox).handlers()
        if prepared.secrets is not None:
            handlers |= prepared.secrets.handlers()
        self._control = ControlServer(self._store.path(self._id, "control.sock"), handlers)
        self._control.start()
        if prepared.kept is not None:
            self._own.callback(prepared.kept.close)
        self._own.callback(sandbox.relay.close)
        sandbox.relay.start()
        sandbox.limits.start()
        self._starting = starting = Starting(
            sandbox, prepared.make_guest, prepared.source, self._own
        )
        if sandbox.record.is_held and starting.hold(prepared.config):
            self._report({"held": True})
            sandbox.start.wait_asked()
        sandbox.client = client = starting.run(prepared.config)
        self._own.callback(self._hang_up)
        if prepared.source is None and prepared.template_key and not client.is_serial:
            sandbox.snapshotting.leave_template(prepared.template_key)
        if prepared.secrets is not None:
            prepared.secrets.make_trusted(client)
        with sandbox.lock:
            sandbox.record = self._store.update(
                self._id,
                Event.BOOTED,
                is_held=False,  # that was for this start: after a suspend it goes on by itself
                started_at=starting.start_time,
                forwards=(),
                jail_layers=tuple(sandbox.machine.layers),
            )
            self._is_waking = False
        sandbox.start.succeed()
        if starting.source is not None:
            self._learn(starting.source)
            if starting.source.is_suspended:
                self._forget_suspended()  # the machine has its memory mapped
        return client

    def _learn(self, source: Source) -> None:
        sandbox = self._sandbox
        answered_s = time.monotonic() - sandbox.started_at
        own_folder = self._store.path(self._id, MACHINE)
        self._own.callback(Learning(sandbox.machine, source, own_folder, answered_s).close)

    def _forget_suspended(self) -> None:
        """Delete what it was woken from, or is not to be woken from any more."""
        folder = self._store.path(self._id, SUSPENDED)
        if os.path.isdir(folder):
            try:
                remove_tree(folder)
            except HostError as error:  # it goes with the sandbox
                log.warning("%s", error)

    def _hang_up(self) -> None:
        if self._sandbox.client is not None:
            self._sandbox.client.close()

    # While it lives.

    def _watch(self, client: AgentClient) -> None:
        sandbox = self._sandbox
        if client.is_serial:
            log.info("no heartbeat via serial: the line carries one program at a time")
            client.close()
            return
        heartbeat = Heartbeat(
            client,
            self._store.secret(self._id),
            self._reconnect,
            lambda: (
                sandbox.ended.is_set()
                or sandbox.stopping.has_begun
                or sandbox.decision.is_suspend
                or sandbox.machine.is_paused
            ),
            lambda reason: sandbox.kill(reason, Event.FAILED),
            sandbox.idle.period_s(PERIOD_S),
            on_answer=sandbox.idle.take,
            idle_period_s=sandbox.idle.period_s(IDLE_PERIOD_S),
        )
        heartbeat.start()
        self._own.callback(heartbeat.close)

    def _reconnect(self) -> AgentClient:
        """Thread: the heartbeat's."""
        self._hang_up()  # it has a thread, and a guest may break connections for ever
        self._sandbox.client = client = self._sandbox.connect(RECONNECT_S)
        return client

    # Its end.

    def _end(self, outcome: Outcome | None, error: VoidboxError | None) -> Verdict:
        """End all that runs; return how it ended."""
        sandbox = self._sandbox
        sandbox.ended.set()
        sandbox.start.fail(error or AgentError(sandbox.decision.reason or "the sandbox has ended"))
        tail = sandbox.guest.machine.console.tail() if sandbox.guest is not None else ""
        if sandbox.decision.is_made or sandbox.stopping.has_begun:
            sandbox.snapshotting.finish_template()  # else somebody waits to be told why
        self._own.close()
        sandbox.snapshotting.close()
        sandbox.stopping.join()
        sandbox.limits.close()
        return sandbox.decision.judge(
            outcome,
            error,
            console_tail=tail,
            is_waking=self._is_waking,
            stop_reason=sandbox.stop_reason if sandbox.stopping.has_begun else "",
        )

    def _bequeath(self, verdict: Verdict) -> None:
        """Write the last word, and let everybody know. Nothing of the sandbox runs any more."""
        sandbox, store = self._sandbox, self._store
        level = logging.WARNING if verdict.event is Event.FAILED else logging.INFO
        log.log(level, "the sandbox has ended: %s", verdict.crash or verdict.reason)
        try:
            sandbox.record = store.update(
                self._id,
                verdict.event,
                reason=verdict.reason,
                crash=verdict.crash,
                end=verdict.end,
                removes_itself=sandbox.record.removes_itself or sandbox.leaves_nothing,
            )
            if sandbox.record.state.is_final:
                self._forget_suspended()
            if self._control is not None:
                self._control.hide()
            store.release(self._id)
            if sandbox.record.removes_itself:
                store.remove(self._id)
        except VoidboxError as error:  # the next command's clean() does it
            log.warning("cannot clean up: %s", error)
        store.release(self._id)
        os.eventfd_write(sandbox.ended_fd, 1)
        if self._control is not None:
            self._control.close()
        os.close(sandbox.ended_fd)
