"""`voidbox image ls`, `inspect`, `rm` and `prune`."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.inspect import inspect_all
from voidbox.cli.output import print_json, print_table, shown, shown_size, shown_span, shown_time
from voidbox.errors import VoidboxError
from voidbox.images.reference import parse_reference
from voidbox.images.store import Image, ImageStore

_ID_DIGITS = 12


def main(options: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    actions = {"ls": _list, "inspect": _inspect, "rm": _remove, "prune": _prune}
    return actions[options.action](options)


def describe(image: Image) -> dict[str, Any]:
    """Return an image as --json shows it, wherever it shows one. Documented in docs/images.md."""
    values = image.record.to_json()
    del values["version"]
    return {"names": familiar_names(image), **values, "path": image.path}


def familiar_names(image: Image) -> list[str]:
    """Return what people call it."""
    return [parse_reference(name).familiar for name in image.names]


def _list(options: argparse.Namespace) -> int:
    found, wrong = ImageStore().list()
    for error in wrong:
        complain(f"voidbox: {error}")
    if options.json:
        print_json([describe(image) for image in found])
    elif options.quiet:
        for image in found:
            for name in familiar_names(image) or [image.id[7:][:_ID_DIGITS]]:
                print(shown(name))
    else:
        rows = [row for image in found for row in _rows(image, time.time())]
        print_table(("NAME", "ID", "SIZE", "CREATED", "PLATFORM"), rows)
    return exit_status.USAGE if wrong else exit_status.OK


def _rows(image: Image, now: float) -> list[list[str]]:
    created = image.record.created_at or image.record.added_at
    rest = [
        image.id[7:][:_ID_DIGITS],
        shown_size(image.record.size_bytes),
        f"{shown_span(now - created)} ago",
        image.record.platform,
    ]
    return [[name, *rest] for name in familiar_names(image) or ["-"]]


def _inspect(options: argparse.Namespace) -> int:
    store = ImageStore()
    return inspect_all(options.names, lambda name: describe(store.find(name)), _show, options.json)


def _show(values: dict[str, Any]) -> None:
    config, layers = values.pop("config"), values.pop("layers")
    lines = {**values, **{f"config.{key}": value for key, value in config.items()}}
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key.ljust(width)}  {_shown(key, value)}")
    for layer in layers:
        print(f"{'layer'.ljust(width)}  {layer['digest']}  {shown_size(layer['size_bytes'])}")


def _shown(key: str, value: Any) -> str:
    if key.endswith("_at"):
        return shown_time(value)
    if key == "size_bytes":
        return shown_size(value)
    if not value:
        return "-"
    return shown(value if isinstance(value, str) else json.dumps(value))


def _remove(options: argparse.Namespace) -> int:
    store = ImageStore()
    outcomes: list[dict[str, object]] = []
    for name in options.names:
        error = ""
        is_gone = False
        try:
            _, is_gone = store.remove(name, force=options.force)
        except VoidboxError as problem:
            error = str(problem)
            complain(f"voidbox: {error}")
        else:
            if not options.json:
                print(shown(name))
        outcomes.append({"name": name, "ok": not error, "is_gone": is_gone, "error": error or None})
    if options.json:
        print_json(outcomes)
    return exit_status.OK if all(o["ok"] for o in outcomes) else exit_status.USAGE


def _prune(options: argparse.Namespace) -> int:
    from voidbox.images.pruning import prune

    found = prune(layers=options.layers, dry_run=options.dry_run)
    if options.json:
        print_json(
            {
                "images": list(found.images),
                "layers": found.layers,
                "bytes": found.size_bytes,
                "is_complete": found.is_complete,
                "dry_run": options.dry_run,
            }
        )
        return exit_status.OK
    for id in found.images:
        print(id[7:][:_ID_DIGITS])
    if not found.is_complete:
        complain("voidbox: an image is being pulled: its layers stay")
    would = "would free" if options.dry_run else "freed"
    complain(
        f"{would} {shown_size(found.size_bytes)}: images: {len(found.images)}, layers: "
        f"{found.layers}"
    )
    return exit_status.OK
