"""What can be asked of a sandbox's process over its control socket.

info {}                      record
metrics {}                   exits, vcpu_ns, cpu_ns, rss_bytes, uptime_s, boot_ns, network, …
stop {timeout}, kill {leaves_nothing}     answered when it has begun; wait {} says when it is done
wait {}                      record, once the sandbox has ended
set_timeout {timeout}        seconds from now, or null for no limit
begin {}                     of one that is held; answered once its agent answers
pause {}, resume {}
hand_over {envs, metadata}    and it goes on when the process that made it is gone
limit {…}                    limits, all of them; see resource_limits; null ends one
port_add {publish}           forward, with the host's port that it got
port_remove {publish}        removed
port_list {}                 forwards
connect_serial {}            and becomes a stream to the guest's second serial port
deliver {from, text}         outcome, of a message for its mailbox
snapshot {name, fork}        snapshot, its ID, once it is made; name may be ""
suspend {}                   once it is on the disk; the process ends then
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.process.control_server import Answer, Becomes, Handler, Later
from voidbox.sandbox.process.held_start import HeldStart
from voidbox.sandbox.process.published import PublishedPorts
from voidbox.sandbox.process.stopping import AGENT_S
from voidbox.sandbox.snapshots.record import SnapshotRecord
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.worker.machine import WorkerMachine
from voidbox.sandbox.worker.requests import rss_bytes

if TYPE_CHECKING:
    from voidbox.nat.forwards import Forward


class Sandbox(Protocol):
    """What the operations need of the sandbox's process; see owner. Thread: any.

    Attributes:
        ended_fd: readable once everything has ended.
        leaves_nothing: neither its record nor its logs are kept then.
    """

    ended_fd: int
    leaves_nothing: bool
    started_at: float
    ports: PublishedPorts
    start: HeldStart

    @property
    def machine(self) -> WorkerMachine: ...
    def use(self) -> None: ...
    def current_record(self) -> SandboxRecord: ...
    def stop(self, agent_s: float) -> None: ...
    def kill(self, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def snapshot(self, name: str, is_fork: bool) -> SnapshotRecord: ...
    def suspend(self) -> None: ...
    def set_time_limit(self, seconds: float | None) -> None: ...
    def hand_over(self, envs: dict[str, str], metadata: dict[str, str]) -> None: ...
    def limit(self, changed: dict[str, object]) -> dict[str, object]: ...
    def deliver(self, values: dict[str, object]) -> dict[str, object]: ...


class Operations:
    """The handlers of one sandbox. Thread: any."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def handlers(self) -> dict[str, Handler]:
        """Return all of them, by name."""
        return {
            "info": self._info,
            "metrics": self._metrics,
            "stop": self._stop,
            "kill": self._kill,
            "wait": lambda values: Later(self._sandbox.ended_fd, lambda: self._info({})),
            "set_timeout": self._using(self._set_timeout),
            "begin": self._using(lambda values: self._do(self._sandbox.start.run)),
            "pause": lambda values: self._do(self._sandbox.pause),
            "resume": self._using(lambda values: self._do(self._sandbox.resume)),
            "snapshot": self._using(self._snapshot),
            "suspend": lambda values: self._do(self._sandbox.suspend),
            "port_add": self._using(self._port_add),
            "port_remove": self._using(self._port_remove),
            "port_list": self._port_list,
            "hand_over": self._hand_over,
            "limit": self._limit,
            "connect_serial": self._using(self._connect_serial),
            "deliver": self._using(self._sandbox.deliver),
        }

    def _using(self, handler: Handler) -> Handler:
        """Return a handler of what counts as use of the sandbox."""

        def use(values: dict[str, object]) -> Answer:
            try:
                return handler(values)
            finally:
                self._sandbox.use()

        return use

    def _do(self, action: Callable[[], None]) -> dict[str, object]:
        action()
        return {}

    def _info(self, values: dict[str, object]) -> dict[str, object]:
        return {"record": self._sandbox.current_record().to_json()}

    def _stop(self, values: dict[str, object]) -> Answer:
        seconds = _seconds(values, AGENT_S)
        if seconds is None:
            raise ConfigError("stop: without a time limit it may never end; give a timeout")
        self._sandbox.stop(seconds)
        return {}

    def _kill(self, values: dict[str, object]) -> Answer:
        if values.get("leaves_nothing") is True:
            self._sandbox.leaves_nothing = True  # written when it has ended: a kill never blocks
        self._sandbox.kill("it was killed")
        return {}

    def _set_timeout(self, values: dict[str, object]) -> Answer:
        if "timeout" not in values:
            raise ConfigError("set_timeout: give a timeout, in seconds, or null for none")
        self._sandbox.set_time_limit(_seconds(values, None))
        return {}

    def _hand_over(self, values: dict[str, object]) -> Answer:
        self._sandbox.hand_over(_texts(values, "envs"), _texts(values, "metadata"))
        return {}

    def _limit(self, values: dict[str, object]) -> Answer:
        changed = {key: value for key, value in values.items() if key != "op"}
        return {"limits": self._sandbox.limit(changed)}

    def _snapshot(self, values: dict[str, object]) -> Answer:
        name, is_fork = values.get("name", ""), values.get("fork", False)
        if not isinstance(name, str) or not isinstance(is_fork, bool):
            raise ConfigError("snapshot: a name is text, and fork true or false")
        return {"snapshot": self._sandbox.snapshot(name, is_fork).id}

    def _connect_serial(self, values: dict[str, object]) -> Answer:
        machine = self._sandbox.machine
        if not machine.config.serial_line:
            raise AgentError("the guest has no second serial port")
        return Becomes({}, machine.adopt_serial)

    def _metrics(self, values: dict[str, object]) -> Answer:
        machine = self._sandbox.machine
        found = machine.metrics()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **found,
            # Of both processes.
            "cpu_ns": time.process_time_ns() + int(found["cpu_ns"]),
            "rss_bytes": rss_bytes() + int(found["rss_bytes"]),
            "rss_bytes_max": (usage.ru_maxrss << 10) + int(found["rss_bytes_max"]),
            "cpu_held_ns": sum(
                int(each.get("cpu_held_ns", 0)) for each in (found, found.get("group", {}))
            ),
            "memory_bytes": machine.config.memory_bytes,
            "cpus": machine.config.cpus,
            "uptime_s": time.monotonic() - self._sandbox.started_at,
            "limits": self._sandbox.current_record().limits,
        }

    def _port_add(self, values: dict[str, object]) -> Answer:
        return {"forward": _show(self._sandbox.ports.add(_forward(values)))}

    def _port_remove(self, values: dict[str, object]) -> Answer:
        forward = _forward(values)
        if not self._sandbox.ports.remove(forward):
            raise ConfigError(f"{_show(forward)} is not published: voidbox port ls shows what is")
        return {}

    def _port_list(self, values: dict[str, object]) -> Answer:
        return {"forwards": [_show(forward) for forward in self._sandbox.ports.list()]}


def _texts(values: dict[str, object], name: str) -> dict[str, str]:
    found = values.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ConfigError(f"hand_over: {name} is a map of text to text")
    return found


def _forward(values: dict[str, object]) -> Forward:
    from voidbox.nat.forwards import parse_forward

    text = values.get("publish")
    if not isinstance(text, str):
        raise ConfigError("give publish: [IP:]HOSTPORT:GUESTPORT[/udp]")
    return parse_forward(text)


def _show(forward: Forward) -> str:
    return f"{forward._replace(is_udp=False)}/{'udp' if forward.is_udp else 'tcp'}"


def _seconds(values: dict[str, object], default: float | None) -> float | None:
    value = values.get("timeout", default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"a timeout is a number of seconds, not {value!r}")
    if value < 0:
        raise ConfigError(f"a timeout of {value} s: give 0 or more")
    return float(value)
