"""The process of one sandbox: runs its machine, serves its control socket, and sees to its end.

    python -m voidbox.sandbox.process.owner FOLDER [--status-fd N] [--parent-fd N]

main thread ── boots the machine, waits for its end, cleans up
control     ── one thread a client; see operations
heartbeat   ── asks the agent whether it lives
limits      ── the time limit; the parent's pipe
signals     ── SIGTERM, SIGINT: stop; once more: kill

The status descriptor gets JSON, a line each: {"adopted": true} once this process is the sandbox's,
then {"ok": true} when the agent has answered, or an error as the control socket has it, when
everything has been cleaned up; "has_begun" in it says whether the guest had started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from voidbox.agent import connect
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout, VoidboxError
from voidbox.file_limit import raise_file_limit
from voidbox.sandbox.control import describe_error
from voidbox.sandbox.guest import Guest
from voidbox.sandbox.process import logs, recipe, resource_limits, restoring
from voidbox.sandbox.process.confinement import Confinement
from voidbox.sandbox.process.control_server import ControlServer
from voidbox.sandbox.process.heartbeat import IDLE_PERIOD_S, PERIOD_S, Heartbeat
from voidbox.sandbox.process.idle import IdleLimit
from voidbox.sandbox.process.learning import Learning
from voidbox.sandbox.process.limits import Limits
from voidbox.sandbox.process.operations import Operations
from voidbox.sandbox.process.published import PublishedPorts
from voidbox.sandbox.process.restoring import Source
from voidbox.sandbox.process.snapshotting import Snapshotting
from voidbox.sandbox.process.stopping import AGENT_S, Stopping
from voidbox.sandbox.relay.team import TeamRelay
from voidbox.sandbox.root import UPPER_FILE, make_upper
from voidbox.sandbox.snapshots import templates
from voidbox.sandbox.snapshots.record import SnapshotRecord
from voidbox.sandbox.state.lifecycle import Event
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.volumes.spec import writes_named
from voidbox.signals import SignalThread
from voidbox.storage.durable import remove_tree
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason, Outcome

RECONNECT_S = 30.0
_WELL = frozenset({EndReason.POWER_OFF, EndReason.RESET, EndReason.STOPPED})

log = logging.getLogger("voidbox.sandbox.process.owner")  # as a program its __name__ is another


class MakeGuest(Protocol):
    """Makes a guest of a configuration, a secret, and the snapshot that it is restored from."""

    def __call__(
        self, config: MachineConfig, secret: bytes, snapshot: str | None = None, /
    ) -> Guest: ...


class Verdict(NamedTuple):
    """How the sandbox ended.

    Attributes:
        reason: one line.
        crash: the whole story; "" if there is none to tell.
        end: the machine's EndReason by name; "" where it was ended from here.
    """

    event: Event
    reason: str
    crash: str = ""
    end: str = ""


class Owner:
    """One sandbox, from its adoption to its end. Thread: any, where nothing else is said.

    Args:
        store: has adopted the record.
        parent_fd: see Limits.
        report: takes what the status descriptor gets.
        make_guest: see MakeGuest.
        jail: what this process has shut itself in with.
    """

    def __init__(
        self,
        store: Store,
        record: SandboxRecord,
        parent_fd: int | None,
        report: Callable[[dict[str, object]], None],
        make_guest: MakeGuest,
        jail: Confinement,
    ) -> None:
        self.record = record
        self.started_at = time.monotonic()
        self._start_time = time.time()
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._store = store
        self._report = report
        self._make_guest = make_guest
        self._jail = jail
        self._guest: Guest | None = None
        self._client: AgentClient | None = None
        self._has_begun = False
        self._ended = threading.Event()
        self._lock = threading.Lock()  # covers _verdict
        self._verdict: Verdict | None = None  # who ended it from here
        self._state_lock = threading.Lock()  # one pause, resume or stop at a time
        self._stop_reason = ""
        self._limits = Limits(parent_fd, self._on_time, self._on_orphaned)
        self._idle = IdleLimit(record.idle_timeout_s, self._on_idle)
        self._stopping = Stopping(self._ask_agent, self._press_power_button, self.kill, self._ended)
        self._resources = contextlib.ExitStack()  # what ends before the last word is written
        self._control: ControlServer | None = None
        self._relay = TeamRelay(store, record, jail.mates)
        self.ports = PublishedPorts(store, record.id, lambda: self.machine)
        self._is_waking = False
        self._is_copy = False  # restored, and not yet a guest of its own
        self._snapshotting = Snapshotting(store, self)

    @property
    def machine(self) -> Machine:
        """The machine, while there is one that is nobody else's copy."""
        if self._guest is None or self._is_copy:
            raise AgentError("the sandbox has not been made yet")
        if self._ended.is_set():
            raise AgentError("the sandbox has ended")
        return self._guest.machine

    # What may be asked of it; see operations.

    def use(self) -> None:
        """Somebody uses it, by something that its guest does not see."""
        self._idle.use()

    def current_record(self) -> SandboxRecord:
        """Return its record, with the ports that it has been given."""
        return self._store.known(self.record.id) or self.record

    def stop(self, agent_s: float = AGENT_S, reason: str = "it was stopped") -> None:
        """Begin to end it politely."""
        with self._state_lock:
            if self._client is None:
                self.kill("it was stopped before it had booted")
                return
            self._check_stays()
            machine = self.machine
            if not self._stopping.has_begun:
                self._stop_reason = reason
            self._update(Event.STOP)
            if machine.is_paused:
                machine.resume()
        self._stopping.begin(agent_s)

    def kill(self, reason: str, event: Event = Event.ENDED) -> None:
        """End it at once. Never blocks."""
        with self._lock:
            is_open = self._verdict is None or self._verdict.event is Event.SUSPEND
            if is_open and not self._ended.is_set():
                self._verdict = Verdict(event, reason)
                log.info("killing the guest: %s", reason)
            if self._guest is not None:
                self._guest.machine.stop()

    def pause(self) -> None:
        """Halt the guest.

        Raises:
            ConfigError: it does not run.
        """
        with self._state_lock:
            self._check_stays()
            self.record = self._store.update(
                self.record.id, Event.PAUSE, paused_at=time.monotonic()
            )
            self.machine.pause()
            self._limits.hold()
            log.info("paused")

    def resume(self) -> None:
        """Let the guest go on.

        Raises:
            ConfigError: it is not paused.
        """
        with self._state_lock:
            self._check_stays()
            stood_still_s = self.record.stood_still_s()
            self.record = self._store.update(
                self.record.id, Event.RESUME, paused_at=None, paused_s=stood_still_s
            )
            self._limits.go_on()
            self.machine.resume()
            log.info("resumed")

    def set_time_limit(self, seconds: float | None) -> None:
        """End it so many seconds from now, its pauses not counted; None for never."""
        since_start_s = None
        if seconds is not None:
            since_start_s = round(self._ran_s() + seconds, 3)
        self.record = self._store.update(self.record.id, timeout_s=since_start_s)
        self._limits.set_time(seconds)

    def limit(self, changed: dict[str, object]) -> dict[str, object]:
        """Change what the guest may use; return all limits.

        Raises:
            ConfigError: see resource_limits.
        """
        new = resource_limits.check(changed)
        with self._state_lock:
            limits = {**resource_limits.check(self.record.limits), **new}
            resource_limits.apply(self.machine, limits, new)
            kept: dict[str, object] = {
                key: value for key, value in limits.items() if value is not None
            }
            self.record = self._store.update(self.record.id, limits=kept)
        return kept

    def _ran_s(self) -> float:
        return time.monotonic() - self.started_at - self.record.stood_still_s()

    def deliver(self, values: dict[str, object]) -> dict[str, object]:
        """Take a message for the guest's programs."""
        return self._relay.deliver(values)

    def snapshot(self, name: str, is_fork: bool) -> SnapshotRecord:
        """Make a snapshot of it; see Snapshotting."""
        return self._snapshotting.create(name, is_fork)

    def suspend(self) -> None:
        """Bring it to the disk; see Snapshotting. Its end comes with that."""
        self._snapshotting.suspend()

    def begin_suspend(self) -> None:
        """See Snapshotting."""
        forwards = tuple(str(forward) for forward in self.ports.list())
        with self._state_lock, self._lock:
            if self._verdict is not None:
                raise AgentError(f"it ends: {self._verdict.reason}")
            self.record = self._store.update(
                self.record.id,
                forwards=forwards,
                ran_s=round(self._ran_s(), 3),
            )
            self._verdict = Verdict(Event.SUSPEND, "")

    def _check_stays(self) -> None:
        if self._verdict is not None and self._verdict.event is Event.SUSPEND:
            raise ConfigError(f"{self.record.name} is being suspended")

    def abort_suspend(self) -> None:
        """See Snapshotting."""
        with self._lock:
            if self._verdict is not None and self._verdict.event is Event.SUSPEND:
                self._verdict = None

    def with_agent(self, call: Callable[[AgentClient], None], timeout_s: float) -> None:
        """Have something asked of the agent, over the connection that there is, or another.

        A guest that is paused runs until it has answered.

        Raises:
            VoidboxError: it does not answer.
        """
        with self._state_lock:  # nobody pauses or resumes it meanwhile
            machine = self.machine
            if machine.is_paused:
                machine.resume()
                try:
                    return self._ask(call, timeout_s)
                finally:
                    machine.pause()
        return self._ask(call, timeout_s)

    def _ask(self, call: Callable[[AgentClient], None], timeout_s: float) -> None:
        client = self._client
        if client is not None and not client.is_serial:
            try:
                return call(client)
            except AgentError as error:
                if isinstance(error, RequestFailed):
                    raise
        with self._connect(timeout_s) as client:
            return call(client)

    def _update(self, event: Event) -> None:
        try:
            self.record = self._store.update(self.record.id, event)
        except HostError as error:  # a full disk must not keep it from ending
            log.warning("cannot write the record: %s", error)

    def _ask_agent(self, timeout_s: float) -> bool:
        client = self._client
        try:
            if client is not None and not client.is_serial:
                client.shut_down(timeout_s=timeout_s)
            else:  # the line is somebody else's by now
                with self._connect(timeout_s) as client:
                    client.shut_down(timeout_s=timeout_s)
        except (AgentError, SandboxTimeout) as error:
            log.info("stop: %s", str(error).partition("\n")[0])
            return False
        return True

    def _press_power_button(self) -> None:
        if self._guest is not None:
            self._guest.machine.press_power_button()

    def _on_time(self) -> None:
        self._end("its time limit ran out")

    def _on_idle(self) -> None:
        reason = f"nobody used it for {self.record.idle_timeout_s:g} s"
        log.info("%s: stopping", reason)
        try:
            self.stop(reason=reason)
        except VoidboxError as error:
            log.warning("%s", error)
            self.kill(reason)

    def _on_orphaned(self) -> None:
        if self.record.is_pooled:
            with contextlib.suppress(VoidboxError):  # on a full disk, say: its record stays
                self.record = self._store.update(self.record.id, removes_itself=True)
        self._end("the process that owned it ended")

    def _end(self, reason: str) -> None:
        """End it, at once unless it has a volume that is to be left in order."""
        if not writes_named(self.record.volumes):
            self.kill(reason)
            return
        try:
            self.stop(reason=reason)
        except VoidboxError as error:
            log.warning("%s", error)
            self.kill(reason)

    def _on_keeper_lost(self) -> None:
        self.kill("its keeper, which makes its sockets, ended", Event.FAILED)

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stopping.has_begun:
            self.kill(f"it was killed by a second {name}")
        elif not self._ended.is_set():
            log.info("got %s: stopping", name)
            try:
                self.stop()
            except VoidboxError as error:
                log.warning("%s", error)

    # Its life. Thread: main.

    def run(self) -> None:
        """Boot it, wait for its end, and leave nothing behind but its record and its logs."""
        outcome, error = None, None
        with SignalThread((signal.SIGTERM, signal.SIGINT), self._on_signal):
            try:
                guest, client = self._boot()
                self._report({"ok": True})
                self._watch(client)
                outcome = guest.machine.wait()
            except VoidboxError as problem:
                error = problem
            except Exception as problem:  # whatever it is, the sandbox ends and says so
                log.exception("voidbox failed")
                error = HostError(f"voidbox failed: {problem!r}")
            self._ended.set()
            tail = self._guest.machine.console.tail() if self._guest is not None else ""
            self._resources.close()
            self._snapshotting.close()
            self._stopping.join()
            self._limits.close()
            verdict = self._judge(outcome, error, tail)
            self._bequeath(verdict)
        if error is not None:
            if self._verdict is not None:
                error = AgentError(verdict.reason)
            self._report({**describe_error(error), "has_begun": self._has_begun})

    def _boot(self) -> tuple[Guest, AgentClient]:
        record, own = self.record, self._resources.callback
        upper_path = self._store.path(record.id, UPPER_FILE)
        config = self._jail.furnish()
        key = templates.key_of(record, config)
        self._control = ControlServer(
            self._store.path(record.id, "control.sock"),
            Operations(self).handlers(),
            is_in_user_namespace="user" in self._jail.layers,
        )
        self._control.start()
        console_log = logs.ConsoleLog(self._store.path(record.id, "console.log"))
        own(console_log.close)
        own(self._relay.close)
        self._relay.start()
        self._limits.start()
        if self._jail.alive_fd is not None:
            self._limits.watch_end(self._jail.alive_fd, self._on_keeper_lost)
        self._is_waking = restoring.is_suspended(self._store, record)
        source = restoring.find(self._store, record, key)
        client = self._restore(source, config, console_log) if source is not None else None
        if client is None:
            root = recipe.root_of(record)
            if root is not None and root.disk_bytes:
                make_upper(upper_path, root.disk_bytes)
            self._start(config, console_log)
            for forward in recipe.ports_to_choose(record):
                self.ports.add(forward)
            client = self._connect(connect.BOOT_TIMEOUT_S)
        log.info("the guest's agent answers via %s", "serial" if client.is_serial else "vsock")
        self._client = client
        own(self._hang_up)
        self._jail.shut()
        if source is None and key is not None and not client.is_serial:
            self._snapshotting.leave_template(key)
        with self._state_lock:
            self.record = self._store.update(
                record.id,
                Event.BOOTED,
                started_at=self._start_time,
                forwards=(),
                jail_layers=tuple(self._jail.layers),
            )
            self._is_waking = False
        assert self._guest is not None
        if source is not None:
            answered_s = time.monotonic() - self.started_at
            own(Learning(self._guest.machine, source, answered_s).close)
            if source.is_suspended:
                remove_tree(source.folder)  # the machine has its memory mapped
        return self._guest, client

    def _start(
        self, config: MachineConfig, console_log: logs.ConsoleLog, source: Source | None = None
    ) -> Guest:
        """Make the machine, and let it run."""
        if source is None:
            guest = self._make_guest(config, self._store.secret(self.record.id))
        else:
            guest = self._make_guest(config, source.secret, source.folder)
        self._resources.callback(guest.close)
        guest.machine.console.attach(console_log)
        with self._lock:
            self._guest = guest
            if self._verdict is not None:
                raise AgentError(self._verdict.reason)
        # A template's guest has run nothing of anybody's; and where it cannot be restored, another
        # machine is made here, which the filter would not let.
        if source is None or not source.is_template:
            self._jail.shut()
        log.info("the machine is made")
        guest.machine.start()
        if self.record.limits:
            limits = resource_limits.check(self.record.limits)
            resource_limits.apply(guest.machine, limits, limits)
        self.started_at, self._has_begun = time.monotonic() - self.record.ran_s, True
        self._start_time = time.time() - self.record.ran_s
        if self.record.timeout_s is not None:
            self._limits.set_time(max(0.0, self.record.timeout_s - self.record.ran_s))
        return guest

    def _restore(
        self, source: Source, config: MachineConfig, console_log: logs.ConsoleLog
    ) -> AgentClient | None:
        """Restore the machine, and make its guest one of its own, before anybody reaches it.

        Returns:
            None if that failed, and it may as well boot.
        """
        record, secret = self.record, self._store.secret(self.record.id)
        self._is_copy = True
        try:
            guest = self._start(restoring.closed(config), console_log, source)
            limit_s = restoring.ADOPT_S if source.is_template else connect.BOOT_TIMEOUT_S
            client = guest.connect(limit_s, log.info)
            restoring.adopt(client, source, secret, record.name)
        except VoidboxError as error:
            if not source.is_template or self._verdict is not None:
                raise
            log.warning("the template could not be restored, so the sandbox boots: %s", error)
            self._give_up_template(source)
            return None
        self._is_copy = False
        guest.secret = secret
        log.info("restored from %s", source.folder)
        if config.vsock is not None and config.vsock.path is not None:
            guest.machine.publish_vsock(config.vsock.path)
        for forward in recipe.forwards_of(record, source.is_suspended):
            self.ports.add(forward)
        return client

    def _give_up_template(self, source: Source) -> None:
        with self._lock:
            guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
        self._is_copy = self._has_begun = False
        templates.Templates(self._store.folder).set_aside(source.folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._store.path(self.record.id, UPPER_FILE))

    def _connect(self, timeout_s: float) -> AgentClient:
        if self._guest is None:
            raise AgentError("the sandbox has not been made yet")
        return self._guest.connect(timeout_s, log.info)

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()

    def _watch(self, client: AgentClient) -> None:
        if client.is_serial:
            log.info("no heartbeat via serial: the line carries one program at a time")
            client.close()
            return
        heartbeat = Heartbeat(
            client,
            self._store.secret(self.record.id),
            self._reconnect,
            lambda: self._ended.is_set() or self._stopping.has_begun or self.machine.is_paused,
            lambda reason: self.kill(reason, Event.FAILED),
            self._idle.period_s(PERIOD_S),
            on_answer=self._idle.take,
            idle_period_s=self._idle.period_s(IDLE_PERIOD_S),
        )
        heartbeat.start()
        self._resources.callback(heartbeat.close)

    def _reconnect(self) -> AgentClient:
        if self._client is not None:
            self._client.close()  # it has a thread, and a guest may break connections for ever
        self._client = client = self._connect(RECONNECT_S)
        return client

    def _judge(
        self, outcome: Outcome | None, error: VoidboxError | None, console_tail: str
    ) -> Verdict:
        """Return how it ended: as was decided here, else as the machine says, else by the error."""
        has_stopped = outcome is None or outcome.reason in _WELL
        if self._is_waking and self._verdict is None:  # what is on the disk is as it was
            why = str(error or (outcome and outcome.describe())).partition("\n")[0]
            return Verdict(Event.SUSPEND, f"it could not be woken: {why}")
        if self._verdict is not None and has_stopped:
            verdict = self._verdict
            if verdict.event is Event.FAILED and console_tail:
                story = f"{verdict.reason}\nthe console's last lines:\n{console_tail}"
                return verdict._replace(crash=story)
            return verdict
        if outcome is None:
            return Verdict(Event.FAILED, str(error).partition("\n")[0], str(error))
        end = outcome.reason.name
        if has_stopped and self._stopping.has_begun:
            return Verdict(Event.ENDED, self._stop_reason)
        if has_stopped:
            return Verdict(Event.ENDED, outcome.reason.value, end=end)
        story = outcome.describe()
        return Verdict(Event.FAILED, story.partition("\n")[0], story, end)

    def _bequeath(self, verdict: Verdict) -> None:
        """Write the last word, and let everybody know. Nothing of the sandbox runs any more."""
        level = logging.WARNING if verdict.event is Event.FAILED else logging.INFO
        log.log(level, "the sandbox has ended: %s", verdict.crash or verdict.reason)
        store, id = self._store, self.record.id
        try:
            self.record = store.update(
                id, verdict.event, reason=verdict.reason, crash=verdict.crash, end=verdict.end
            )
            if self._control is not None:
                self._control.hide()
            store.release(id)
            if self.record.removes_itself:
                self._jail.remove()
        except VoidboxError as error:  # the next command's clean() does it
            log.warning("cannot clean up: %s", error)
        store.release(id)
        os.eventfd_write(self.ended_fd, 1)
        if self._control is not None:
            self._control.close()
        os.close(self.ended_fd)


