"""One sandbox as its process has it: what may be asked of it, and all that ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError
from voidbox.sandbox.process import resource_limits
from voidbox.sandbox.process.held_start import HeldStart
from voidbox.sandbox.process.idle import IdleLimit
from voidbox.sandbox.process.limits import Limits
from voidbox.sandbox.process.published import PublishedPorts
from voidbox.sandbox.process.snapshotting import Snapshotting
from voidbox.sandbox.process.stopping import AGENT_S, Stopping
from voidbox.sandbox.process.verdict import Decision
from voidbox.sandbox.relay.team import TeamRelay
from voidbox.sandbox.snapshots.record import SnapshotRecord
from voidbox.sandbox.state.lifecycle import Event
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.worker.machine import WorkerMachine

if TYPE_CHECKING:
    from voidbox.sandbox.guest import Guest

log = logging.getLogger("voidbox.sandbox.process.owner")


class Sandbox:
    """Thread: any.

    Args:
        store: has adopted the record.
        parent_fd: see Limits.

    Attributes:
        record: as it was written last.
        guest, client, is_copy: see starting.
        decision: who has ended it from here.
        leaves_nothing: neither its record nor its logs are kept once it has ended.
        start: lets one that is held go on.
        ended: set once the machine has ended.
        ended_fd: readable once everything has.
    """

    def __init__(self, store: Store, record: SandboxRecord, parent_fd: int | None) -> None:
        self.store = store
        self.record = record
        self.guest: Guest | None = None
        self.is_copy = False  # restored, and not yet a guest of its own
        self.client: AgentClient | None = None
        self.decision = Decision()
        self.ended = threading.Event()
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.started_at = time.monotonic()
        self.limits = Limits(parent_fd, self._on_time, self._on_orphaned)
        self.idle = IdleLimit(record.idle_timeout_s, self._on_idle)
        self.stopping = Stopping(self._ask_agent, self._press_power_button, self.kill, self.ended)
        self.start = HeldStart()
        self.stop_reason = ""  # why it was asked to stop
        self.leaves_nothing = False
        self.relay = TeamRelay(store, record)
        self.ports = PublishedPorts(store, record.id, lambda: self.machine)
        self.snapshotting = Snapshotting(store, self)
        self.lock = threading.Lock()  # one pause, resume or stop at a time

    @property
    def machine(self) -> WorkerMachine:
        """The machine, while there is one that is nobody else's copy."""
        if self.guest is None or self.is_copy:
            raise AgentError("the sandbox has not been made yet")
        if self.ended.is_set():
            raise AgentError("the sandbox has ended")
        return self.guest.machine

    def use(self) -> None:
        """Somebody uses it, by something that its guest does not see."""
        self.idle.use()

    def current_record(self) -> SandboxRecord:
        """Return its record, with the ports that it has been given."""
        return self.store.known(self.record.id) or self.record

    # Its end.

    def stop(self, agent_s: float = AGENT_S, reason: str = "it was stopped") -> None:
        """Begin to end it politely."""
        with self.lock:
            if self.client is None:
                self.kill("it was stopped before it had booted")
                return
            self._check_stays()
            machine = self.machine
            if not self.stopping.has_begun:
                self.stop_reason = reason
            self._update(Event.STOP)
            if machine.is_paused:
                machine.resume()
        self.stopping.begin(agent_s)

    def kill(self, reason: str, event: Event = Event.ENDED) -> None:
        """End it at once. Never blocks."""
        if not self.ended.is_set() and self.decision.end(event, reason):
            log.info("killing the guest: %s", reason)
        self.start.end()
        guest = self.guest
        if guest is not None:
            guest.machine.stop()

    def on_signal(self, number: int) -> None:
        """Stop it; at the second signal, kill it."""
        name = signal.Signals(number).name
        if self.stopping.has_begun:
            self.kill(f"it was killed by a second {name}")
        elif not self.ended.is_set():
            log.info("got %s: stopping", name)
            try:
                self.stop()
            except VoidboxError as error:
                log.warning("%s", error)

    def _on_time(self) -> None:
        self._end("its time limit ran out")

    def _on_orphaned(self) -> None:
        self.snapshotting.give_template_up()  # nothing is to be left of it
        if self.record.is_pooled:
            with contextlib.suppress(VoidboxError):  # on a full disk, say: its record stays
                self.record = self.store.update(self.record.id, removes_itself=True)
        self._end("the process that owned it ended")

    def _end(self, reason: str) -> None:
        """End it, at once unless it has a volume that is to be left in order."""
        if self.record.volumes:
            from voidbox.sandbox.volumes.spec import writes_named  # few sandboxes have any

            if writes_named(self.record.volumes):
                self._stop_or_kill(reason)
                return
        self.kill(reason)

    def _on_idle(self) -> None:
        if self.decision.is_suspend:  # its answer came just before
            return
        reason = f"nobody used it for {self.record.idle_timeout_s:g} s"
        log.info("%s: stopping", reason)
        self._stop_or_kill(reason)

    def _stop_or_kill(self, reason: str) -> None:
        try:
            self.stop(reason=reason)
        except VoidboxError as error:
            log.warning("%s", error)
            self.kill(reason)

    def _update(self, event: Event) -> None:
        try:
            self.record = self.store.update(self.record.id, event)
        except HostError as error:  # a full disk must not keep it from ending
            log.warning("cannot write the record: %s", error)

    def _ask_agent(self, timeout_s: float) -> bool:
        client = self.client
        try:
            if client is not None and not client.is_serial:
                client.shut_down(timeout_s=timeout_s)
            else:  # the line is somebody else's by now
                with self.connect(timeout_s) as client:
                    client.shut_down(timeout_s=timeout_s)
        except (AgentError, SandboxTimeout) as error:
            log.info("stop: %s", str(error).partition("\n")[0])
            return False
        return True

    def _press_power_button(self) -> None:
        if self.guest is not None:
            self.guest.machine.press_power_button()

    # Its guest, while it runs.

    def pause(self) -> None:
        """Halt the guest.

        Raises:
            ConfigError: it does not run.
        """
        with self.lock:
            self._check_stays()
            self.record = self.store.update(self.record.id, Event.PAUSE, paused_at=time.monotonic())
            self.machine.pause()
            self.limits.hold()
            log.info("paused")

    def resume(self) -> None:
        """Let the guest go on.

        Raises:
            ConfigError: it is not paused.
        """
        with self.lock:
            self._check_stays()
            stood_still_s = self.record.stood_still_s()
            self.record = self.store.update(
                self.record.id, Event.RESUME, paused_at=None, paused_s=stood_still_s
            )
            self.limits.go_on()
            self.machine.resume()
            log.info("resumed")

    def set_time_limit(self, seconds: float | None) -> None:
        """End it so many seconds from now, its pauses not counted; None for never."""
        since_start_s = None
        if seconds is not None:
            since_start_s = round(self._ran_s() + seconds, 3)
        self.record = self.store.update(self.record.id, timeout_s=since_start_s)
        self.limits.set_time(seconds)

    def hand_over(self, envs: dict[str, str], metadata: dict[str, str]) -> None:
        """Have it be nobody's who ends with it: it goes on when the process that made it is gone.

        Args:
            envs, metadata: more of them.
        Raises:
            ConfigError: they are not text to text, or it ends.
        """
        with self.lock:
            self._check_stays()
            record = self.record
            self.record = self.store.update(
                record.id,
                is_owned=False,
                is_pooled=False,
                envs={**record.envs, **envs},
                metadata={**record.metadata, **metadata},
            )
        self.limits.forget_parent()

    def limit(self, changed: dict[str, object]) -> dict[str, object]:
        """Change what the guest may use; return all limits.

        Raises:
            ConfigError: see resource_limits.
        """
        new = resource_limits.check(changed)
        with self.lock:
            limits = {**resource_limits.check(self.record.limits), **new}
            resource_limits.apply(self.machine, limits, new)
            kept: dict[str, object] = {
                key: value for key, value in limits.items() if value is not None
            }
            self.record = self.store.update(self.record.id, limits=kept)
        return kept

    def _ran_s(self) -> float:
        return time.monotonic() - self.started_at - self.record.stood_still_s()

    def deliver(self, values: dict[str, object]) -> dict[str, object]:
        """Take a message for the guest's programs."""
        return self.relay.deliver(values)

    def connect(self, timeout_s: float) -> AgentClient:
        """Return another client to its agent.

        Raises:
            VoidboxError: it does not answer, or there is no guest.
        """
        if self.guest is None:
            raise AgentError("the sandbox has not been made yet")
        return self.guest.connect(timeout_s, log.info)

    def with_agent(self, call: Callable[[AgentClient], None], timeout_s: float) -> None:
        """Have something asked of the agent, over the connection that there is, or another.

        A guest that is paused runs until it has answered.

        Raises:
            VoidboxError: it does not answer.
        """
        with self.lock:  # nobody pauses or resumes it meanwhile
            machine = self.machine
            if machine.is_paused:
                machine.resume()
                try:
                    return self._ask(call, timeout_s)
                finally:
                    machine.pause()
        return self._ask(call, timeout_s)

    def _ask(self, call: Callable[[AgentClient], None], timeout_s: float) -> None:
        client = self.client
        if client is not None and not client.is_serial:
            try:
                return call(client)
            except AgentError as error:
                if isinstance(error, RequestFailed):
                    raise
        with self.connect(timeout_s) as client:
            return call(client)

    # Snapshots.

    def snapshot(self, name: str, is_fork: bool) -> SnapshotRecord:
        """Make a snapshot of it; see Snapshotting."""
        return self.snapshotting.create(name, is_fork)

    def suspend(self) -> None:
        """Bring it to the disk; see Snapshotting. Its end comes with that."""
        self.snapshotting.suspend()

    def begin_suspend(self) -> None:
        """See Snapshotting."""
        forwards = tuple(str(forward) for forward in self.ports.list())
        with self.lock:
            if self.stop_reason:  # since it was looked at
                raise AgentError(f"it ends: {self.stop_reason}")
            self.decision.begin_suspend()
            try:
                self.record = self.store.update(
                    self.record.id, forwards=forwards, ran_s=round(self._ran_s(), 3)
                )
            except BaseException:
                self.decision.abort_suspend()
                raise
            self.limits.hold()  # it stands still

    def abort_suspend(self) -> None:
        """See Snapshotting."""
        with self.lock:
            self.decision.abort_suspend()
            if self.record.paused_at is None:
                self.limits.go_on()

    def _check_stays(self) -> None:
        if self.decision.is_suspend:
            raise ConfigError(f"{self.record.name} is being suspended")
