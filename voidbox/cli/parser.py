"""What all verbs' argument parsers share."""

from __future__ import annotations

import argparse
import os
import re

from voidbox.errors import ConfigError

_WIDTH = 100
_INTEGER, _DECIMAL = re.compile("[0-9]{1,18}"), re.compile(r"[0-9]{1,18}(\.[0-9]+)?")


def make_parser(verb: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `voidbox VERB`: texts as they are written, no abbreviated options."""
    return argparse.ArgumentParser(
        prog=f"voidbox {verb}",
        description=description,
        epilog=epilog,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_command_options(parser: argparse.ArgumentParser) -> None:
    """Add what any command in a guest may be given."""
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for the COMMAND; NAME alone takes it from here",
    )
    parser.add_argument("-w", "--workdir", metavar="PATH", help="where it runs, /workspace")
    parser.add_argument("-u", "--user", metavar="NAME", help="whom it runs as, sandbox")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what happens, on stderr")


def parse_number(text: str, option: str, kind: type[int] | type[float]) -> float:
    """Return an option's number, which is above 0.

    Raises:
        ConfigError: it is none.
    """
    pattern = _INTEGER if kind is int else _DECIMAL
    if not pattern.fullmatch(text) or not kind(text) > 0:
        raise ConfigError(f"{option} {text}: give a positive number")
    return kind(text)


def parse_environment(words: list[str]) -> dict[str, str]:
    """Return the variables of NAME=VALUE words; NAME alone takes its value from here, if any.

    Raises:
        ConfigError: a word has no name.
    """
    environment = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise ConfigError(f"--env {word}: give NAME=VALUE")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width: asking for the terminal's imports shutil and all compressors with it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)
