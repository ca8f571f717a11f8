"""`voidbox setup`: the kernel and the images that `run` takes, from Debian's archive."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.image_progress import ImageBar
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser

_EPILOG = """\
Python alone does it: neither apt, root nor a compiler is needed. Packages come from the Debian
archive that this host's apt has, or from --mirror URL; signatures and digests are checked. What has
been downloaded stays in the cache (VOIDBOX_CACHE), and an interrupted setup goes on where it was.

examples:
  voidbox setup
  voidbox setup --mirror http://mirror.example/debian --suite trixie
  voidbox setup --kernel generic --package nodejs --package gcc
  voidbox setup --save stick              # and where there is no network:
  voidbox setup --offline stick
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser(
        "setup", "Make the kernel and the images that `voidbox run` takes by default.", _EPILOG
    )
    parser.add_argument(
        "--kernel", choices=("cloud", "generic"), default="cloud", help="Debian's, cloud by default"
    )
    parser.add_argument("--suite", metavar="NAME", help="Debian's release: bookworm, or trixie")
    parser.add_argument(
        "--image", choices=("default", "tiny"), default="default", help="tiny: make that one alone"
    )
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="one to be in the image, too"
    )
    parser.add_argument("--mirror", metavar="URL", help="where packages come from")
    parser.add_argument("--offline", metavar="DIR", help="a folder that --save has filled")
    parser.add_argument("--save", metavar="DIR", help="put what was used there, for --offline")
    parser.add_argument("--keyring", metavar="FILE", help="OpenPGP keys to trust beside Debian's")
    parser.add_argument(
        "--refresh", action="store_true", help="ask for new lists, those of today are there or not"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", action="store_true", help="print where it is as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    from voidbox.setup.archive import ArchiveOptions
    from voidbox.setup.installing import set_up
    from voidbox.setup.sources import DEFAULT_SUITE

    archive = ArchiveOptions(
        suite=options.suite or DEFAULT_SUITE,
        mirror=options.mirror,
        offline=options.offline,
        keyring=options.keyring,
        is_refreshed=options.refresh,
        save=options.save,
    )
    with ImageBar(options.quiet) as bar:
        made = set_up(archive, options.kernel, options.package, options.image, bar.update)
    if options.json:
        print_json(made._asdict())
        return exit_status.OK
    if not options.quiet:
        image = "" if made.image else "--image tiny "
        complain(f"ready; try: voidbox run {image}-- python3 -c 'print(6 * 7)'")
    print(*filter(None, made), sep="\n")
    return exit_status.OK
