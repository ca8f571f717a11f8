"""What all verbs' argument parsers share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from voidbox.cli import exit_status
from voidbox.errors import ConfigError

_WIDTH = 100
_INTEGER = re.compile("[0-9]{1,18}")
_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)"
_PLAIN, _PARTS, _EACH = (
    re.compile(pattern) for pattern in (r"[0-9]{1,12}(?:\.[0-9]{1,9})?", f"(?:{_PART})+", _PART)
)
_LIKENESS = 0.6  # of a word that a user may have meant

# Says what is wrong, given all words and those that nobody expects; None: nothing in particular.
Explain = Callable[[Sequence[str], Sequence[str]], str | None]


class Parser(argparse.ArgumentParser):
    """Says in one line which word is wrong, and which one may have been meant.

    Attributes:
        explain: what a verb knows of wrong words besides.
    """

    explain: Explain | None = None
    _words: Sequence[str] = ()

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the options; ends the program where the words are none."""
        self._words = args
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(self._explained(unknown) or self._unexpected(unknown[0]))
        return options

    def error(self, message: str) -> NoReturn:
        """End the program: something is wrong that argparse has a word for."""
        said = self._explained(())
        if said is not None:
            self._refuse(said)
        super().error(message)

    def _explained(self, unknown: Sequence[str]) -> str | None:
        return self.explain(self._words, unknown) if self.explain is not None else None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = "/".join(action.option_strings) or str(action.metavar or action.dest)
            what = f"{name} {value}" if action.option_strings else str(value)
            self._refuse(
                f"there is no {what}: {_meant(str(value), known, 'choose ' + _any(known))}"
            )

    def _unexpected(self, word: str) -> str:
        option = word.partition("=")[0]
        if not option.startswith("-") or option == "-":
            return f"nobody expects {word}: {self.prog} --help tells what it takes"
        otherwise = f"{self.prog} --help lists them"
        return f"there is no option {option}: {_meant(option, self._options(), otherwise)}"

    def _options(self) -> list[str]:
        """Return all options, those of its actions too."""
        found = [word for action in self._actions for word in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser._options()
        return [word for word in found if word.startswith("--")]

    def _refuse(self, message: str) -> NoReturn:
        self.exit(exit_status.USAGE, f"{self.prog}: {message}\n")


def _meant(word: str, known: Sequence[str], otherwise: str) -> str:
    import difflib  # only after a mistake

    found = difflib.get_close_matches(word, known, 1, _LIKENESS)
    return f"do you mean {found[0]}?" if found else otherwise


def _any(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def make_parser(verb: str, description: str, epilog: str | None = None) -> Parser:
    """Return the parser of `voidbox VERB`: texts as they are written, no abbreviated options."""
    return Parser(
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


def parse_number(text: str, option: str) -> int:
    """Return an option's number, which is above 0.

    Raises:
        ConfigError: it is none.
    """
    if not _INTEGER.fullmatch(text) or not int(text) > 0:
        raise ConfigError(f"{option} {text}: give a positive number")
    return int(text)


def parse_duration(text: str, option: str) -> float:
    """Return an option's time in seconds, above 0: 90, 90s, 1.5h, 1h30m, 500ms.

    Raises:
        ConfigError: it is none.
    """
    seconds = 0.0
    if _PLAIN.fullmatch(text):
        seconds = float(text)
    elif _PARTS.fullmatch(text):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _EACH.findall(text))
    if seconds <= 0:
        raise ConfigError(f"{option} {text}: give a time above 0, such as 90, 90s, 10m or 2h")
    return seconds


def parse_optional_duration(text: str | None, option: str) -> float | None:
    """Return an option's time in seconds, None if it is not given; see parse_duration."""
    return None if text is None else parse_duration(text, option)


def parse_environment(words: list[str], option: str = "--env") -> dict[str, str]:
    """Return the variables of NAME=VALUE words; NAME alone takes its value from here, if any.

    Raises:
        ConfigError: a word has no name.
    """
    environment = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise ConfigError(f"{option} {word}: give NAME=VALUE")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Of a fixed width: asking for the terminal's imports shutil and all compressors with it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)
