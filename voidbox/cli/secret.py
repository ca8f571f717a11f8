"""`voidbox secret`: secrets of a sandbox that runs."""

from __future__ import annotations

import argparse
import os
import sys

from voidbox.cli import exit_status
from voidbox.cli.output import print_json, print_table
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import find_running, open_store
from voidbox.errors import ConfigError
from voidbox.sandbox.guarding import secrets_of

ACTIONS = {
    "set": "give a secret another value",
    "ls": "list the secrets, without their values",
}
_EPILOG = """\
The guest's programs keep the placeholder that they have; the new value holds from their next
request on. Without --file the value is the variable NAME here, or standard input if that is no
terminal.

examples:
  GH_TOKEN=$(gh auth token) voidbox secret set builder GH_TOKEN
  pass show api | voidbox secret set builder API_KEY
  voidbox secret set builder API_KEY --file key.txt
  voidbox secret ls builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("secret", "Change or list secrets of a sandbox that runs.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    setting, listing = (
        actions.add_parser(action, help=text, allow_abbrev=False)
        for action, text in ACTIONS.items()
    )
    for sub in (setting, listing):
        sub.add_argument("sandbox", metavar="SANDBOX", help="its name or ID")
    setting.add_argument("name", metavar="NAME", help="the secret's")
    setting.add_argument("--file", metavar="PATH", help="where the value is; - for standard input")
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    record = find_running(store, options.sandbox)
    if options.action == "set":
        value = _value(options.name, options.file)
        secrets_of(store, record).request("secret_set", name=options.name, value=value)
        return exit_status.OK
    secrets = secrets_of(store, record).request("secret_list")["secrets"]
    if options.json or not isinstance(secrets, list):
        print_json(secrets)
        return exit_status.OK
    rows = [
        (one["name"], ",".join(one["hosts"]), "set" if one["has_value"] else "not set")
        for one in secrets
    ]
    print_table(("NAME", "HOSTS", "VALUE"), rows)
    return exit_status.OK


def _value(name: str, file: str | None) -> str:
    from voidbox.secrets.spec import check_value, read_value

    if file is not None:
        found = read_value(name, "-" if file == "-" else f"@{file}")
    elif name in os.environ:
        found = os.environ[name]
    elif sys.stdin is not None and not sys.stdin.isatty():
        found = read_value(name, "-")
    else:
        raise ConfigError(
            f"secret {name}: there is no variable {name} here: set it, or give --file, or a pipe"
        )
    return check_value(name, found)
