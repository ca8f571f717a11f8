"""`voidbox snapshot`: sandboxes as they were at a moment, memory and disk."""

from __future__ import annotations

import argparse
import time
from typing import Any

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.inspect import inspect_all
from voidbox.cli.output import print_json, print_table, shown, shown_size, shown_span, shown_time
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import control, find_running, open_store
from voidbox.errors import VoidboxError
from voidbox.sandbox.snapshots.record import SNAPSHOT
from voidbox.sandbox.snapshots.shelf import Shelf, Snapshot, is_left
from voidbox.sandbox.state.store import Store

SNAPSHOT_S = 310.0  # for a sandbox's process to write one
ACTIONS = {
    "create": "save a sandbox as it is now; it goes on",
    "ls": "list those there are, and what they take",
    "inspect": "show all that is known of them",
    "verify": "compare them with what was written",
    "rm": "remove them; what was made of them goes on",
    "prune": "remove templates, and what forks have left; with --all all that is not in use",
}
_EPILOG = """\
`voidbox run --snapshot NAME` makes a sandbox of one, which goes on from there as one of its own. A
snapshot holds all that was in the sandbox's memory, secrets too.

examples:
  voidbox snapshot create builder ready
  voidbox run -d --snapshot ready --name tester
  voidbox snapshot ls
  voidbox snapshot verify ready
  voidbox snapshot rm ready
  voidbox snapshot prune --dry-run
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("snapshot", "Save sandboxes, and look after what was saved.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    subs = {
        action: actions.add_parser(action, help=text, allow_abbrev=False)
        for action, text in ACTIONS.items()
    }
    subs["create"].add_argument("sandbox", metavar="SANDBOX", help="its name or ID")
    subs["create"].add_argument("name", nargs="?", default="", metavar="NAME", help="for it")
    for action in ("inspect", "verify", "rm"):
        subs[action].add_argument("names", nargs="+", metavar="NAME", help="its name or ID")
    subs["ls"].add_argument("-q", "--quiet", action="store_true", help="print names or IDs alone")
    subs["prune"].add_argument(
        "--all", action="store_true", help="all snapshots that no sandbox is running on"
    )
    subs["prune"].add_argument(
        "--dry-run", action="store_true", help="only say what would be removed"
    )
    for sub in subs.values():
        sub.add_argument("--json", action="store_true", help="print what there is as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    actions = {
        "create": _create,
        "ls": _list,
        "inspect": _inspect,
        "verify": _verify,
        "rm": _remove,
        "prune": _prune,
    }
    return actions[options.action](store, options)


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as --json shows it. Documented in docs/cli.md."""
    record, sandbox = snapshot.record, snapshot.record.sandbox
    return {
        "id": record.id,
        "name": record.name,
        "kind": record.kind,
        "created_at": record.created_at,
        "parent": record.parent,
        "sandbox": {"id": sandbox.id, "name": sandbox.name},
        "image": sandbox.image,
        "memory_bytes": sandbox.memory_bytes,
        "cpus": sandbox.cpus,
        "size_bytes": snapshot.sizes.disk_bytes,
        "is_in_use": snapshot.is_in_use,
        "files": list(record.files),
        "voidbox": record.voidbox,
        "folder": snapshot.folder,
    }


def _create(store: Store, options: argparse.Namespace) -> int:
    record = find_running(store, options.sandbox)
    answer = control(store, record, SNAPSHOT_S).request("snapshot", name=options.name)
    made = Shelf(store.folder).find(str(answer.get("snapshot")))
    if options.json:
        print_json(describe(made))
    else:
        print(made.record.name or made.record.id)
    return exit_status.OK


def _list(store: Store, options: argparse.Namespace) -> int:
    shelf = Shelf(store.folder)
    shelf.sweep()
    found = [one for one in shelf.all() if one.record.kind == SNAPSHOT]
    if options.json:
        print_json([describe(one) for one in found])
    elif options.quiet:
        for one in found:
            print(one.record.name or one.record.id)
    else:
        names = {one.record.id: one.record.name or one.record.id for one in found}
        rows = [_row(one, names, time.time()) for one in found]
        print_table(("NAME", "ID", "AGE", "SIZE", "MEMORY", "SANDBOX", "PARENT", "IN USE"), rows)
    return exit_status.OK


