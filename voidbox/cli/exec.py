"""`voidbox exec`: a command in a sandbox that runs."""

from __future__ import annotations

import argparse
from typing import NoReturn

from voidbox.cli.attach import Command
from voidbox.cli.in_sandbox import run
from voidbox.cli.parser import (
    add_command_options,
    make_parser,
    parse_environment,
    parse_optional_duration,
)
from voidbox.cli.sandboxes import open_store

_EPILOG = """\
Output, signals and the exit status of the COMMAND are this one's. A signal that comes a second time
ends it in any case. It runs as the sandbox's user, in its workdir, with its variables.

exit status, unless it is the COMMAND's (126: not executable, 127: not found):
  2    bad arguments, no such sandbox, or one that has ended
  122  the guest's agent did not answer, or was lost
  124  --timeout ran out
  128+n  ended by signal n

examples:
  voidbox exec builder -- make -j2
  voidbox exec -it builder -- python3
  voidbox exec -e DEBUG=1 -w /tmp -u root builder -- id
  tar c project | voidbox exec -i builder -- tar x
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("exec", "Run a command in a sandbox.", _EPILOG)
    parser.usage = "voidbox exec [OPTION …] NAME [--] COMMAND [ARGUMENT …]"
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="it reads this standard input"
    )
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    add_command_options(parser)
    parser.add_argument("--timeout", metavar="TIME", help="end the COMMAND after 90, 90s, 10m, 2h")
    parser.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options, command = parse(argv)
    return run(open_store(), options.name, command, options.verbose)


def parse(argv: list[str]) -> tuple[argparse.Namespace, Command]:
    """Return the options, and the command that they are about."""
    parser = make_options()
    options = parser.parse_args(argv)
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        _refuse(parser, options.name)
    command = Command(
        argv=tuple(argv),
        env=parse_environment(options.env),
        cwd=options.workdir,
        user=options.user,
        wants_tty=options.tty,
        wants_input=options.interactive,
        timeout_s=parse_optional_duration(options.timeout, "--timeout"),
    )
    return options, command


def _refuse(parser: argparse.ArgumentParser, name: str) -> NoReturn:
    parser.error(f"no COMMAND: voidbox exec {name} -- COMMAND, or voidbox shell {name}")
