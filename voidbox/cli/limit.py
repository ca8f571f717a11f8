"""`voidbox limit`: what a running sandbox may use of the host."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.limit_options import add_options, parse, size_of
from voidbox.cli.output import print_json, shown_size
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import control, find_running, open_store
from voidbox.vmm.config import parse_memory

_EPILOG = """\
Without an option it shows the limits. "none" ends one. They last as long as the sandbox, and
`voidbox stats --json` shows them with what it uses.

examples:
  voidbox limit builder --cpu 0.5
  voidbox limit builder --pids 200 --host-memory 1G
  voidbox limit builder --disk-rate 20M --net-rate none
  voidbox limit builder --memory 256M
  voidbox limit --json builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("limit", "Limit what a running sandbox uses of this host.", _EPILOG)
    parser.add_argument("--json", action="store_true", help="print the limits as JSON")
    add_options(parser)
    parser.add_argument("--net-rate", metavar="SIZE", help="bytes a second of its network")
    parser.add_argument(
        "--memory", metavar="SIZE", help="what the guest makes do with of its memory, such as 256M"
    )
    parser.add_argument("name", metavar="NAME")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    wanted = parse(options)
    if options.net_rate is not None:
        wanted["net_bytes_s"] = size_of(options.net_rate, "--net-rate")
    if options.memory is not None:
        wanted["memory_bytes"] = None if options.memory == "none" else parse_memory(options.memory)
    store = open_store()
    record = find_running(store, options.name)
    limits = control(store, record).request("limit", **wanted)["limits"]
    if options.json:
        print_json(limits)
    elif isinstance(limits, dict):
        for key, value in sorted(limits.items()):
            print(f"{key}  {shown_size(value) if 'bytes' in key else value}")
    return exit_status.OK
