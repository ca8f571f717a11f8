"""What the scripts of a clone call: one kernel, one image, one package; its path is printed.

python -m voidbox.setup kernel [cloud|generic]
python -m voidbox.setup default [--with PACKAGE]…
python -m voidbox.setup image [--kernel FILE] [--with PACKAGE]… [--add HOSTPATH:GUESTPATH]…
                              [--output FILE]
python -m voidbox.setup version PACKAGE             the newest there is, instead of a path
python -m voidbox.setup unpack PACKAGE FOLDER       what it holds, without what it needs
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from voidbox.errors import VoidboxError
from voidbox.images.progress import INSTALL, ImageProgress
from voidbox.setup.added import parse_added
from voidbox.setup.archive import ArchiveOptions, open_archive
from voidbox.setup.default_image import IMAGE, build_default_image
from voidbox.setup.errors import SetupError
from voidbox.setup.guest_image import INITRAMFS, build_guest_image, copy_output, find_modules
from voidbox.setup.kernel import FLAVOURS, fetch_kernel
from voidbox.setup.one_package import unpack_package
from voidbox.setup.packages import check_name
from voidbox.setup.sources import DEFAULT_SUITE


def main(argv: list[str]) -> int:
    """Make one; returns the exit status."""
    options = _make_options().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing half done is left either
    try:
        print(_ACTIONS[options.action](options))
    except VoidboxError as error:
        print(f"{options.action}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _make_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m voidbox.setup", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    kernel = actions.add_parser("kernel", allow_abbrev=False, help="fetch Debian's stock kernel")
    kernel.add_argument("flavour", nargs="?", default="cloud", choices=FLAVOURS)
    image = actions.add_parser("image", allow_abbrev=False, help="build the guest image")
    image.add_argument("--kernel", metavar="FILE", help="one with config and lib/modules beside it")
    image.add_argument(
        "--with", dest="packages", action="append", default=[], metavar="PACKAGE",
        help="a Debian package more, with all that it depends on",
    )  # fmt: skip
    image.add_argument(
        "--add", action="append", default=[], metavar="HOSTPATH:GUESTPATH",
        help="a file or folder of this machine",
    )  # fmt: skip
    default = actions.add_parser("default", allow_abbrev=False, help="build the default image")
    default.add_argument(
        "--with", dest="packages", action="append", default=[], metavar="PACKAGE",
        help="a Debian package more, with all that it depends on",
    )  # fmt: skip
    image.add_argument("--output", metavar="FILE", help="a copy of the image as an initramfs")
    version = actions.add_parser("version", allow_abbrev=False, help="tell of a package")
    unpack = actions.add_parser("unpack", allow_abbrev=False, help="unpack a package")
    for sub in (version, unpack):
        sub.add_argument("package", metavar="PACKAGE", help="one of Debian's")
    unpack.add_argument("folder", metavar="FOLDER", help="is made, and must not be there yet")
    for sub in (kernel, image, default, version, unpack):
        sub.add_argument("--suite", default=DEFAULT_SUITE, metavar="NAME", help="Debian's release")
        sub.add_argument("--mirror", metavar="URL", help="where packages come from")
        sub.add_argument("--refresh", action="store_true", help="ask for new lists of packages")
    return parser


def _kernel(options: argparse.Namespace) -> str:
    with open_archive(_archive(options), _tell) as archive:
        return fetch_kernel(archive, options.flavour)


def _image(options: argparse.Namespace) -> str:
    added = [parse_added(word) for word in options.add]
    for name in options.packages:
        check_name(name)
    find_modules(options.kernel)
    output: str | None = options.output
    if output is not None and os.path.isdir(output):
        raise SetupError(f"--output {output}: this is a folder, name a file")
    if output is not None and not os.path.isdir(os.path.dirname(output) or "."):
        raise SetupError(f"--output {output}: there is no folder {os.path.dirname(output)}")
    with open_archive(_archive(options), _tell) as archive:
        folder = build_guest_image(archive, options.kernel, options.packages, added, report=_tell)
    if output is None:
        return f"{folder}/{INITRAMFS}"
    copy_output(folder, output)
    return output


def _default(options: argparse.Namespace) -> str:
    for name in options.packages:
        check_name(name)
    with open_archive(_archive(options), _tell) as archive:
        folder = build_default_image(archive, options.packages, report=_tell)
    return f"{folder}/{IMAGE}"


def _version(options: argparse.Namespace) -> str:
    check_name(options.package)
    with open_archive(_archive(options), _tell) as archive:
        return archive.exactly([options.package])[0].version


def _unpack(options: argparse.Namespace) -> str:
    check_name(options.package)
    with open_archive(_archive(options), _tell) as archive:
        return unpack_package(archive, options.package, options.folder)


_ACTIONS = {
    "kernel": _kernel, "image": _image, "default": _default, "version": _version,
    "unpack": _unpack,
}  # fmt: skip


def _archive(options: argparse.Namespace) -> ArchiveOptions:
    return ArchiveOptions(suite=options.suite, mirror=options.mirror, is_refreshed=options.refresh)


def _tell(step: ImageProgress) -> None:
    if step.stage == INSTALL:
        print(step.item, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