def main(argv: list[str], make_guest: MakeGuest | None = None) -> int:
    """Be the process of a sandbox; returns the exit status."""
    folder, status_fd, parent_fd = _parse(argv)

    def report(values: dict[str, object]) -> None:
        line = json.dumps(values).encode() + b"\n"
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(status_fd, line)

    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whatever terminal it was started from
    id = os.path.basename(folder)
    try:
        store = Store(os.path.dirname(os.path.dirname(folder)))
        record = store.adopt(id)
        logger = logging.getLogger("voidbox")
        logger.addHandler(logs.OwnerLog(store.path(id, "owner.log")))
        logger.setLevel(logging.INFO)
        log.info("the sandbox's process begins")
        report({"adopted": True})
        raise_file_limit()
        jail = Confinement(store, record, recipe.kept_config(store, record))
        jail.enter()
        owner = Owner(store, record, parent_fd, report, make_guest or _make_guest, jail)
    except (VoidboxError, OSError) as error:
        if isinstance(error, OSError):
            error = HostError.from_errno("start the sandbox's process", error.errno or 0)
        report({**describe_error(error), "has_begun": False})
        return 1
    owner.run()
    return 0


def _make_guest(config: MachineConfig, secret: bytes, snapshot: str | None = None, /) -> Guest:
    return Guest(config, config.vsock is not None, secret, snapshot)


def _parse(argv: list[str]) -> tuple[str, int, int | None]:
    numbers = dict(zip(argv[1::2], argv[2::2], strict=False))
    if len(argv) % 2 == 0 or not numbers.keys() <= {"--status-fd", "--parent-fd"}:
        raise SystemExit("usage: owner FOLDER [--status-fd N] [--parent-fd N]")
    parent_fd = numbers.get("--parent-fd")
    status_fd = int(numbers.get("--status-fd", "1"))
    return os.path.abspath(argv[0]), status_fd, int(parent_fd) if parent_fd else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
