"""voidbox-relay: messages between the sandboxes of one team, for the guest's programs.

No part of the agent: a program of its own, in /usr/bin, that any user may run. What it says to the
host is in relay_protocol.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time

from guest_agent import relay_protocol as protocol
from guest_agent.packing import PackingError, pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Values = dict[str, Any]

OK, NOTHING, USAGE, NO_RELAY, INTERRUPTED = 0, 1, 2, 3, 130

# In place of the host's port, a Unix socket: to try it without a guest.
SOCKET_VARIABLE = "VOIDBOX_RELAY_SOCKET"
_CONNECT_S = 10.0
_ANSWER_S = 60.0  # beyond what was asked to be waited for

_STORIES = {
    protocol.FULL: "the mailbox of {} is full: try again later",
    protocol.UNKNOWN: "no sandbox is called {}",
    protocol.OTHER_TEAM: "{} is not in this sandbox's team",
    protocol.NOT_RUNNING: "{} does not run",
    protocol.NO_ANSWER: "{} does not answer: it may have got the message, or not",
}

_EPILOG = """\
exit status: 0 done; 1 not delivered to everybody, or nothing received; 2 wrong usage or refused;
3 the host offers no relay, or stopped answering

examples:
  voidbox-relay send builder compile it please
  git diff | voidbox-relay send reviewer -
  voidbox-relay receive --wait 60 --json
"""


class RelayError(Exception):
    """Something that the user is told in one line."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Relay:
    """A connection to the host's relay.

    Raises:
        RelayError: there is none.
    """

    def __init__(self) -> None:
        self._decoder = protocol.Decoder(protocol.REPLY_BYTES_MAX)
        path = os.environ.get(SOCKET_VARIABLE)
        try:
            family = socket.AF_UNIX if path else socket.AF_VSOCK
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.settimeout(_CONNECT_S)
            self._socket.connect(path or (socket.VMADDR_CID_HOST, protocol.RELAY_PORT))
        except OSError as error:
            reason = error.strerror or error
            raise RelayError(f"the host offers no relay ({reason})", NO_RELAY) from error

    def ask(self, op: str, wait_s: float = 0, **values: Any) -> Values:
        """Send a request; return its reply.

        Raises:
            RelayError: it was refused, or the host stopped answering.
        """
        request = protocol.encode(pack({"op": op, **values}))
        self._socket.settimeout(wait_s + _ANSWER_S)
        try:
            # Who refuses a connection says why and does not read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(request)
            reply = unpack(self._read_frame())
        except OSError as error:
            reason = error.strerror or error
            raise RelayError(f"the host's relay does not answer ({reason})", NO_RELAY) from error
        except (protocol.ProtocolError, PackingError) as error:
            raise RelayError(f"the host's relay sent nonsense: {error}", NO_RELAY) from error
        if "error" in reply:
            raise RelayError(reply["error"], USAGE)
        return reply

    def _read_frame(self) -> bytes:
        while True:
            payload = self._decoder.next()
            if payload is not None:
                return payload
            data = self._socket.recv(64 << 10)
            if not data:
                raise RelayError("the host's relay ended the connection", NO_RELAY)
            self._decoder.feed(data)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parse(arguments)
    try:
        status: int = options.run(options)
    except RelayError as error:
        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who read our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python flushes at its end goes there
        return NOTHING
    return status


def send(options: argparse.Namespace) -> int:
    """Do `send`."""
    outcome = Relay().ask("send", to=_plain(options.name), text=_text(options.text))["outcome"]
    if outcome == protocol.DELIVERED:
        return OK
    complain(_story(outcome, options.name))
    return NOTHING


def broadcast(options: argparse.Namespace) -> int:
    """Do `broadcast`."""
    outcomes = Relay().ask("broadcast", text=_text(options.text))["outcomes"]
    if options.json:
        _print_json(outcomes)
    else:
        for name, outcome in outcomes.items():
            if outcome != protocol.DELIVERED:
                complain(_story(outcome, name))
    if not outcomes:
        complain("nobody else of the team runs")
        return NOTHING
    return OK if set(outcomes.values()) == {protocol.DELIVERED} else NOTHING


