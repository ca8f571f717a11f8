"""`voidbox ps`: the sandboxes that there are."""

from __future__ import annotations

import argparse
import time

from voidbox.cli import exit_status
from voidbox.cli.output import print_json, print_table, shown_size, shown_span
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import describe, open_store
from voidbox.sandbox.state.records import SandboxRecord

_EPILOG = """\
examples:
  voidbox ps
  voidbox ps --all --json
  voidbox rm $(voidbox ps --all --quiet)
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("ps", "List the sandboxes that run, oldest first.", _EPILOG)
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the names alone")
    parser.add_argument("--json", action="store_true", help="print them as JSON, a list")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    records = [r for r in store.list() if options.all or not r.state.is_final]
    if options.json:
        print_json([describe(store, record) for record in records])
    elif options.quiet:
        for record in records:
            print(record.name)
    else:
        print_table(
            ("NAME", "ID", "STATE", "FOR", "CPUS", "MEMORY", "IMAGE", "TEAM", "PORTS", "REASON"),
            [_row(record, time.time()) for record in records],
        )
    return exit_status.OK


def _row(record: SandboxRecord, now: float) -> list[str]:
    since = record.ended_at or record.started_at or record.created_at
    publish = record.net.get("publish") if record.net is not None else None
    ports = ",".join(map(str, publish)) if isinstance(publish, list) else ""
    return [
        record.name,
        record.id,
        record.state.value,
        shown_span(now - since),
        str(record.cpus),
        shown_size(record.memory_bytes),
        _image(record),
        record.team or "-",
        ports or "-",
        record.reason,
    ]


def _image(record: SandboxRecord) -> str:
    """What the image is called; "-" for voidbox's own."""
    root = record.root
    if root is not None and not root.get("image"):
        return "-"
    return record.image.rpartition("/")[2] if record.image.startswith("/") else record.image
