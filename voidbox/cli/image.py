"""`voidbox image`: the images that sandboxes are made from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from voidbox.cli.parser import make_parser

ACTIONS = {
    "pull": "bring one from a registry",
    "import": "make one of a folder, a tar archive, or what docker save wrote",
    "build": "make one of Debian packages",
    "ls": "list those there are",
    "inspect": "show all that is known of them",
    "rm": "remove them",
    "prune": "delete what no image needs",
}
_EPILOG = """\
NAME is as docker has it: python, python:3.12, registry.example:5000/team/app:1, app@sha256:…;
without a registry it is docker.io, without a tag latest. `voidbox run --image NAME` runs one.

examples:
  voidbox image pull python:3.12
  voidbox image build dev --debian bookworm --package python3 --package git
  voidbox image import app app.tar
  docker save app | voidbox image import app -
  voidbox image import tool ./rootfs --entrypoint /usr/bin/tool --env LANG=C.UTF-8
  voidbox image ls
  voidbox image rm app
  voidbox image prune --dry-run
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("image", "Bring, list and remove images for sandboxes.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    subs = {
        action: actions.add_parser(action, help=text, allow_abbrev=False)
        for action, text in ACTIONS.items()
    }
    _add_makers(subs)
    for action in ("inspect", "rm"):
        subs[action].add_argument("names", nargs="+", metavar="NAME", help="its name or ID")
    subs["ls"].add_argument("-q", "--quiet", action="store_true", help="print the names alone")
    subs["rm"].add_argument(
        "-f", "--force", action="store_true", help="also while a sandbox runs it"
    )
    prune = subs["prune"]
    prune.add_argument("--layers", action="store_true", help="also layers that images were made of")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    for sub in subs.values():
        sub.add_argument("--json", action="store_true", help="print what there is as JSON")
    return parser


def _add_makers(subs: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add the options of what makes images."""
    for action in ("pull", "import", "build"):
        subs[action].add_argument("name", metavar="NAME", help="what it is called")
        subs[action].add_argument("--quiet", action="store_true", help="show no progress")
    pull, imported, build = subs["pull"], subs["import"], subs["build"]
    for sub in (pull, imported):
        sub.add_argument(
            "--platform", default="linux/amd64", metavar="OS/ARCH", help="which one, if several"
        )
    pull.add_argument(
        "--insecure", action="store_true", help="plain http and unknown certificates will do"
    )
    imported.add_argument("source", metavar="SOURCE", help="a file or a folder; - is the input")
    imported.add_argument("--tag", default="", help="which image of an archive of several")
    build.add_argument("--debian", required=True, metavar="SUITE", help="a release, as bookworm")
    build.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="one to be in it, too"
    )
    build.add_argument(
        "--new-user", metavar="NAME", help="a user to be added, with sudo's rights if there is sudo"
    )
    build.add_argument("--mirror", metavar="URL", help="where packages come from")
    for sub in (imported, build):
        sub.add_argument(
            "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable in it"
        )
        sub.add_argument("--workdir", metavar="PATH", help="where commands run")
        sub.add_argument("--user", metavar="NAME", help="whom they run as")
        sub.add_argument("--entrypoint", metavar="WORDS", help="what comes before each command")
        sub.add_argument("--cmd", metavar="WORDS", help="the command where none is given")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    if options.action in ("pull", "import", "build"):
        from voidbox.cli import image_make

        return image_make.main(options)
    from voidbox.cli import image_show

    return image_show.main(options)
