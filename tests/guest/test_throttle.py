"""The limit of the vCPUs' CPU time, with guests that never rest."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.guest import tiny
from tests.guest.test_machine import machine_of
from voidbox.vmm.machine import Machine

pytestmark = [pytest.mark.kvm, pytest.mark.slow]
SPAN_S = 3.0


def _share(machine: Machine) -> float:
    """Return how much of a CPU its vCPUs use."""
    used_ns, began = machine.statistics().vcpu_ns, time.monotonic()
    time.sleep(SPAN_S)
    return (machine.statistics().vcpu_ns - used_ns) / 1e9 / (time.monotonic() - began)


def test_a_limit_holds_and_can_be_changed(tmp_path: Path) -> None:
    with machine_of(tmp_path, tiny.SPIN) as (machine, _):
        machine.set_cpu_limit(0.5)
        machine.start()
        time.sleep(0.5)
        half = _share(machine)
        assert 0 < half < 0.56  # less where the host is busy: it is a limit, not a promise
        machine.set_cpu_limit(0.1)
        time.sleep(0.5)
        tenth = _share(machine)
        assert 0 < tenth < 0.16
        assert machine.statistics().throttle.held_ns > 0
        machine.set_cpu_limit(None)
        time.sleep(0.3)
        assert _share(machine) > 0
        assert machine.statistics().throttle.cpu_limit is None


def test_a_paused_machine_stays_paused_while_it_is_held(tmp_path: Path) -> None:
    with machine_of(tmp_path, tiny.SPIN) as (machine, _):
        machine.set_cpu_limit(0.1)
        machine.start()
        time.sleep(0.5)
        machine.pause()
        used_ns = machine.statistics().vcpu_ns
        time.sleep(0.5)
        # Its thread may still have been falling asleep: microseconds, where it ran 50 ms before.
        assert machine.statistics().vcpu_ns - used_ns < 5_000_000
        assert machine.is_paused
        machine.resume()
        time.sleep(0.5)
        assert machine.statistics().vcpu_ns > used_ns
        machine.stop()
        assert machine.wait(60) is not None
