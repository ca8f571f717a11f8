"""`voidbox suspend`: bring sandboxes to the disk, where they need no memory."""

from __future__ import annotations

import argparse

from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, check_alive, control, for_each, open_store
from voidbox.cli.snapshot import SNAPSHOT_S
from voidbox.errors import HostError
from voidbox.sandbox.launch import wait_ended
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_END_S = 30.0
_EPILOG = """\
Processes, files and ports are as they were when `voidbox resume` wakes them, with the right clock;
connections have ended. Their time limits stand still. `voidbox stop` ends a suspended one.

examples:
  voidbox suspend builder
  voidbox resume builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("suspend", "Bring sandboxes to the disk, to be woken later.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    return for_each(open_store(), options.names, options.json, _suspend)


def _suspend(store: Store, record: SandboxRecord) -> None:
    check_alive(store, record)
    control(store, record, SNAPSHOT_S).request("suspend")
    if not wait_ended(store, record.id, _END_S):
        raise HostError(f"{record.name} is saved, but its process does not end")
