"""`voidbox run -- COMMAND`: run one command in a fresh VM that ends with it, or a shell."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient
from voidbox.cli import exit_status
from voidbox.cli.attach import Attachment, Command, status_of
from voidbox.cli.complain import complain
from voidbox.cli.workspace_back import RunWorkspace
from voidbox.errors import AgentError, ConfigError, SandboxTimeout, VoidboxError
from voidbox.event_loop import EventLoop
from voidbox.sandbox.guest import Guest
from voidbox.sandbox.process.stopping import AGENT_S
from voidbox.sandbox.worker.machine import WorkerMachine
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import FdOutput
from voidbox.vmm.outcome import EndReason


def run(
    config: MachineConfig,
    command: Command,
    *,
    timeout_s: float | None,
    is_verbose: bool,
    console_log: str | None,
    has_vsock: bool,
    on_end: Callable[[WorkerMachine], None],
    workspace: str | None = None,
    jail: str | None = None,
) -> int:
    """Run a command in a fresh VM; returns its exit status, or one of ours.

    Args:
        on_end: called with the machine when it has ended.
        workspace: a folder that is copied in, and back when the command has ended.
        jail: see Guest.
    Raises:
        VoidboxError: bad input or an unusable host.
    """
    with ExitStack() as outer:
        log_fd = -1
        if console_log is not None:
            log_fd = _open_log(console_log)
            outer.callback(os.close, log_fd)
        guest = outer.enter_context(Guest(config, has_vsock, jail=jail))
        if log_fd >= 0:
            loop: EventLoop = guest.machine.loop
            guest.machine.console.attach(FdOutput(loop, log_fd, on_broken=lambda error: None))
        attachment = Attachment(guest.machine.stop, timeout_s, is_verbose)
        copier = RunWorkspace(guest, workspace, is_verbose) if workspace is not None else None
        clients: list[AgentClient] = []

        def connect(stack: ExitStack) -> AgentClient:
            guest.machine.start()
            stack.callback(guest.close)
            client = stack.enter_context(guest.connect(log=attachment.log))
            clients.append(client)
            if any(disk.target and not disk.is_read_only for disk in config.disks):
                stack.callback(_shut_down, guest, client)
            if copier is not None:
                if client.is_serial:
                    raise ConfigError("a workspace is copied over vsock, and there is none")
                copier.copy_in()
                stack.callback(lambda: copier.copy_back(attachment.interruption is not None))
            return client

        status = attachment.run(
            command, connect, lambda error: explain(guest, error, bool(clients))
        )
        if attachment.interruption == exit_status.TIMEOUT == status:
            complain(f"voidbox: the VM ran for {timeout_s:g} s and was ended")
        on_end(guest.machine)
        is_lost = copier is not None and copier.has_failed
        return exit_status.AGENT if is_lost and status == exit_status.OK else status


def explain(guest: Guest, error: VoidboxError, has_answered: bool = True) -> int:
    """Say why there is no exit status of the command, and return one of ours.

    Args:
        has_answered: its agent did; a guest that powers off before has failed.
    """
    outcome = guest.machine.wait(0)
    status = exit_status.AGENT
    if isinstance(error, RequestFailed):
        status = status_of(error)
    elif outcome is not None and outcome.reason is not EndReason.STOPPED:
        status = exit_status.OF_END[outcome.reason.name]
        if status == exit_status.OK and not has_answered:
            status = exit_status.AGENT
    if status != exit_status.OK:
        complain(f"voidbox: {error}")
    return status


def _shut_down(guest: Guest, client: AgentClient) -> None:
    """Have the guest leave its volumes in order: its end would be a power cut for them."""
    with suppress(AgentError, SandboxTimeout):
        client.shut_down(timeout_s=AGENT_S)
        guest.machine.wait(AGENT_S)


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot write --console-log {path}: {reason}") from error
