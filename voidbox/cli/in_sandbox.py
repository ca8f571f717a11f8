"""A command in a sandbox that another process runs, joined to this one's streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from voidbox.agent import connect as agent_connect
from voidbox.agent.client import AgentClient
from voidbox.agent.endpoint import Endpoint
from voidbox.cli import exit_status
from voidbox.cli.attach import Attachment, Command, status_of
from voidbox.cli.complain import complain
from voidbox.cli.sandboxes import check_alive, check_answers
from voidbox.errors import AgentError, VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.endpoint import StoredEndpoint, first_answer_s
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_CONNECT_S = 20.0  # to a guest that has booted


def run(store: Store, key: str, command: Command, is_verbose: bool) -> int:
    """Run a command in a sandbox; returns its exit status, or one of ours.

    Raises:
        ConfigError: there is no such sandbox, or the options do not fit.
    """
    record = store.read(key)
    if record.state.is_final:
        check_ended(store, record)
    check_answers(record)
    return attach(target_of(store, record), command, is_verbose)


def check_ended(store: Store, record: SandboxRecord) -> None:
    """Refuse a sandbox that has ended, with its console's last lines if it crashed.

    Raises:
        AgentError: that.
    """
    if record.state is State.CRASHED:
        story = StoredEndpoint(store, record).explain_end()
        raise AgentError(f"{record.name} has crashed: {story}")
    check_alive(store, record)


class Target(NamedTuple):
    """A sandbox, as far as a command in it goes.

    Attributes:
        secret: of its agent.
        envs, workdir, user: of commands that name none.
        connect_s: how long it may take to find its agent.
    """

    endpoint: Endpoint
    secret: bytes
    envs: Mapping[str, str]
    workdir: str | None
    user: str | None
    connect_s: float = _CONNECT_S


def target_of(store: Store, record: SandboxRecord) -> Target:
    """Return a sandbox of this machine."""
    return Target(
        StoredEndpoint(store, record),
        store.secret(record.id),
        store.envs(record),
        record.workdir,
        record.user,
        first_answer_s(record) if record.state is State.CREATING else _CONNECT_S,
    )


def explain(error: VoidboxError) -> int:
    """Say why there is no exit status of the command, and return one of ours."""
    complain(f"voidbox: {error}")
    return status_of(error)


def attach(
    target: Target,
    command: Command,
    is_verbose: bool = False,
    explain: Callable[[VoidboxError], int] = explain,
) -> int:
    """Run a command in a sandbox that runs; see run().

    Args:
        explain: says why there is no exit status of the command, and returns one of ours.
    """
    endpoint = _UntilGivenUp(target.endpoint)
    clients: list[AgentClient] = []

    def abort() -> None:
        endpoint.is_given_up = True
        if not clients:
            # Still connecting, which may take its time: nothing here needs to be put in order.
            os._exit(attachment.interruption or exit_status.INTERNAL)
        clients[0].close()

    attachment = Attachment(abort, is_verbose=is_verbose)

    def connect(stack: ExitStack) -> AgentClient:
        client = agent_connect.connect(endpoint, target.secret, target.connect_s, attachment.log)
        clients.append(stack.enter_context(client))
        return client

    return attachment.run(_completed(command, target), connect, explain)


def _completed(command: Command, target: Target) -> Command:
    return command._replace(
        env={**target.envs, **command.env},
        cwd=command.cwd if command.cwd is not None else target.workdir,
        user=command.user if command.user is not None else target.user,
    )


def start(target: Target, command: Command) -> None:
    """Start a command in the background of a sandbox that runs.

    Raises:
        NotStarted: it could not be executed.
        AgentError: the guest or its agent is gone.
    """
    command = _completed(command, target)
    with agent_connect.connect(target.endpoint, target.secret, target.connect_s) as client:
        process = client.exec(
            command.argv,
            env=command.env,
            cwd=command.cwd,
            user=command.user,
            background=True,
        )
        if not process.pid:
            raise AgentError(f"{command.argv[0]} was not started")


class _UntilGivenUp:
    """An endpoint that has nothing to wait for or to explain once the user has given up."""

    def __init__(self, inner: Endpoint) -> None:
        self.cid = inner.cid
        self.is_given_up = False
        self.connect = inner.connect
        self.connect_serial = inner.connect_serial
        self.has_ended = inner.has_ended
        self._explain_end = inner.explain_end

    def explain_end(self) -> str:
        """See Endpoint."""
        return "" if self.is_given_up else self._explain_end()
