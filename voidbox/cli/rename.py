"""`voidbox rename`: give a sandbox another name."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import describe, open_store

_EPILOG = """\
Its ID stays. A name has up to 63 letters, digits, '_', '-' and '.'.

examples:
  voidbox rename quiet-otter-3fa2 builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("rename", "Give a sandbox another name.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the sandbox as JSON")
    parser.add_argument("name", metavar="NAME", help="its name or ID")
    parser.add_argument("new_name", metavar="NEWNAME", help="which no other sandbox has")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    record = store.rename(store.read(options.name).id, options.new_name)
    if options.json:
        print_json(describe(store, record))
    else:
        print(record.name)
    return exit_status.OK
