"""One command in a guest, joined to this process: streams, terminal, signals, exit status."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient, RemoteProcess
from voidbox.agent.protocol import BAD_REQUEST
from voidbox.cli import exit_status, streams
from voidbox.cli.complain import complain
from voidbox.errors import AgentError, ConfigError, SandboxTimeout, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.signals import SignalThread

SHELL = ("/bin/sh", "-l")
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The guest's answers to what the arguments ask for: no such user, no such folder.
_USAGE_CODES = frozenset((BAD_REQUEST, "ENOENT", "ENOTDIR", "EACCES"))


class Command(NamedTuple):
    """What to run in the guest.

    Attributes:
        argv: empty for a shell.
        wants_tty: True or False; None for what the streams suggest.
        wants_input: it reads our standard input; else it reads nothing.
        timeout_s: it is ended after so long.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    user: str | None
    wants_tty: bool | None
    wants_input: bool = True
    timeout_s: float | None = None


class Attachment:
    """A command's whole time, and all that may end it before. Use once.

    Args:
        abort: ends the connection, or the VM, so that run() ends too; called on any thread, more
            than once, must not wait for the guest.
        timeout_s: abort after so long.
        is_verbose: say what happens.

    Attributes:
        interruption: the exit status of whatever made us abort, or None.
    """

    def __init__(
        self,
        abort: Callable[[], None],
        timeout_s: float | None = None,
        is_verbose: bool = False,
    ) -> None:
        self.interruption: int | None = None
        self._abort = abort
        self._timeout_s = timeout_s
        self._is_verbose = is_verbose
        self._process: RemoteProcess | None = None
        self._is_tty = False
        self._signals_seen = 0

    def run(
        self,
        command: Command,
        connect: Callable[[ExitStack], AgentClient],
        explain: Callable[[VoidboxError], int],
    ) -> int:
        """Run the command; returns the exit status.

        Args:
            connect: returns a client; what is to be closed after the command goes on the stack.
            explain: says why there is no exit status of the command, and returns one of ours;
                called while what is on the stack is still open, unless it was us who aborted.
        Raises:
            ConfigError: the options do not fit, or output could not be written.
        """
        with ExitStack() as stack:
            # First of all: threads that exist before would get the signals.
            stack.enter_context(SignalThread((*_ENDING_SIGNALS, signal.SIGWINCH), self.on_signal))
            if self._timeout_s is not None:
                timer = threading.Timer(
                    min(self._timeout_s, threading.TIMEOUT_MAX),
                    lambda: self.interrupt(exit_status.TIMEOUT),
                )
                stack.callback(timer.cancel)
                timer.start()
            try:
                return self._serve(connect(stack), command)
            except OSError as error:  # from writing output: everything else is caught below us
                if isinstance(error, BrokenPipeError):
                    return exit_status.BROKEN_PIPE
                raise ConfigError(f"cannot write the output: {error.strerror}") from error
            except (AgentError, SandboxTimeout) as error:
                return explain(error) if self.interruption is None else self.interruption

    def _serve(self, client: AgentClient, command: Command) -> int:
        has_terminal = streams.is_open(0) and os.isatty(0) and os.isatty(1)
        self._is_tty = has_terminal if command.wants_tty is None else command.wants_tty
        if self._is_tty and not has_terminal:
            raise ConfigError("--tty: standard input and output are no terminal")
        has_input = command.wants_input and streams.is_open(0)
        process = client.exec(
            command.argv or SHELL,
            env=command.env,
            cwd=command.cwd,
            user=command.user,
            stdin=has_input,
            timeout_s=command.timeout_s,
            window_size=streams.window_size() if self._is_tty else None,
        )
        self._process = process
        with ExitStack() as stack:
            if has_input:
                if self._is_tty:
                    stack.enter_context(streams.raw_terminal())
                stack.enter_context(streams.InputThread(process))
            try:
                streams.copy_output(process)
            except BaseException:
                process.detach()
                self._abort()
                raise
        end = process.wait()
        self.log(f"ExecResponse received exit_code={end.status}")
        if end.error:
            complain(f"voidbox: {end.error}")
        if end.timed_out:
            complain(f"voidbox: the command ran for {command.timeout_s:g} s and was ended")
            return exit_status.TIMEOUT
        return end.status

    def log(self, line: str) -> None:
        """Say what happens, if that is wanted."""
        if self._is_verbose:
            complain(line)

    def on_signal(self, number: int) -> None:
        """Pass a signal on to the command; one that comes again, or too early, ends everything.

        So does one that we fail to pass on, by whatever mistake.
        """
        try:
            self._pass_on(number)
        except Exception:
            self.interrupt(exit_status.SIGNAL_BASE + number)
            raise

    def _pass_on(self, number: int) -> None:
        process = self._process
        if number == signal.SIGWINCH:
            if process is not None and self._is_tty:
                with suppress(OSError):  # the terminal is gone: SIGHUP follows
                    process.post_resize(*streams.window_size())
            return
        self._signals_seen += 1
        # Nothing here waits for the guest: a signal must end us though its agent hangs.
        if process is None or self._signals_seen > 1 or not process.post_signal(number):
            self.interrupt(exit_status.SIGNAL_BASE + number)

    def interrupt(self, status: int) -> None:
        """End everything now, with this exit status unless another came first."""
        if self.interruption is None:
            self.interruption = status
        self._abort()


def status_of(error: VoidboxError) -> int:
    """Return the exit status for a request that the guest did not do."""
    is_usage = isinstance(error, ConfigError)
    is_usage |= isinstance(error, RequestFailed) and error.code in _USAGE_CODES
    return exit_status.USAGE if is_usage else exit_status.AGENT
