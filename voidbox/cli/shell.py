"""`voidbox shell`: a shell in a sandbox that runs."""

from __future__ import annotations

import argparse

from voidbox.cli.attach import Command
from voidbox.cli.in_sandbox import run
from voidbox.cli.parser import add_command_options, make_parser, parse_environment
from voidbox.cli.sandboxes import open_store

_EPILOG = """\
On a terminal it is an interactive login shell; otherwise it reads its commands from standard input.
Its exit status is this one's.

examples:
  voidbox shell builder
  voidbox shell -u root builder
  echo 'uname -r' | voidbox shell builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("shell", "Open a shell in a sandbox.", _EPILOG)
    for letter, option in (("-i", "--interactive"), ("-t", "--tty")):
        parser.add_argument(letter, option, action="store_true", help="done anyway, on a terminal")
    add_command_options(parser)
    parser.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    command = Command(
        (), parse_environment(options.env), options.workdir, options.user, wants_tty=None
    )
    return run(open_store(), options.name, command, options.verbose)
