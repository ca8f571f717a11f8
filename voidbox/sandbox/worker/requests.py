"""Orders that may take a while, or that wait for the machine's loop."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.worker.orders import Answers

if TYPE_CHECKING:
    from voidbox.nat.backend import NatBackend
    from voidbox.vmm.machine import Machine

_LOOP_S = 10.0
_Value = TypeVar("_Value")


def perform(machine: Machine, values: dict[str, Any], answers: Answers) -> dict[str, object]:
    """Do what is ordered; return the answer. Thread: any but a loop.

    Raises:
        VoidboxError: it cannot be done.
    """
    op = values.get("op")
    if op == "pause":
        machine.pause()
    elif op == "resume":
        machine.resume()
    elif op == "metrics":
        return metrics(machine)
    elif op == "snapshot":
        return _snapshot(machine, values, answers)
    elif op == "record_working_set":
        return {"touched": machine.record_working_set(values["path"], values["bytes_max"])}
    elif op == "limit":
        _limit(machine, values["limits"])
    elif op in ("publish", "unpublish", "published"):
        return _ports(machine, str(op), values)
    else:
        raise ConfigError(f"the machine's process knows no {op!r}")
    return {}


def _snapshot(machine: Machine, values: dict[str, Any], answers: Answers) -> dict[str, object]:
    report = machine.snapshot(
        values["folder"],
        stop=values["stop"],
        disks=values["disks"],
        timeout_s=values["within_s"],
        extra=values["extra"],
        on_frozen=lambda: answers.send(id=values["id"], event="frozen"),
    )
    return {"report": str(report)}


def _limit(machine: Machine, values: dict[str, Any]) -> None:
    if "cpu" in values:
        machine.set_cpu_limit(values["cpu"])
    if "net_bytes_s" in values and machine.network is not None:
        network, rate = machine.network, values["net_bytes_s"]
        _on_loop(machine, lambda: network.set_rate(rate))
    if "memory_bytes" in values:
        machine.set_memory_target(values["memory_bytes"] or machine.config.memory_bytes)
    if "disk_bytes_s" in values:
        machine.set_disk_rates(values["disk_bytes_s"], values["disk_ops_s"])


def _ports(machine: Machine, op: str, values: dict[str, Any]) -> dict[str, object]:
    from voidbox.nat.forwards import parse_forward

    network = _network(machine)
    if op == "published":
        return {"forwards": [str(one) for one in _on_loop(machine, network.forwards.list)]}
    forward = parse_forward(values["forward"])
    if op == "publish":
        return {"forward": str(_on_loop(machine, lambda: network.forwards.add(forward)))}
    return {"is_gone": _on_loop(machine, lambda: network.forwards.remove(forward))}


def _network(machine: Machine) -> NatBackend:
    if machine.network is None:
        raise ConfigError("the sandbox has no network, so no ports to publish")
    return machine.network


def metrics(machine: Machine) -> dict[str, object]:
    """Return what a machine has done, and its process."""
    statistics = machine.statistics()
    network = None
    if machine.network is not None:
        network = _on_loop(machine, machine.network.statistics)._asdict()
    return {
        "exits": statistics.exits,
        "port_exits": {str(port): count for port, count in statistics.port_exits.items()},
        "boot_ns": statistics.boot_ns,
        "boot_timer_ns": statistics.boot_timer_ns,
        "vcpu_ns": statistics.vcpu_ns,
        "cpu_ns": time.process_time_ns(),
        "rss_bytes": rss_bytes(),
        "rss_bytes_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "network": network,
        "disks": [disk._asdict() for disk in statistics.disks],
        "cpu_held_ns": statistics.throttle.held_ns,
        "balloon": statistics.balloon._asdict() if statistics.balloon is not None else None,
    }


def rss_bytes() -> int:
    """Return how much memory this process holds; 0 if it can open no file any more."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # proc(5): pages
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _on_loop(machine: Machine, call: Callable[[], _Value]) -> _Value:
    """Have the machine's loop call it; return what it returns, raise what it raises.

    Raises:
        AgentError: the loop has ended with the machine.
    """
    done = threading.Event()
    results: list[_Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # handed to who asked
            errors.append(error)
        done.set()

    machine.loop.call_soon(run)
    if not done.wait(_LOOP_S):
        raise AgentError("the sandbox has ended")
    for error in errors:
        raise error
    return results[0]
