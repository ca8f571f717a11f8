"""`voidbox --remote URL VERB`: the verbs, for the sandboxes of a server.

Options, output and exit statuses are those of the verbs themselves. A verb or an option that a
server does not carry is refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from voidbox.agent.aio import AsyncAgent
from voidbox.cli import (
    cp,
    exec,
    exit_status,
    inspect,
    kill,
    logs,
    pause,
    ps,
    resume,
    rm,
    shell,
    stop,
    suspend,
)
from voidbox.cli.attach import Command
from voidbox.cli.complain import complain
from voidbox.cli.in_sandbox import Target, attach
from voidbox.cli.output import print_json, print_table, shown_size, shown_span
from voidbox.cli.parser import parse_duration, parse_environment
from voidbox.cli.sandboxes import for_each
from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple
from voidbox.remote.address import REMOTE
from voidbox.remote.endpoint import RemoteEndpoint
from voidbox.remote.server import Server, sandbox_path
from voidbox.sandbox.session import Session
from voidbox.sdk.info import SandboxInfo
from voidbox.sdk.remote import info_of, server_of

_SUSPEND_S, _STOP_SLACK_S = 310.0, 30.0
_ENDED = ("stopped", "crashed")


class Found(NamedTuple):
    """A sandbox of a server."""

    id: str
    name: str
    info: SandboxInfo


class Sandboxes:
    """Those of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def read(self, key: str) -> Found:
        """Return a sandbox by its name, ID, or an ID's beginning.

        Raises:
            ConfigError: there is none.
        """
        info = info_of(self.server.request("GET", sandbox_path(key))["info"])
        return Found(info.sandbox_id, info.name, info)

    def ask(
        self, found: Found, rest: str, fields: Mapping[str, Any] | None = None, limit_s: float = 60
    ) -> Any:
        """Ask for something of a sandbox."""
        return self.server.request("POST", sandbox_path(found.id, rest), fields or {}, limit_s)

    def target(self, key: str) -> Target:
        """Return a sandbox as a command in it needs it."""
        fields = {"auto_resume": False}
        held = self.server.request("POST", sandbox_path(key, "/connect"), fields)
        return target_of(self.server, held)


def target_of(server: Server, held: Mapping[str, Any]) -> Target:
    """Return what a server answers create and connect with.

    Raises:
        ConfigError: it stands still.
    """
    info = info_of(held["info"])
    if info.state in ("suspended", "paused"):
        raise ConfigError(f"{info.name} is {info.state}: voidbox resume {info.name} lets it go on")
    endpoint = RemoteEndpoint(server, info.sandbox_id, info.name)
    secret = bytes.fromhex(held["secret"])
    return Target(endpoint, secret, held["envs"], info.workdir, info.user)


def describe(info: SandboxInfo) -> dict[str, Any]:
    """Return a sandbox as --json shows it."""
    values = info._asdict()
    return {"id": values.pop("sandbox_id"), **values}


def main(argv: list[str]) -> int:
    """Run a verb; returns its exit status."""
    verb, arguments = argv[0], argv[1:]
    run = _VERBS.get(verb)
    if run is None:
        raise ConfigError(
            f"{verb} is not carried by a server: it works on the server's own machine, without "
            f"--remote and {REMOTE}"
        )
    return run(arguments)


def _sandboxes() -> Sandboxes:
    return Sandboxes(server_of(None))


def _ps(argv: list[str]) -> int:
    options = ps.make_options().parse_args(argv)
    answer = server_of(None).request("GET", "/sandboxes")
    found = [info_of(values) for values in answer["sandboxes"]]
    infos = [info for info in found if options.all or info.state not in _ENDED]
    if options.json:
        print_json([describe(info) for info in infos])
    elif options.quiet:
        for info in infos:
            print(info.name)
    else:
        now = time.time()
        print_table(
            ("NAME", "ID", "STATE", "FOR", "CPUS", "MEMORY", "IMAGE"),
            [
                [info.name, info.sandbox_id, info.state,
                 shown_span(now - (info.started_at or info.created_at)), str(info.cpus),
                 shown_size(info.memory_bytes), info.image]
                for info in infos
            ],
        )  # fmt: skip
    return exit_status.OK


