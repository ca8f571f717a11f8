"""`voidbox kill`: end sandboxes at once."""

from __future__ import annotations

import argparse

from voidbox.cli.ending import begin_kill, finish_kill
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import add_names, for_each, open_store

_EPILOG = """\
It works whatever the guest does, even if the sandbox's own process hangs. What has ended already is
no error. The logs stay until `voidbox rm`.

examples:
  voidbox kill builder
  voidbox kill $(voidbox ps --quiet)
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("kill", "End sandboxes at once; returns when they have.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    add_names(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    return for_each(open_store(), options.names, options.json, begin_kill, finish_kill)
