"""`voidbox pool`: a command for each line of input, each in a sandbox of its own."""

from __future__ import annotations

import argparse
from typing import Any

from voidbox.cli.parser import (
    add_command_options,
    make_parser,
    parse_environment,
    parse_number,
    parse_optional_duration,
)
from voidbox.errors import ConfigError

ACTIONS = {"run": "run a COMMAND for each line of standard input"}
_EPILOG = """\
Each line is a word of the COMMAND, in place of {}, or after the last one. Each has a fresh sandbox,
never more than --size at once; what it writes is printed when it has ended, as a whole.

exit status:
  0    all went well
  2    bad arguments, or a host that cannot run VMs
  123  a COMMAND failed, or its sandbox did

examples:
  seq 100 | voidbox pool run --size 8 -- sh -c 'echo {} squared is $(({} * {}))'
  ls *.py | voidbox pool run --size 4 --json -- python3 -c 'import sys; print(len(sys.argv[1]))' {}
  cat urls | voidbox pool run --size 16 --snapshot crawler --timeout 60 -- crawl
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("pool", "Run a command many times, each time in a fresh sandbox.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    sub = actions.add_parser("run", help=ACTIONS["run"], allow_abbrev=False)
    sub.add_argument("--size", default="4", metavar="N", help="sandboxes at once, 4")
    sub.add_argument("--warm", default="1", metavar="N", help="how many wait for a line, 1")
    sub.add_argument("--starts", metavar="N", help="starts at once; as many as stay quick")
    sub.add_argument("--image", metavar="IMAGE", help="see voidbox run; voidbox's own")
    sub.add_argument("--snapshot", metavar="NAME", help="go on from a snapshot")
    sub.add_argument("--memory", metavar="SIZE", help="of each, 512M")
    sub.add_argument("--cpus", metavar="N", help="of each, 1")
    sub.add_argument("--net", choices=("nat", "off"), default="nat", help="off: no network")
    sub.add_argument("--allow", action="append", metavar="RULE", help="see voidbox run; repeatable")
    sub.add_argument("--deny", action="append", metavar="RULE", help="likewise")
    sub.add_argument(
        "--jail", metavar="LEVEL", help="default, strict or off; see voidbox run --help"
    )
    sub.add_argument(
        "--isolated", action="store_true", help="start each as a program of its own, not a fork"
    )
    add_command_options(sub)
    sub.add_argument("--timeout", metavar="TIME", help="end a COMMAND after 90, 90s, 10m, 2h")
    sub.add_argument("-k", "--keep-order", action="store_true", help="print in the lines' order")
    sub.add_argument("--json", action="store_true", help="print a line of JSON for each")
    sub.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parser = make_options()
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no COMMAND: voidbox pool run --size 4 -- COMMAND")
    size = parse_number(options.size, "--size")
    warm = 0 if options.warm == "0" else parse_number(options.warm, "--warm")
    if warm > size:
        raise ConfigError(f"--warm {warm}: --size {size} is the most")
    from voidbox.cli import interrupt, pool_run

    job = pool_run.Job(
        command=tuple(command),
        timeout_s=parse_optional_duration(options.timeout, "--timeout"),
        keeps_order=options.keep_order,
        as_json=options.json,
        is_quiet=options.quiet,
        is_verbose=options.verbose,
    )
    starts = None if options.starts is None else parse_number(options.starts, "--starts")
    limits = pool_run.Limits(size, warm, starts, options.isolated)
    return interrupt.run(pool_run.run(job, limits, _create_options(options)))


def _create_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what create() takes, of what was given."""
    found: dict[str, Any] = {
        "image": options.image,
        "snapshot": options.snapshot,
        "memory": options.memory,
        "cpus": None if options.cpus is None else parse_number(options.cpus, "--cpus"),
        "envs": parse_environment(options.env) or None,
        "workdir": options.workdir,
        "user": options.user,
        "allow": options.allow,
        "deny": options.deny,
        "block_network": True if options.net == "off" else None,
        "jail": options.jail,
    }
    return {name: value for name, value in found.items() if value is not None}
