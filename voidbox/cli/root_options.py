"""The options of `voidbox run` that say what the guest's root is, and what is run in it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from voidbox import defaults
from voidbox.errors import ConfigError
from voidbox.vmm.config import parse_memory

if TYPE_CHECKING:  # a kernel on the console needs none
    from voidbox.sandbox.image_choice import Choice


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument(
        "--image",
        metavar="NAME",
        help="run this image, see voidbox image; or a file with its file system, named with a /. "
        "voidbox's own by default",
    )
    parser.add_argument(
        "--disk-size",
        metavar="SIZE",
        help="of the disk that takes what the guest writes, of which the host's takes no more than "
        "that: 8G for images; 0, as for voidbox's own image: the guest's memory takes it",
    )
    parser.add_argument(
        "--init",
        metavar="PATH",
        help="have this program of the image be PID 1, /sbin/init say, with the agent beside it; "
        "auto: what the image runs, if that is an init; agent, the default",
    )
    parser.add_argument(
        "--entrypoint",
        metavar="PROGRAM",
        help="run this before the COMMAND's words, in place of the image's own; '' for none",
    )
    parser.add_argument(
        "--initramfs", metavar="PATH", help="boot an initramfs instead: all of it is memory"
    )


def choose(options: argparse.Namespace) -> Choice:
    """Return what to boot.

    Raises:
        ConfigError: there is no such image, or two options contradict each other.
        HostError: the images cannot be read.
    """
    from voidbox.sandbox.image_choice import choose, choose_initramfs

    disk_bytes = parse_memory(options.disk_size) if options.disk_size is not None else None
    if options.initramfs is not None:
        if options.init not in (None, "agent"):
            raise ConfigError("--init is for an --image: an initramfs says itself what PID 1 is")
        if options.image is not None:
            raise ConfigError("--initramfs and --image are two roots: give one of them")
        return choose_initramfs(options.initramfs, disk_bytes)
    kernel = os.path.abspath(options.kernel or defaults.find_kernel())
    image = options.image
    if image is not None and not image:
        raise ConfigError("--image: give a name, or the path of a file")
    return choose(image, kernel, disk_bytes=disk_bytes, init=options.init)
