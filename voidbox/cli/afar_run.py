"""`voidbox --remote URL run`: a sandbox of a server, for one command or to stay."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from voidbox.cli import exit_status, run
from voidbox.cli.afar import describe, target_of
from voidbox.cli.attach import Command
from voidbox.cli.in_sandbox import attach, start
from voidbox.cli.kept_options import parse_metadata, parse_secrets
from voidbox.cli.output import print_json
from voidbox.cli.parser import parse_environment, parse_number, parse_optional_duration
from voidbox.errors import AgentError, ConfigError
from voidbox.remote.server import Missing, Server, sandbox_path
from voidbox.sdk.remote import info_of

_START_S = 300.0
# Options that a server carries, or that are this command's own. All others are refused.
_CARRIED = frozenset(
    ("image", "init", "memory", "cpus", "env", "secret_env", "metadata", "timeout", "idle_timeout",
     "name", "workdir", "user", "allow", "deny", "net", "snapshot", "cold", "detach", "json", "rm",
     "verbose", "tty", "interactive")
)  # fmt: skip


def main(argv: list[str], server: Server) -> int:
    """Run the command; returns its exit status.

    Raises:
        VoidboxError: bad input, or the server refuses it.
    """
    argv, words = run.split(argv)
    parser = run.make_options()
    options = parser.parse_args(argv)
    for name, value in vars(options).items():
        if name not in _CARRIED and value != parser.get_default(name):
            raise ConfigError(f"run --{name.replace('_', '-')} is not carried by a server")
    if options.detach and options.tty:
        raise ConfigError("--tty does not go with --detach: voidbox shell NAME gives a terminal")
    given = _fields(options).items()
    fields = {name: value for name, value in given if value not in (None, {}, [])}
    held = server.request("POST", "/sandboxes", fields, _START_S)
    target, path = target_of(server, held), sandbox_path(held["info"]["sandbox_id"])
    command = Command(words, {}, None, None, options.tty)
    is_left = False
    try:
        if not options.detach:
            return attach(target, command, options.verbose)
        if words:
            start(target, command)
        is_left = True
    except AgentError as error:
        raise ConfigError(str(error)) from error
    finally:
        if not is_left:
            with suppress(Missing):  # it has ended by itself
                server.request("DELETE", path)
    info = info_of(held["info"])
    if options.json:
        print_json(describe(info))
    else:
        print(info.name)
    return exit_status.OK


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    is_usual = {"memory": "512M", "cpus": "1"}
    size = {
        name: getattr(options, name)
        for name, usual in is_usual.items()
        if getattr(options, name) != usual
    }
    if "cpus" in size:
        size["cpus"] = parse_number(size["cpus"], "--cpus")
    return {
        **size,
        "image": options.image,
        "snapshot": options.snapshot,
        "init": options.init,
        "envs": parse_environment(options.env),
        "secret_envs": parse_secrets(options.secret_env),
        "metadata": parse_metadata(options.metadata),
        "timeout": parse_optional_duration(options.timeout, "--timeout"),
        "idle_timeout": parse_optional_duration(options.idle_timeout, "--idle-timeout"),
        "name": options.name,
        "workdir": options.workdir,
        "user": options.user,
        "allow": options.allow,
        "deny": options.deny,
        "block_network": True if options.net == "off" else None,
        "cold": True if options.cold else None,
    }
