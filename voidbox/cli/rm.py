"""`voidbox rm`: remove sandboxes, with their logs."""

from __future__ import annotations

import argparse
import os

from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, for_each, open_store
from voidbox.errors import ConfigError
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_EPILOG = """\
examples:
  voidbox rm builder
  voidbox rm --force builder tester
  voidbox rm $(voidbox ps --all --quiet)
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("rm", "Remove sandboxes that have ended, with their logs.", _EPILOG)
    parser.add_argument(
        "-f", "--force", action="store_true", help="end first what runs or is suspended"
    )
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    steps = [_remove]
    if options.force:
        from voidbox.cli.ending import begin_kill, finish_kill

        steps = [begin_kill, finish_kill, _remove]
    return for_each(open_store(), options.names, options.json, *steps)


def _remove(store: Store, record: SandboxRecord) -> None:
    # One that removes itself may have done so just now.
    if os.path.isdir(store.path(record.id)):
        if store.read(record.id).state is State.SUSPENDED:
            raise ConfigError(
                f"{record.name} is suspended, and all that it was would be gone: voidbox resume "
                f"{record.name} wakes it, voidbox rm --force {record.name} removes it"
            )
        store.remove(record.id)
