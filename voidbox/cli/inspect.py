"""`voidbox inspect`: all that is known of a sandbox."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json, shown, shown_size, shown_time
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, describe, open_store
from voidbox.errors import VoidboxError

_EPILOG = """\
examples:
  voidbox inspect builder
  voidbox inspect --json builder | jq '.[0].state'
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("inspect", "Show all that is known of sandboxes.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print it as JSON, a list")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    return inspect_all(
        options.names, lambda name: describe(store, store.read(name)), _show, options.json
    )


def inspect_all(
    names: Sequence[str],
    describe: Callable[[str], dict[str, Any]],
    show: Callable[[dict[str, Any]], object],
    as_json: bool,
) -> int:
    """Show what each name stands for; one that stands for nothing is complained about.

    Returns:
        The exit status.
    """
    found = []
    status = exit_status.OK
    for name in names:
        try:
            found.append(describe(name))
        except VoidboxError as error:
            complain(f"voidbox: {error}")
            status = exit_status.USAGE
    if as_json:
        print_json(found)
        return status
    for number, values in enumerate(found):
        if number:
            print()
        show(values)
    return status


def _show(values: dict[str, Any]) -> None:
    crash = values.pop("crash")
    width = max(map(len, values))
    for key, value in values.items():
        print(f"{key.ljust(width)}  {_shown(key, value)}")
    if crash:
        print("crash")
        for line in crash.split("\n"):
            print(f"  {shown(line)}")


def _shown(key: str, value: object) -> str:
    if key.endswith("_at"):
        return shown_time(value if isinstance(value, float | int) else None)
    if key.endswith("_bytes") and isinstance(value, int):
        return shown_size(value)
    if value is None or value == "":
        return "-"
    return shown(value if isinstance(value, str) else json.dumps(value))