def _inspect(argv: list[str]) -> int:
    options = inspect.make_options().parse_args(argv)
    sandboxes = _sandboxes()
    print_json([describe(sandboxes.read(name).info) for name in options.names])
    return exit_status.OK


def _exec(argv: list[str]) -> int:
    options, command = exec.parse(argv)
    return attach(_sandboxes().target(options.name), command, options.verbose)


def _shell(argv: list[str]) -> int:
    options = shell.make_options().parse_args(argv)
    envs = parse_environment(options.env)
    command = Command((), envs, options.workdir, options.user, wants_tty=None)
    return attach(_sandboxes().target(options.name), command, options.verbose)


def _cp(argv: list[str]) -> int:
    return cp.copy(cp.make_options().parse_args(argv), _open_session)


def _open_session(name: str, options: argparse.Namespace) -> Session:
    target = _sandboxes().target(name)
    log: Callable[[str], None] = complain if options.verbose else lambda line: None
    agent = AsyncAgent(target.endpoint, target.secret, log=log)
    return Session(agent, name, None, target.workdir, options.user or target.user)


def _logs(argv: list[str]) -> int:
    options = logs.make_options().parse_args(argv)
    if options.tail is not None:
        raise ConfigError("logs --tail is not carried by a server: voidbox … logs NAME | tail")
    source = "voidbox" if options.voidbox else "http" if options.http else "console"
    query = {"source": source, "follow": "true" if options.follow else "false"}
    if sys.stdout is None:
        return exit_status.OK
    write = logs.writer()
    for piece in server_of(None).lines(sandbox_path(options.name, "/logs"), query):
        write(piece)
    return exit_status.OK


def _each(make: Callable[[], argparse.ArgumentParser], *steps: Any) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        options = make().parse_args(argv)
        return for_each(_sandboxes(), options.names, options.json, *steps)

    return run


def _pause(sandboxes: Sandboxes, found: Found) -> None:
    sandboxes.ask(found, "/control/pause")


def _resume(sandboxes: Sandboxes, found: Found) -> None:
    sandboxes.ask(found, "/connect", {"auto_resume": True}, _SUSPEND_S)


def _suspend(sandboxes: Sandboxes, found: Found) -> None:
    sandboxes.ask(found, "/suspend", {}, _SUSPEND_S)


def _kill(sandboxes: Sandboxes, found: Found) -> None:
    sandboxes.server.request("DELETE", sandbox_path(found.id))


def _stop(argv: list[str]) -> int:
    options = stop.make_options().parse_args(argv)
    timeout_s = parse_duration(options.timeout, "--timeout")

    def end(sandboxes: Sandboxes, found: Found) -> None:
        sandboxes.ask(found, "/stop", {"timeout": timeout_s}, timeout_s + _STOP_SLACK_S)

    return for_each(_sandboxes(), options.names, options.json, end)


def _rm(argv: list[str]) -> int:
    """A server keeps nothing of what has ended: what there is runs, or is suspended."""
    options = rm.make_options().parse_args(argv)

    def remove(sandboxes: Sandboxes, found: Found) -> None:
        if not options.force:
            raise ConfigError(f"{found.name} is {found.info.state}: rm --force ends it first")
        _kill(sandboxes, found)

    return for_each(_sandboxes(), options.names, options.json, remove)


def _run(argv: list[str]) -> int:
    from voidbox.cli import afar_run

    return afar_run.main(argv, server_of(None))


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "exec": _exec,
    "shell": _shell,
    "cp": _cp,
    "ps": _ps,
    "inspect": _inspect,
    "logs": _logs,
    "stop": _stop,
    "kill": _each(kill.make_options, _kill),
    "pause": _each(pause.make_options, _pause),
    "suspend": _each(suspend.make_options, _suspend),
    "resume": _each(resume.make_options, _resume),
    "rm": _rm,
}
