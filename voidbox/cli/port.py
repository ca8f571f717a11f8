"""`voidbox port`: ports of running sandboxes, offered on the host."""

from __future__ import annotations

import argparse

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.output import print_json, print_table
from voidbox.cli.parser import make_parser, parse_duration, parse_number
from voidbox.cli.sandboxes import CONTROL_S, control, find_running, open_store
from voidbox.errors import AgentError, SandboxTimeout, VoidboxError
from voidbox.sandbox.ports import parse_published
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_EPILOG = """\
PORT is [IP:]HOSTPORT:GUESTPORT[/udp]. HOSTPORT 0 takes one of 9000 to 9999 and says which. Without
an IP only programs of this machine reach it.

examples:
  voidbox port add web 8080:80
  voidbox port add web 0:53/udp
  voidbox port ls web
  voidbox port wait web 80 --timeout 2m
  voidbox port rm web 8080:80
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("port", "Offer ports of a running sandbox on the host.", _EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|rm|ls|wait")
    for action, text in (("add", "offer a port"), ("rm", "offer it no longer")):
        sub = actions.add_parser(action, help=text, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print the port as JSON")
        sub.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
        sub.add_argument("ports", nargs="+", metavar="PORT", help="as in 8080:80")
    sub = actions.add_parser("ls", help="list what is offered", allow_abbrev=False)
    sub.add_argument("--json", action="store_true", help="print a list as JSON")
    sub.add_argument("names", nargs="*", metavar="NAME", help="all that run by default")
    sub = actions.add_parser(
        "wait", help="wait until something in it listens on a port", allow_abbrev=False
    )
    sub.add_argument(
        "--timeout", default="60", metavar="TIME", help="for so long at most: 90, 90s, 10m; 60s"
    )
    sub.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    sub.add_argument("port", metavar="GUESTPORT", help="a TCP port of the guest")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    if options.action == "wait":
        return _wait(options)
    if options.action == "ls":
        return _list(store, options.names, options.json)
    record = find_running(store, options.name)
    client = control(store, record, CONTROL_S)
    shown: list[str] = []
    problem: VoidboxError | None = None
    for port in options.ports:
        try:
            if options.action == "add":
                shown.append(str(client.request("port_add", publish=port).get("forward")))
            else:
                client.request("port_remove", publish=port)
                shown.append(port)
        except VoidboxError as error:
            problem = error
            break
        if not options.json:
            print(shown[-1])
    if options.json and (shown or problem is None):
        if options.action == "add":
            print_json([_describe(record, text) for text in shown])
        else:
            print_json({"name": record.name, "id": record.id, "removed": shown})
    if problem is not None:
        raise problem
    return exit_status.OK


def _list(store: Store, names: list[str], as_json: bool) -> int:
    if names:
        records = [find_running(store, name) for name in names]
    else:
        records = [record for record in store.list() if record.state.has_process]
    found, status = [], exit_status.OK
    for record in records:
        try:
            forwards = control(store, record).request("port_list").get("forwards")
        except AgentError:
            if names:
                raise
            continue  # it has just ended
        except SandboxTimeout as error:  # what the others say is of interest all the same
            complain(f"voidbox: {record.name}: {error}")
            status = exit_status.USAGE
            continue
        if isinstance(forwards, list):
            found += [_describe(record, text) for text in forwards]
    if as_json:
        print_json(found)
        return status
    rows = [
        [str(port["name"]), f"{port['host_ip']}:{port['host_port']}",
         f"{port['guest_port']}/{port['protocol']}"]
        for port in found
    ]  # fmt: skip
    print_table(("NAME", "HOST", "GUEST"), rows)
    return status


def _describe(record: SandboxRecord, forward: object) -> dict[str, object]:
    return {"name": record.name, "id": record.id, **parse_published(forward)._asdict()}


def _wait(options: argparse.Namespace) -> int:
    """Wait until something listens on a port of a sandbox."""
    import asyncio

    from voidbox.sdk.aio import AsyncSandbox

    port = parse_number(options.port, "PORT")
    timeout_s = parse_duration(options.timeout, "--timeout")

    async def wait() -> None:
        sandbox = await AsyncSandbox.connect(options.name)
        try:
            await sandbox.ports.wait_for(port, timeout_s)
        finally:
            await sandbox.close()

    try:
        asyncio.run(wait())
    except SandboxTimeout as error:
        complain(f"voidbox: {error}")
        return exit_status.TIMEOUT
    return exit_status.OK
