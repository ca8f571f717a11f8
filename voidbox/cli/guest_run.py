"""`voidbox run -- COMMAND`: run one command in a fresh VM, or a shell."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient, RemoteProcess
from voidbox.agent.protocol import BAD_REQUEST
from voidbox.cli import exit_status, streams
from voidbox.cli.complain import complain
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.event_loop import EventLoop
from voidbox.sandbox.guest import Guest
from voidbox.signals import SignalThread
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.console import FdOutput
from voidbox.vmm.machine import Machine
from voidbox.vmm.outcome import EndReason

_SHELL = ("/bin/sh", "-l")
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The guest's answers to what the arguments ask for: no such user, no such folder.
_USAGE_CODES = frozenset((BAD_REQUEST, "ENOENT", "ENOTDIR", "EACCES"))
_GUEST_STATUS = {
    EndReason.POWER_OFF: exit_status.OK,
    EndReason.RESET: exit_status.OK,
    EndReason.PANIC: exit_status.PANIC,
    EndReason.CRASH: exit_status.CRASH,
    EndReason.ERROR: exit_status.INTERNAL,
}


class Command(NamedTuple):
    """What to run in the guest.

    Attributes:
        argv: empty for a shell.
        wants_tty: True or False; None for what the streams suggest.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    user: str | None
    wants_tty: bool | None


class _Run:
    """One command in one VM, and all that may end it before its time."""

    def __init__(self, guest: Guest, timeout_s: float | None, is_verbose: bool) -> None:
        self._guest = guest
        self._is_verbose = is_verbose
        self._process: RemoteProcess | None = None
        self._is_tty = False
        self._interruption: int | None = None  # the status of whatever ended the VM first
        self._signals_seen = 0
        self._timeout_s = timeout_s
        self._timer: threading.Timer | None = None

    def run(self, command: Command) -> int:
        """Run the command; returns the exit status."""
        with ExitStack() as stack:
            stack.enter_context(SignalThread((*_ENDING_SIGNALS, signal.SIGWINCH), self._on_signal))
            if self._timeout_s is not None:
                self._timer = threading.Timer(
                    min(self._timeout_s, threading.TIMEOUT_MAX),
                    lambda: self._interrupt(exit_status.TIMEOUT),
                )
                stack.callback(self._timer.cancel)
                self._timer.start()
            self._guest.machine.start()
            stack.callback(self._guest.close)
            try:
                with self._guest.connect(log=self._log) as client:
                    return self._serve(client, command)
            except OSError as error:  # from writing output: everything else is caught below us
                if isinstance(error, BrokenPipeError):
                    return exit_status.BROKEN_PIPE
                raise ConfigError(f"cannot write the output: {error.strerror}") from error
            except (AgentError, SandboxTimeout) as error:
                return self._explain(error)

    def _serve(self, client: AgentClient, command: Command) -> int:
        has_terminal = streams.is_open(0) and os.isatty(0) and os.isatty(1)
        self._is_tty = has_terminal if command.wants_tty is None else command.wants_tty
        if self._is_tty and not has_terminal:
            raise ConfigError("--tty: standard input and output are no terminal")
        process = client.exec(
            command.argv or _SHELL,
            env=command.env,
            cwd=command.cwd,
            user=command.user,
            stdin=streams.is_open(0),
            window_size=streams.window_size() if self._is_tty else None,
        )
        self._process = process
        with ExitStack() as stack:
            if self._is_tty:
                stack.enter_context(streams.raw_terminal())
            if streams.is_open(0):
                stack.enter_context(streams.InputThread(process))
            try:
                streams.copy_output(process)
            except BaseException:
                process.detach()
                self._guest.machine.stop()
                raise
        end = process.wait()
        self._log(f"ExecResponse received exit_code={end.status}")
        if end.error:
            complain(f"voidbox: {end.error}")
        return end.status

    def _log(self, line: str) -> None:
        if self._is_verbose:
            complain(line)

    def _on_signal(self, number: int) -> None:
        """Pass a signal on to the command; one that comes again, or too early, ends the VM."""
        process = self._process
        if number == signal.SIGWINCH:
            if process is not None and self._is_tty:
                with suppress(OSError):  # the terminal is gone: SIGHUP follows
                    process.post_resize(*streams.window_size())
            return
        self._signals_seen += 1
        # Nothing here waits for the guest: a signal must end the VM though its agent hangs.
        if process is None or self._signals_seen > 1 or not process.post_signal(number):
            self._interrupt(exit_status.SIGNAL_BASE + number)

    def _interrupt(self, status: int) -> None:
        if self._interruption is None:
            self._interruption = status
        self._guest.machine.stop()

    def _explain(self, error: Exception) -> int:
        """Say why there is no exit status of the command, and return one of ours."""
        if self._interruption is not None:
            if self._interruption == exit_status.TIMEOUT:
                message = f"voidbox: the VM ran for {self._timeout_s:g} s and was ended"
                complain(message)
            return self._interruption
        outcome = self._guest.machine.wait(0)
        status = exit_status.AGENT
        if isinstance(error, RequestFailed):
            status = exit_status.USAGE if error.code in _USAGE_CODES else exit_status.AGENT
        elif outcome is not None:
            status = _GUEST_STATUS.get(outcome.reason, exit_status.AGENT)
        if status != exit_status.OK:
            complain(f"voidbox: {error}")
        return status


def run(
    config: MachineConfig,
    command: Command,
    *,
    timeout_s: float | None,
    is_verbose: bool,
    console_log: str | None,
    has_vsock: bool,
    on_end: Callable[[Machine], None],
) -> int:
    """Run a command in a fresh VM; returns its exit status, or one of ours.

    Args:
        on_end: called with the machine when it has ended.
    Raises:
        VoidboxError: bad input or an unusable host.
    """
    with ExitStack() as stack:
        log_fd = -1
        if console_log is not None:
            log_fd = _open_log(console_log)
            stack.callback(os.close, log_fd)
        guest = stack.enter_context(Guest(config, has_vsock))
        if log_fd >= 0:
            loop: EventLoop = guest.machine.loop
            guest.machine.console.attach(FdOutput(loop, log_fd, on_broken=lambda error: None))
        status = _Run(guest, timeout_s, is_verbose).run(command)
        on_end(guest.machine)
        return status


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot write --console-log {path}: {reason}") from error
