"""`voidbox ray-node`: what this machine is to announce to Ray, and whether it can."""

from __future__ import annotations

import argparse
import sys

from voidbox.cli import exit_status
from voidbox.cli.parser import make_parser, parse_number
from voidbox.errors import ConfigError
from voidbox.pool.host_memory import available_and_total
from voidbox.ray import announcing
from voidbox.sdk.draft import memory_bytes


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser(
        "ray-node",
        "Print the command that starts Ray on this machine, with as many sandboxes as it has\n"
        "memory, open files and threads for. Exit status: 0 if it can be a node, 2 if not.",
        "examples:\n"
        "  voidbox ray-node                            # the head of a cluster\n"
        "  voidbox ray-node --address 10.0.0.1:6379    # a node that joins it\n"
        '  sh -c "$(voidbox ray-node --memory 1G)"     # and start it\n',
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="of the head; by default this is it")
    parser.add_argument("--memory", metavar="SIZE", help="of each sandbox, as create() has it")
    parser.add_argument("--slots", metavar="N", help="so many sandboxes, whatever fits")
    parser.add_argument(
        "--resource", default=announcing.RESOURCE, metavar="NAME", help="that pools look for, kvm"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    if options.address and ":" not in options.address:
        raise ConfigError(f"--address {options.address}: give HOST:PORT, as `ray start` printed it")
    found = announcing.announce(memory_bytes(options.memory), available_and_total()[1])
    for line in (*found.problems, *found.notes):
        print(f"voidbox ray-node: {line}", file=sys.stderr)
    slots = parse_number(options.slots, "--slots") if options.slots else found.slots
    print(announcing.command(slots, options.address, options.resource))
    return exit_status.USAGE if found.problems else exit_status.OK
