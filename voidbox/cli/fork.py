"""`voidbox fork`: sandboxes that go on from where one is."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser, parse_number
from voidbox.cli.sandboxes import control, describe, find_running, open_store
from voidbox.cli.snapshot import SNAPSHOT_S
from voidbox.errors import VoidboxError
from voidbox.sandbox.launch import launch
from voidbox.sandbox.snapshots.restored import record_of
from voidbox.sandbox.snapshots.shelf import Shelf
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

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
    with open_store() as store:
        original = find_running(store, options.name)
        answer = control(store, original, SNAPSHOT_S).request("snapshot", fork=True)
        shelf = Shelf(store.folder)
        saved = shelf.find(str(answer.get("snapshot")))
        record = record_of(saved.record)
        try:
            with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
                found = list(pool.map(lambda _: _start(store, record), range(count)))
        finally:  # they have it open
            shelf.remove(saved.record.id)
        return _tell(store, found, options.json)


def _start(store: Store, record: SandboxRecord) -> SandboxRecord | VoidboxError:
    try:
        made = store.create(record)
        launch(store, made)
        return store.read(made.id)
    except VoidboxError as error:
        return error


def _tell(store: Store, found: list[SandboxRecord | VoidboxError], as_json: bool) -> int:
    outcomes: list[dict[str, object]] = []
    for one in found:
        if isinstance(one, VoidboxError):
            complain(f"voidbox: {one}")
            outcomes.append({"ok": False, "error": str(one)})
        else:
            outcomes.append({"ok": True, "error": None, **describe(store, one)})
            if not as_json:
                print(one.name)
    if as_json:
        print_json(outcomes)
    return exit_status.OK if all(one["ok"] for one in outcomes) else exit_status.USAGE
