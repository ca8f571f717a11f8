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
from voidbox.sandbox.state.store import Store

_READ_BYTES = 64 << 10
_LOOK_S = 0.1  # how often a file is looked at for more, while its sandbox lives
_EPILOG = """\
On a terminal, control characters are left out; in a pipe or a file everything is as it came.

examples:
  voidbox logs builder
  voidbox logs --follow --tail 20 builder
  voidbox logs --voidbox builder
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
    path = store.path(record.id, "owner.log" if options.voidbox else "console.log")
    follower = _Follower(path, _terminal_writer() if sys.stdout.isatty() else _write)
    if options.tail is not None:
        follower.skip_to_tail(int(options.tail))
    follower.copy()
    if options.follow:
        _follow(store, record.id, follower)
    follower.close()
    return exit_status.OK


def _follow(store: Store, id: str, follower: _Follower) -> None:
    """Copy what comes until the sandbox has ended."""
    fd = store.open_owner(id)
    poll = select.poll()
    if fd is not None:
        poll.register(fd, select.POLLIN)
    try:
        while True:
            has_ended = bool(poll.poll(_LOOK_S * 1000)) if fd is not None else True
            follower.copy()
            if has_ended:
                return
    finally:
        if fd is not None:
            os.close(fd)


class _Follower:
    """Reads a log as it grows, also across its being set aside for a new one."""

    def __init__(self, path: str, write: Callable[[bytes], None]) -> None:
        self._path = path
        self._write = write
        self._fd = -1
        self._open()

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass  # not begun yet; or the sandbox has been removed
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error

    def skip_to_tail(self, lines: int) -> None:
        """Go to the beginning of so many last lines."""
        if self._fd < 0:
            return
        at = os.lseek(self._fd, 0, os.SEEK_END)
        missing = lines + 1  # line ends before the place: the last one ends the last line
        if at and os.pread(self._fd, 1, at - 1) != b"\n":
            missing = lines
        while at > 0 and missing > 0:
            start = max(0, at - _READ_BYTES)
            data = os.pread(self._fd, at - start, start)
            end = len(data)
            while missing > 0 and (end := data.rfind(b"\n", 0, end)) >= 0:
                missing -= 1
                if not missing:
                    os.lseek(self._fd, start + end + 1, os.SEEK_SET)
                    return
            at = start
        os.lseek(self._fd, 0, os.SEEK_SET)

    def copy(self) -> None:
        """Write what there is."""
        if self._fd < 0:
            self._open()
        while self._fd >= 0:
            try:
                while data := os.read(self._fd, _READ_BYTES):
                    self._write(data)
            except OSError as error:
                raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
            if not self._has_been_replaced():
                return
            self.close()
            self._open()

    def _has_been_replaced(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:  # removed: what is open is all there will be
            return False

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
