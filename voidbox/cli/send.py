"""`voidbox send`: a message to a sandbox, by its relay."""

from __future__ import annotations

import argparse
import sys

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import control, find_running, open_store
from voidbox.errors import ConfigError
from voidbox.sandbox.relay.protocol import DELIVERED, TEXT_BYTES_MAX

_HOST = "@host"  # see voidbox.sandbox.relay.server, which is not imported for one word
_EPILOG = """\
It waits in the sandbox's mailbox until a program there calls `voidbox-relay receive`. The sender is
called @host. Words are joined by spaces; - alone is standard input. Exit status: 1 if it was not
delivered.

examples:
  voidbox send builder compile it, please
  git diff | voidbox send reviewer -
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("send", "Send a message to a sandbox.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="at most 8 KiB")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    text = _read_input() if options.text == ["-"] else " ".join(options.text)
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > TEXT_BYTES_MAX:
        raise ConfigError(
            f"a message has at most {TEXT_BYTES_MAX} bytes: give larger things a file"
        )
    text = data.decode("utf-8", "replace")
    store = open_store()
    record = find_running(store, options.name)
    answer = control(store, record).request("deliver", **{"from": _HOST, "text": text})
    outcome = str(answer.get("outcome"))
    if options.json:
        print_json({"name": record.name, "id": record.id, "outcome": outcome})
    elif outcome != DELIVERED:
        complain(f"voidbox: not delivered to {record.name}: {outcome}")
    return exit_status.OK if outcome == DELIVERED else exit_status.NOT_DELIVERED


def _read_input() -> str:
    if sys.stdin is None:
        raise ConfigError("standard input is closed: give the message as words")
    data = sys.stdin.buffer.read(TEXT_BYTES_MAX + 2)
    return data.removesuffix(b"\n").decode("utf-8", "replace")
