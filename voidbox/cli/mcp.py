"""`voidbox mcp`: a server that gives a coding agent sandboxes, on standard input and output."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.parser import make_parser, parse_duration, parse_number
from voidbox.errors import ConfigError

_MAX = "4"
_LIFE_S = "3600"
_PACKAGE = "mcp"
_EPILOG = """\
It speaks the Model Context Protocol and is started by the agent's program. Its tools run commands,
read and write files in sandboxes that end with it. They have no network unless you give them one
here: the agent cannot. It needs the package mcp: pip install 'voidbox-kvm[mcp]'.

examples:
  voidbox mcp
  voidbox mcp --memory 1G --allow example.com:443
  claude mcp add voidbox -- voidbox mcp --net nat
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("mcp", "Give a coding agent sandboxes, over stdin and stdout.", _EPILOG)
    parser.add_argument("--image", metavar="IMAGE", help="what they run; the default image")
    parser.add_argument("--memory", metavar="SIZE", help="of each: 512M (default), 4G")
    parser.add_argument(
        "--max", metavar="N", default=_MAX, help=f"how many there may be at a time; {_MAX}"
    )
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        default=_LIFE_S,
        help=f"each is ended after 90, 90s, 10m, 2h; {_LIFE_S}",
    )
    parser.add_argument("--jail", metavar="LEVEL", help="default, strict or off; see run --help")
    parser.add_argument("--net", choices=("nat", "off"), help="off, unless there are rules")
    for name, text in (("--allow", "what they may reach"), ("--deny", "what they may not")):
        parser.add_argument(
            name, action="append", default=[], metavar="RULE", help=f"{text}; repeatable"
        )
    return parser


def main(argv: list[str]) -> int:
    """Serve until standard input ends; returns the exit status."""
    options = make_options().parse_args(argv)
    rules = {"allow": options.allow, "deny": options.deny}
    if options.net == "off" and any(rules.values()):
        raise ConfigError("--net off leaves nothing for --allow and --deny to do")
    has_network = options.net == "nat" or any(rules.values())
    network = rules if has_network else {"block_network": True}
    sandboxes_max = parse_number(options.max, "--max")
    timeout_s = parse_duration(options.timeout, "--timeout")
    try:
        from voidbox.mcp_server.server import make_server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (_PACKAGE, "pydantic"):
            raise
        raise ConfigError("the package mcp is missing: pip install 'voidbox-kvm[mcp]'") from error
    from voidbox.mcp_server.shelf import SandboxLike, Shelf
    from voidbox.sdk.aio import AsyncSandbox

    async def make() -> SandboxLike:
        return await AsyncSandbox.create(
            image=options.image,
            memory=options.memory,
            timeout=timeout_s,
            jail=options.jail,
            **network,
        )

    make_server(Shelf(make, sandboxes_max)).run("stdio")
    return exit_status.OK
