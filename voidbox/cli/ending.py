"""Sandboxes are stopped and killed: begun for all, then each is waited for."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from voidbox.cli.sandboxes import CONTROL_S, control
from voidbox.errors import AgentError, ConfigError, HostError, SandboxTimeout
from voidbox.sandbox.launch import wait_ended
from voidbox.sandbox.process.stopping import POWER_BUTTON_S
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_SLACK_S = 15.0  # beyond what the steps of a stop take, for a busy host
_KILL_S = 10.0


def begin_stop(store: Store, record: SandboxRecord, timeout_s: float) -> None:
    """Ask a sandbox to end politely; one that has ended already is left alone."""
    if not _discard_suspended(store, record) and not record.state.is_final:
        # A process that has gone away meanwhile is what was wanted.
        with suppress(AgentError):
            control(store, record).request("stop", timeout=timeout_s)


def finish_stop(store: Store, record: SandboxRecord, timeout_s: float) -> None:
    """Wait for the end of a sandbox that was stopped.

    Raises:
        HostError: it does not end.
    """
    if not wait_ended(store, record.id, timeout_s + POWER_BUTTON_S + _SLACK_S):
        raise HostError(
            f"{record.name} does not stop: voidbox kill {record.name} ends it in any case"
        )
    _finish(store, record)


def _discard_suspended(store: Store, record: SandboxRecord) -> bool:
    """End a sandbox if it is suspended; whether it was, and nobody has woken it meanwhile."""
    if record.state is State.SUSPENDED:
        with suppress(ConfigError):
            store.discard_suspended(record.id)
            return True
    return False


def _finish(store: Store, record: SandboxRecord) -> None:
    """See to it that a sandbox whose process is gone has ended."""
    store.clean()
    with suppress(ConfigError):  # it has; or else somebody was just suspending it
        store.discard_suspended(record.id)


def begin_kill(store: Store, record: SandboxRecord) -> None:
    """End a sandbox at once; one that has ended already is left alone."""
    if _discard_suspended(store, record) or record.state.is_final:
        return
    try:
        control(store, record, CONTROL_S / 2).request("kill")
    except AgentError:  # it is gone, or about to be
        pass
    except SandboxTimeout:
        _kill_process(store, record)


def finish_kill(store: Store, record: SandboxRecord) -> None:
    """Wait for the end of a sandbox that was killed; its process is killed if that hangs.

    Raises:
        HostError: even that does not help.
    """
    if not wait_ended(store, record.id, _KILL_S):
        _kill_process(store, record)
        if not wait_ended(store, record.id, _KILL_S):
            raise HostError(f"{record.name}: its process {record.pid} cannot be killed")
    _finish(store, record)


def _kill_process(store: Store, record: SandboxRecord) -> None:
    fd = store.open_owner(record.id)
    if fd is not None:
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
