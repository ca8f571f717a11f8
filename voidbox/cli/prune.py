"""`voidbox prune`: remove all sandboxes that have ended."""

from __future__ import annotations

import argparse
import os

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json, shown_size
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import open_store
from voidbox.errors import VoidboxError

_BLOCK_BYTES = 512  # stat(2), st_blocks
_EPILOG = """\
Crash records and logs go with them: `voidbox prune --dry-run` shows which.

examples:
  voidbox prune --dry-run
  voidbox prune
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("prune", "Remove all sandboxes that have ended, with their logs.", _EPILOG)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--json", action="store_true", help="print what was removed as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    removed: list[str] = []
    total_bytes = 0
    status = exit_status.OK
    for record in store.list():
        if not record.state.is_final:
            continue
        size = _folder_bytes(store.path(record.id))
        try:
            if not options.dry_run:
                store.remove(record.id)
        except VoidboxError as error:
            complain(f"voidbox: {error}")
            status = exit_status.USAGE
            continue
        removed.append(record.name)
        total_bytes += size
        if not options.json:
            print(record.name)
    if options.json:
        print_json({"removed": removed, "bytes": total_bytes, "dry_run": options.dry_run})
    elif removed:
        complain(f"{'would free' if options.dry_run else 'freed'} {shown_size(total_bytes)}")
    return status


def _folder_bytes(path: str) -> int:
    """Return what a folder's files take on the disk; nothing of ours lies deeper.

    Not how long they are: a guest's disk has holes.
    """
    try:
        with os.scandir(path) as entries:
            blocks = sum(entry.stat(follow_symlinks=False).st_blocks for entry in entries)
            return blocks * _BLOCK_BYTES
    except OSError:  # somebody else has removed it
        return 0
