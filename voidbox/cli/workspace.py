"""`voidbox workspace pull`: bring what a sandbox changed in its workspace back to the host."""

from __future__ import annotations

import argparse
import re

from voidbox.cli import exit_status
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import find_running, open_store
from voidbox.cli.workspace_back import copy_back
from voidbox.errors import ConfigError

_EPILOG = """\
Only what the sandbox changed since it was copied in, or since the last pull, is copied, and what it
deleted is deleted. What was changed on the host as well stays as it is, and the sandbox's version
is put beside it as NAME.voidbox-conflict. `voidbox stop` does the same before the end.

examples:
  voidbox run --detach --name builder --workspace project
  voidbox workspace pull builder
  voidbox workspace pull --json builder
"""


_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([KMGT]?)")
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_limit(text: str) -> int:
    """Parse 500K, 8G, 1.5G or 4096 (bytes).

    Raises:
        ConfigError: it is no size, or nothing.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    limit_bytes = int(float(match[1]) * _FACTORS[match[2]]) if match is not None else 0
    if not limit_bytes:
        raise ConfigError(f"--limit {text}: give a size above 0, such as 500M or 8G")
    return limit_bytes


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("workspace", "The folder that was copied into a sandbox.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="pull")
    pull = actions.add_parser("pull", help="copy the changes back", allow_abbrev=False)
    pull.add_argument("-v", "--verbose", action="store_true", help="say each name")
    pull.add_argument("--json", action="store_true", help="print what was copied as JSON")
    pull.add_argument(
        "--limit", default="8G", metavar="SIZE", help="copy nothing if it is more, 8G"
    )
    pull.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    limit_bytes = parse_limit(options.limit)
    store = open_store()
    record = find_running(store, options.name)
    result = copy_back(store, record, options.verbose, limit_bytes)
    if options.json:
        print_json({"name": record.name, "id": record.id, **result._asdict()})
    elif not options.verbose:
        print(result)
    return exit_status.INCOMPLETE if result.failed else exit_status.OK
