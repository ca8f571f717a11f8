"""`voidbox image pull`, `import` and `build`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.image_progress import ImageBar
from voidbox.cli.image_show import describe
from voidbox.cli.output import print_json, shown_size
from voidbox.cli.parser import parse_environment
from voidbox.errors import ConfigError
from voidbox.images.progress import OnProgress
from voidbox.images.reference import parse_reference
from voidbox.images.store import Image


def main(options: argparse.Namespace) -> int:
    """Run the action; returns the exit status."""
    makers = {"pull": _pull, "import": _import, "build": _build}
    name = parse_reference(options.name).familiar
    began = time.time()
    with ImageBar(options.quiet) as bar:
        image = makers[options.action](options, bar.update)
    if options.json:
        print_json(describe(image))
        return exit_status.OK
    if not options.quiet:
        size = shown_size(image.record.size_bytes)
        state = "is up to date" if image.record.added_at < began else "is here"
        complain(f"{name} {state}: {image.id[7:19]}, {size}")
    print(name)
    return exit_status.OK


def _pull(options: argparse.Namespace, report: OnProgress) -> Image:
    from voidbox.images.pulling import pull

    return pull(options.name, platform=options.platform, insecure=options.insecure, progress=report)


def _import(options: argparse.Namespace, report: OnProgress) -> Image:
    from voidbox.images.importing import import_

    return import_(
        options.name, options.source, tag=options.tag, platform=options.platform, progress=report,
        **_config(options),
    )  # fmt: skip


def _build(options: argparse.Namespace, report: OnProgress) -> Image:
    from voidbox.setup.building import build

    return build(
        options.name, options.package, debian=options.debian, mirror=options.mirror,
        new_user=options.new_user,
        progress=report, **_config(options),
    )  # fmt: skip


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options change of an image's configuration."""
    return {
        "env": parse_environment(options.env) if options.env else None,
        "workdir": options.workdir,
        "user": options.user,
        "entrypoint": _words(options.entrypoint, "--entrypoint"),
        "cmd": _words(options.cmd, "--cmd"),
    }


def _words(text: str | None, option: str) -> list[str] | None:
    """Return the words that a shell would see in a text."""
    if text is None:
        return None
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text}: {error}") from error
