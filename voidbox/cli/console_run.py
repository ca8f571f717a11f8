"""`voidbox run --console`: a guest's serial console on this terminal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.terminal import Terminal
from voidbox.sandbox import kvm_speed
from voidbox.sandbox.worker.machine import WorkerMachine, start_machine
from voidbox.signals import SignalThread
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import wait_flushed
from voidbox.vmm.outcome import Outcome

_FLUSH_S = 0.2  # how often a signal is looked for while the last output drains
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    config: MachineConfig,
    timeout_s: float | None,
    on_end: Callable[[WorkerMachine], None],
    jail: str | None = None,
) -> int:
    """Run a machine with its console here; returns the exit status.

    Args:
        on_end: called with the machine when it has ended.
        jail: see start_machine.
    Raises:
        VoidboxError: bad input or an unusable host.
    """
    kvm_speed.check_can_boot(config.kernel)
    with closing(start_machine(config, jail)) as machine:
        status = _run(machine, timeout_s)
        on_end(machine)
        return status


def _run(machine: WorkerMachine, timeout_s: float | None) -> int:
    """Run until the machine ends, the time runs out, or a signal comes; returns the status."""
    interruption: list[int] = []

    def stop(status: int) -> None:
        interruption.append(status)
        machine.stop()

    def on_broken(error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            complain(f"\nvoidbox: cannot write the output: {error.strerror}")
        stop(exit_status.of_output_error(error))

    with (
        SignalThread(_ENDING_SIGNALS, lambda number: stop(exit_status.SIGNAL_BASE + number)),
        Terminal(
            machine.loop,
            machine.console,
            on_quit=machine.stop,
            on_broken=on_broken,
            on_hangup=lambda: stop(exit_status.SIGNAL_BASE + signal.SIGHUP),
        ),
    ):
        machine.start()
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        outcome = machine.wait(timeout_s)
        if outcome is None:
            machine.stop()
            outcome = machine.wait()
            interruption.append(exit_status.TIMEOUT)
        # A reader that is slow, or stopped with Ctrl-S, still gets the guest's last words.
        while not interruption and not wait_flushed(machine.loop, machine.console, _FLUSH_S):
            if time.monotonic() >= deadline:
                interruption.append(exit_status.TIMEOUT)
        machine.close()  # no thread may touch the terminal once its mode is restored
    assert outcome is not None
    return _report(outcome, interruption, timeout_s)


def _report(outcome: Outcome, interruption: list[int], timeout_s: float | None) -> int:
    """Say on stderr how the machine ended, unless it ended well."""
    if interruption and exit_status.OF_END[outcome.reason.name] == exit_status.OK:
        if interruption[0] == exit_status.TIMEOUT:
            complain(f"\nvoidbox: the VM ran for {timeout_s:g} s and was ended")
        return interruption[0]
    status = exit_status.OF_END[outcome.reason.name]
    if status != exit_status.OK:
        complain(f"\nvoidbox: {outcome.describe()}")
    if outcome.error is not None and os.environ.get("VOIDBOX_DEBUG"):
        raise outcome.error
    return status