def _row(snapshot: Snapshot, names: dict[str, str], now: float) -> list[str]:
    record = snapshot.record
    return [
        record.name or "-",
        record.id,
        shown_span(now - record.created_at),
        shown_size(snapshot.sizes.disk_bytes),
        shown_size(record.sandbox.memory_bytes),
        record.sandbox.name,
        names.get(record.parent, record.parent) or "-",
        "yes" if snapshot.is_in_use else "-",
    ]


def _inspect(store: Store, options: argparse.Namespace) -> int:
    shelf = Shelf(store.folder)
    return inspect_all(options.names, lambda name: describe(shelf.find(name)), _show, options.json)


def _show(values: dict[str, Any]) -> None:
    values["sandbox"] = f"{values['sandbox']['name']} ({values['sandbox']['id']})"
    values["files"] = ", ".join(values["files"])
    width = max(map(len, values))
    for key, value in values.items():
        print(f"{key.ljust(width)}  {_shown(key, value)}")


def _shown(key: str, value: Any) -> str:
    if key == "created_at":
        return shown_time(value)
    if key.endswith("_bytes"):
        return shown_size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(str(value)) if value != "" else "-"


def _verify(store: Store, options: argparse.Namespace) -> int:
    from voidbox.snapshot import digests

    shelf = Shelf(store.folder)
    outcomes: list[dict[str, object]] = []
    for name in options.names:
        error = None
        try:
            digests.verify(shelf.find(name).folder)
        except VoidboxError as problem:
            error = str(problem)
            complain(f"voidbox: {error}")
        else:
            if not options.json:
                print(f"{shown(name)}: as it was written")
        outcomes.append({"name": name, "ok": error is None, "error": error})
    return _finish(outcomes, options)


def _remove(store: Store, options: argparse.Namespace) -> int:
    shelf = Shelf(store.folder)
    outcomes: list[dict[str, object]] = []
    for name in options.names:
        error = None
        try:
            shelf.remove(shelf.id_of(name))
        except VoidboxError as problem:
            error = str(problem)
            complain(f"voidbox: {error}")
        else:
            if not options.json:
                print(shown(name))
        outcomes.append({"name": name, "ok": error is None, "error": error})
    return _finish(outcomes, options)


def _finish(outcomes: list[dict[str, object]], options: argparse.Namespace) -> int:
    if options.json:
        print_json(outcomes)
    return exit_status.OK if all(one["ok"] for one in outcomes) else exit_status.USAGE


def _is_unused(snapshot: Snapshot) -> bool:
    """Whether it is somebody's, who does not use it now; what a fork() needs is the fork()'s."""
    return snapshot.record.kind == SNAPSHOT and not snapshot.is_in_use


def _prune(store: Store, options: argparse.Namespace) -> int:
    from voidbox.sandbox.snapshots.templates import Templates

    shelf, templates = Shelf(store.folder), Templates(store.folder)
    doomed = [one for one in shelf.all() if is_left(one) or (options.all and _is_unused(one))]
    freed = sum(one.sizes.disk_bytes for one in doomed)
    if not options.dry_run:
        for one in doomed:
            shelf.remove(one.record.id)
        shelf.sweep()
    gone, template_bytes = templates.prune(dry_run=options.dry_run)
    freed += template_bytes
    names = [one.record.name or one.record.id for one in doomed]
    if options.json:
        print_json(
            {"snapshots": names, "templates": gone, "bytes": freed, "dry_run": options.dry_run}
        )
        return exit_status.OK
    for name in (*names, *(f"template {key}" for key in gone)):
        print(name)
    complain(f"{'would free' if options.dry_run else 'freed'} {shown_size(freed)}")
    return exit_status.OK