def receive(options: argparse.Namespace) -> int:
    """Do `receive`: print what waits; where nothing does, wait for the first message."""
    relay = Relay()
    deadline = time.monotonic() + options.wait
    wanted = options.count
    while True:
        wait_s = min(protocol.WAIT_S_MAX, max(0.0, deadline - time.monotonic()))
        reply = relay.ask("receive", wait_s, wait=wait_s, count=wanted or protocol.COUNT_MAX)
        if reply["messages"]:
            break
        if time.monotonic() >= deadline:
            return NOTHING
    if not wanted:
        # What comes from now on is the next call's: a flood would have this one never end.
        wanted = len(reply["messages"]) + reply["waiting"]
    while reply["messages"]:
        for message in reply["messages"]:
            _print_json(message) if options.json else _print_message(message)
        sys.stdout.flush()
        # Only now are they gone from the mailbox.
        relay.ask("taken")
        wanted -= len(reply["messages"])
        if wanted <= 0:
            break
        reply = relay.ask("receive", wait=0, count=wanted)
    return OK


def peers(options: argparse.Namespace) -> int:
    """Do `peers`."""
    reply = Relay().ask("peers")
    if options.json:
        _print_json({"name": reply["name"], "peers": reply["peers"]})
    else:
        for name in reply["peers"]:
            _print_line(name)
    if reply["omitted"]:
        complain(f"{reply['omitted']} more are left out")
    return OK


def complain(line: str) -> None:
    """Tell the user a line."""
    _write(sys.stderr, f"voidbox-relay: {_visible(line)}\n")


def _story(outcome: str, name: str) -> str:
    return _STORIES.get(outcome, f"{{}}: {outcome}").format(repr(name[:80]))


def _plain(argument: str) -> str:
    # Whatever the locale made of the argument's bytes.
    return os.fsencode(argument).decode("utf-8", "surrogateescape")


def _text(words: list[str]) -> str:
    if words == ["-"]:
        data = sys.stdin.buffer.read(protocol.TEXT_BYTES_MAX + 1)
    else:
        data = b" ".join(os.fsencode(word) for word in words)
    if len(data) > protocol.TEXT_BYTES_MAX:
        raise RelayError(f"a message has {protocol.TEXT_BYTES_MAX} bytes at most", USAGE)
    return data.decode("utf-8", "surrogateescape")


def _print_json(value: object) -> None:
    import json  # some milliseconds that most calls need not spend

    _print_line(json.dumps(value))  # ASCII: what is no UTF-8 cannot break it


def _print_message(message: Values) -> None:
    text = message["text"].removesuffix("\n")
    if sys.stdout.isatty():
        text = _visible(text)
    # Indented, so that no line of a text can pass for another sender's message.
    _print_line(f"{message['from']}: " + text.replace("\n", "\n    "))


def _print_line(line: str) -> None:
    _write(sys.stdout, line + "\n")


def _write(stream: Any, text: str) -> None:
    stream.buffer.write(text.encode("utf-8", "surrogateescape"))
    if stream is sys.stderr:
        stream.buffer.flush()


def _visible(text: str) -> str:
    """Return it without what a terminal would obey."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else ascii(char)[1:-1] for char in text
    )


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        sys.exit(USAGE)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="voidbox-relay",
        description="Exchange messages with the other sandboxes of this sandbox's team.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    text_help = f"joined by spaces, or - for standard input; {protocol.TEXT_BYTES_MAX} bytes"

    command = commands.add_parser("send", help="send a message to one sandbox")
    command.add_argument("name", metavar="NAME")
    command.add_argument("text", metavar="TEXT", nargs="+", help=text_help)
    command.set_defaults(run=send)

    command = commands.add_parser("broadcast", help="send a message to all others of the team")
    command.add_argument("--json", action="store_true", help="print what became of each")
    command.add_argument("text", metavar="TEXT", nargs="+", help=text_help)
    command.set_defaults(run=broadcast)

    command = commands.add_parser("receive", help="print the messages that wait, oldest first")
    command.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, default=0.0, help="for the first, if none waits"
    )
    command.add_argument(
        "--count", metavar="N", type=_count, default=0, help="leave all but so many"
    )
    command.add_argument("--json", action="store_true", help="one object a line: from, text, at")
    command.set_defaults(run=receive)

    command = commands.add_parser("peers", help="print the names of the team's other sandboxes")
    command.add_argument("--json", action="store_true", help="with the own name")
    command.set_defaults(run=peers)
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError("give seconds, from 0 on")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError("give a number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
