"""`voidbox volume`: disks that outlive sandboxes."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.inspect import inspect_all
from voidbox.cli.output import print_json, print_table, shown, shown_size, shown_span, shown_time
from voidbox.cli.parser import make_parser
from voidbox.errors import VoidboxError
from voidbox.sandbox.volumes.store import SIZE_BYTES_DEFAULT, Volume, VolumeStore
from voidbox.vmm.config import parse_memory

ACTIONS = {
    "create": "make some",
    "ls": "list those there are",
    "inspect": "show all that is known of them",
    "rm": "delete them, with all that is on them",
}
_EPILOG = """\
A volume is a disk that takes as much of the host's as is written on it, SIZE at most. The first
sandbox that gets it makes a file system on it. One sandbox writes it at a time; with :ro several
read it.

examples:
  voidbox volume create cache --size 20G
  voidbox run --volume cache:/home/sandbox/.cache -- make
  voidbox volume ls
  voidbox volume rm cache
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("volume", "Make, list and delete volumes for sandboxes.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    subs = {
        action: actions.add_parser(action, help=text, allow_abbrev=False)
        for action, text in ACTIONS.items()
    }
    for action in ("create", "inspect", "rm"):
        subs[action].add_argument("names", nargs="+", metavar="NAME", help="its name")
    subs["create"].add_argument(
        "--size", metavar="SIZE", help="what it may come to hold, 8G by default"
    )
    subs["ls"].add_argument("-q", "--quiet", action="store_true", help="print the names alone")
    for sub in subs.values():
        sub.add_argument("--json", action="store_true", help="print what there is as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = VolumeStore()
    actions = {"create": _create, "ls": _list, "inspect": _inspect, "rm": _remove}
    return actions[options.action](store, options)


def _create(store: VolumeStore, options: argparse.Namespace) -> int:
    size = SIZE_BYTES_DEFAULT if options.size is None else parse_memory(options.size)
    made = []
    for name in options.names:
        made.append(store.create(name, size))
        if not options.json:
            print(name)
    if options.json:
        print_json([volume._asdict() for volume in made])
    return exit_status.OK


def _list(store: VolumeStore, options: argparse.Namespace) -> int:
    found = store.list()
    if options.json:
        print_json([volume._asdict() for volume in found])
    elif options.quiet:
        for volume in found:
            print(volume.name)
    else:
        print_table(("NAME", "SIZE", "USED", "CREATED", "IN USE"), [_row(v) for v in found])
    return exit_status.OK


def _row(volume: Volume) -> list[str]:
    import time

    return [
        volume.name,
        shown_size(volume.size_bytes),
        shown_size(volume.used_bytes),
        f"{shown_span(time.time() - volume.created_at)} ago",
        "yes" if volume.is_in_use else "-",
    ]


def _inspect(store: VolumeStore, options: argparse.Namespace) -> int:
    return inspect_all(options.names, lambda name: store.find(name)._asdict(), _show, options.json)


def _show(values: dict[str, object]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        text = shown(str(value))
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif key.endswith("_bytes") and isinstance(value, int):
            text = shown_size(value)
        elif key.endswith("_at") and isinstance(value, float):
            text = shown_time(value)
        print(f"{key.ljust(width)}  {text}")


def _remove(store: VolumeStore, options: argparse.Namespace) -> int:
    outcomes: list[dict[str, object]] = []
    for name in options.names:
        error = ""
        try:
            store.remove(name)
        except VoidboxError as problem:
            error = str(problem)
            complain(f"voidbox: {error}")
        else:
            if not options.json:
                print(name)
        outcomes.append({"name": name, "ok": not error, "error": error or None})
    if options.json:
        print_json(outcomes)
    return exit_status.OK if all(one["ok"] for one in outcomes) else exit_status.USAGE
