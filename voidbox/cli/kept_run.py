"""`voidbox run --detach`, `--name` and so on: a sandbox that other commands see."""

from __future__ import annotations

import argparse
import math
import os
import time
from contextlib import suppress

from voidbox.agent.call import NotStarted
from voidbox.cli import exit_status, root_options
from voidbox.cli.complain import complain
from voidbox.cli.kept_options import guard, make_record, make_restored, parse_secrets
from voidbox.cli.output import print_json
from voidbox.cli.sandboxes import describe, open_store
from voidbox.errors import AgentError, ConfigError, VoidboxError
from voidbox.sandbox.launch import launch
from voidbox.sandbox.process.stopping import AGENT_S
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store
from voidbox.sandbox.volumes.spec import writes_named


def main(options: argparse.Namespace, command: tuple[str, ...], cmdline: str) -> int:
    """Make the sandbox; run the command in it, or leave it running.

    Raises:
        VoidboxError: bad input or an unusable host.
    """
    choice = root_options.choose(options) if options.snapshot is None else None
    if choice is not None:
        command = choice.command(command, options.entrypoint)
    if options.json and not options.detach:
        raise ConfigError("--json shows a sandbox that stays: it goes with --detach")
    with open_store() as store:
        if choice is None:
            wanted = make_restored(options, store)
        else:
            wanted = make_record(options, cmdline, choice)
        wanted, values = guard(wanted, options)
        record = store.create(wanted, parse_secrets(options.secret_env))
        if not options.detach:
            return _run_attached(store, record, options, command, values)
        _launch(store, record, None, values)
        _copy_in(store, record)
        try:
            if command:
                _start(store, record, command)
        except NotStarted as error:
            complain(f"voidbox: {error}")
            return error.status
        record = store.read(record.id)
        if options.json:
            print_json(describe(store, record))
        else:
            print(record.name)
    return exit_status.OK


def _launch(
    store: Store, record: SandboxRecord, parent_fd: int | None, secrets: dict[str, str]
) -> None:
    """Start its process; one that was given up before it ran leaves nothing behind."""
    try:
        launch(store, record, parent_fd, secrets=secrets)
    except KeyboardInterrupt:
        _discard(store, record)
        raise


def _copy_in(store: Store, record: SandboxRecord) -> None:
    """Copy the workspace in; a sandbox without it is of no use."""
    if record.workspace is None:
        return
    from voidbox.cli.workspace_back import copy_in

    try:
        copy_in(store, store.read(record.id))
    except BaseException:
        _discard(store, record)
        raise


def _copy_back(store: Store, record: SandboxRecord, is_verbose: bool, status: int) -> int:
    """Copy the workspace back, or say why not; returns the exit status."""
    if record.workspace is None:
        return status
    from voidbox.cli.workspace_back import complain_failed, copy_back, is_copied

    if not is_copied(record):
        return status
    try:
        has_failed = bool(copy_back(store, record, is_verbose).failed)
    except VoidboxError as error:
        complain_failed(record.workspace, error)
        has_failed = True
    return exit_status.AGENT if has_failed and status == exit_status.OK else status


def _discard(store: Store, record: SandboxRecord) -> None:
    from voidbox.cli.ending import begin_kill, finish_kill

    with suppress(ConfigError):  # it may have removed itself
        record = store.read(record.id)
        begin_kill(store, record)
        finish_kill(store, record)
        store.remove(record.id)


def _start(store: Store, record: SandboxRecord, argv: tuple[str, ...]) -> None:
    """Start the command; a sandbox that cannot run it is of no use."""
    from voidbox.cli import in_sandbox
    from voidbox.cli.attach import Command

    try:
        target = in_sandbox.target_of(store, record)
        in_sandbox.start(target, Command(argv, {}, None, None, wants_tty=False))
    except AgentError:
        _discard(store, record)
        raise


def _run_attached(
    store: Store,
    record: SandboxRecord,
    options: argparse.Namespace,
    argv: tuple[str, ...],
    secrets: dict[str, str],
) -> int:
    """Run the command in the sandbox, which ends with it, and with this process."""
    from voidbox.cli import in_sandbox
    from voidbox.cli.attach import Command, status_of
    from voidbox.cli.ending import begin_kill, begin_stop, finish_kill, finish_stop

    parent_fd, our_end = os.pipe()
    started = time.monotonic()

    def explain(error: VoidboxError) -> int:
        status = status_of(error)
        if status == exit_status.AGENT:
            is_over = time.monotonic() - started >= (record.timeout_s or math.inf)
            status = exit_status.TIMEOUT if is_over else _status_of_end(store, record)
        if status != exit_status.OK:
            complain(f"voidbox: {error}")
        return status

    try:
        _launch(store, record, parent_fd, secrets)
        record = store.read(record.id)
        _copy_in(store, record)
        command = Command(argv, {}, None, None, options.tty)
        try:
            target = in_sandbox.target_of(store, record)
            status = in_sandbox.attach(target, command, options.verbose, explain)
            return _copy_back(store, record, options.verbose, status)
        finally:
            if writes_named(record.volumes):  # a kill would be a power cut for their file systems
                begin_stop(store, record, AGENT_S)
                finish_stop(store, record, AGENT_S)
            begin_kill(store, record)
            finish_kill(store, record)
    finally:
        os.close(our_end)
        os.close(parent_fd)


def _status_of_end(store: Store, record: SandboxRecord) -> int:
    """Return the status that says why the agent was lost; its own where nobody knows."""
    with suppress(ConfigError):  # it may have removed itself
        return exit_status.OF_END.get(store.read(record.id).end, exit_status.AGENT)
    return exit_status.AGENT
