"""`voidbox stop`: end sandboxes politely."""

from __future__ import annotations

import argparse

from voidbox.cli.ending import begin_stop, finish_stop
from voidbox.cli.parser import make_parser, parse_duration
from voidbox.cli.sandboxes import add_names, for_each, open_store
from voidbox.errors import HostError
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_EPILOG = """\
A workspace that was copied in is copied back first; if that fails, the sandbox goes on, and kill
ends it without. Then the guest's agent is asked to shut down. If the guest still runs after
--timeout, its power button is pressed, and at last it is killed. What has ended is no error.

examples:
  voidbox stop builder
  voidbox stop --timeout 2 $(voidbox ps --quiet)
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("stop", "Shut sandboxes down; returns when they have ended.", _EPILOG)
    parser.add_argument(
        "-t", "--timeout", default="10", metavar="TIME", help="for the shutdown, 10s"
    )
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    timeout_s = parse_duration(options.timeout, "--timeout")
    return for_each(
        open_store(),
        options.names,
        options.json,
        lambda store, record: _begin(store, record, timeout_s),
        lambda store, record: finish_stop(store, record, timeout_s),
    )


def _begin(store: Store, record: SandboxRecord, timeout_s: float) -> None:
    if record.workspace is not None and not record.state.is_final and store.is_alive(record.id):
        from voidbox.cli.workspace_back import copy_back, is_copied

        if is_copied(record):
            result = copy_back(store, record, is_verbose=False)
            if result.failed:
                raise HostError(
                    f"{record.name}: not all was copied back to {record.workspace}: it goes on"
                )
    begin_stop(store, record, timeout_s)
