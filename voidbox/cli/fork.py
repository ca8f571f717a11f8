"""`voidbox fork`: sandboxes that go on from where one is."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser, parse_number
from voidbox.cli.sandboxes import describe, find_running, open_store
from voidbox.cli.snapshot import SNAPSHOT_S
from voidbox.sandbox.state.store import Store

if TYPE_CHECKING:
    from voidbox.sdk.aio import AsyncSandbox

_EPILOG = """\
The sandbox goes on; it stands still for some milliseconds. Each fork has its own random numbers,
clock, disk and name, and its published ports on other ports of the host: `voidbox port ls` shows
them. One that could not be started is told, and does not keep the others from it.

examples:
  voidbox fork builder
  voidbox fork builder -n 8 --json
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("fork", "Make sandboxes that go on from where one is.", _EPILOG)
    parser.add_argument("-n", "--count", default="1", metavar="N", help="how many, 1")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    count = parse_number(options.count, "--count")
    from voidbox.cli import interrupt

    with open_store() as store:
        original = find_running(store, options.name)
        return interrupt.run(_fork(store, original.id, count, options.json))


async def _fork(store: Store, id: str, count: int, as_json: bool) -> int:
    """Make them, and tell of them before anything interrupts us."""
    from voidbox.sdk.aio import AsyncSandbox

    sandbox = await AsyncSandbox.connect(id, auto_resume=False)
    try:
        return _tell(store, await sandbox._fork_as(False, count, SNAPSHOT_S), as_json)
    finally:
        await sandbox.close()


def _tell(store: Store, found: list[AsyncSandbox | Exception], as_json: bool) -> int:
    outcomes: list[dict[str, object]] = []
    for one in found:
        if isinstance(one, Exception):
            complain(f"voidbox: {one}")
            outcomes.append({"ok": False, "error": str(one)})
        else:
            record = store.read(one.sandbox_id)
            outcomes.append({"ok": True, "error": None, **describe(store, record)})
            if not as_json:
                print(one.name)
    if as_json:
        print_json(outcomes)
    sys.stdout.flush()
    return exit_status.OK if all(one["ok"] for one in outcomes) else exit_status.USAGE
