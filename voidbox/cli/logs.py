"""`voidbox logs`: what a guest's console showed, or what voidbox says of the sandbox."""

from __future__ import annotations

import argparse
import codecs
import os
import select
import sys
from collections.abc import Callable

from voidbox.cli import exit_status
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import open_store
from voidbox.errors import ConfigError
from voidbox.sandbox.log_file import LogFile
from voidbox.sandbox.state.store import Store

_LOOK_S = 0.1  # how often a file is looked at for more, while its sandbox lives
_EPILOG = """\
On a terminal, control characters are left out; in a pipe or a file everything is as it came.

examples:
  voidbox logs builder
  voidbox logs --follow --tail 20 builder
  voidbox logs --voidbox builder
  voidbox logs --http builder
"""


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("logs", "Show a sandbox's log.", _EPILOG)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    parser.add_argument("-n", "--tail", metavar="LINES", help="begin with so many last lines")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--console", action="store_true", help="what the guest's console showed (default)"
    )
    which.add_argument(
        "--voidbox", action="store_true", help="what voidbox did, refused and met with"
    )
    which.add_argument(
        "--http", action="store_true", help="what guarded hosts were asked, a line of JSON each"
    )
    parser.add_argument("name", metavar="NAME", help="the sandbox's name or ID")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    if options.tail is not None and not (options.tail.isascii() and options.tail.isdigit()):
        raise ConfigError(f"--tail {options.tail}: give a number of lines")
    store = open_store()
    record = store.read(options.name)
    if sys.stdout is None:
        return exit_status.OK
    name = "owner.log" if options.voidbox else "http.log" if options.http else "console.log"
    path = store.path(record.id, name)
    write = writer()
    log = LogFile(path)
    if options.tail is not None:
        log.skip_to_tail(int(options.tail))
    _copy(log, write)
    if options.follow:
        _follow(store, record.id, lambda: _copy(log, write))
    log.close()
    return exit_status.OK


def _follow(store: Store, id: str, copy: Callable[[], None]) -> None:
    """Copy what comes until the sandbox has ended."""
    fd = store.open_owner(id)
    poll = select.poll()
    if fd is not None:
        poll.register(fd, select.POLLIN)
    try:
        while True:
            has_ended = bool(poll.poll(_LOOK_S * 1000)) if fd is not None else True
            copy()
            if has_ended:
                return
    finally:
        if fd is not None:
            os.close(fd)


def _copy(log: LogFile, write: Callable[[bytes], None]) -> None:
    """Write what there is."""
    while data := log.read():
        write(data)


def writer() -> Callable[[bytes], None]:
    """Return what writes a log to standard output."""
    return _terminal_writer() if sys.stdout.isatty() else _write


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _terminal_writer() -> Callable[[bytes], None]:
    """Return what writes a guest's words so that they do nothing to the terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(data: bytes) -> None:
        text = decoder.decode(data)
        sys.stdout.write("".join(c for c in text if c.isprintable() or c in "\n\t"))
        sys.stdout.flush()

    return write
