"""`voidbox pause`: halt the guests of sandboxes."""

from __future__ import annotations

import argparse

from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, check_alive, control, for_each, open_store
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_EPILOG = """\
Their processors stand still, their memory stays. Time limits go on.

examples:
  voidbox pause builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("pause", "Halt the guests of sandboxes.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    return for_each(open_store(), options.names, options.json, _pause)


def _pause(store: Store, record: SandboxRecord) -> None:
    check_alive(store, record)
    control(store, record).request("pause")
