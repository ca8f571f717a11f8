"""`voidbox resume`: let paused guests go on, and wake suspended ones."""

from __future__ import annotations

import argparse

from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, check_alive, control, for_each, open_store
from voidbox.sandbox.state.lifecycle import State
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_EPILOG = """\
The clock of a paused guest has stood still meanwhile; that of a suspended one is set.

examples:
  voidbox resume builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("resume", "Let guests that are paused or suspended go on.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    return for_each(open_store(), options.names, options.json, _resume)


def _resume(store: Store, record: SandboxRecord) -> None:
    if record.state in (State.SUSPENDED, State.CREATING):
        from voidbox.sandbox import launch

        if launch.is_asleep(store, record):
            launch.wake(store, record.id)
            return
    check_alive(store, record)
    control(store, record).request("resume")
