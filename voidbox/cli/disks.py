"""The `--disk` option of `voidbox run`."""

from __future__ import annotations

import argparse

from voidbox.errors import ConfigError
from voidbox.vmm.config import DiskConfig

_FORM = "PATH[,ro][,overlay=FILE][,serial=TEXT]"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add it."""
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar=_FORM,
        help="a raw image or a block device for the guest, as /dev/vda and on; ro: only read; "
        "overlay: what is written goes to FILE, and any number of VMs share PATH; serial: its name "
        "there. A comma in a path is written twice. Repeatable",
    )


def parse(options: argparse.Namespace) -> tuple[DiskConfig, ...]:
    """Return the disks that the options ask for.

    Raises:
        ConfigError: one cannot be read.
    """
    return tuple(map(parse_disk, options.disk))


def parse_disk(text: str) -> DiskConfig:
    """Return one disk.

    Raises:
        ConfigError: it is not of the form.
    """
    # "a,,b" is a path with a comma: a NUL, which no path has, keeps its place.
    path, *words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    disk = DiskConfig(path)
    for word in words:
        key, equals, value = word.partition("=")
        if word == "ro":
            disk = disk._replace(is_read_only=True)
        elif key == "overlay" and value:
            disk = disk._replace(overlay=value)
        elif key == "serial" and equals:
            disk = disk._replace(serial=value)
        else:
            raise ConfigError(f"--disk {text}: {word!r} is not known: give {_FORM}")
    if not path:
        raise ConfigError(f"--disk {text}: give {_FORM}")
    return disk
