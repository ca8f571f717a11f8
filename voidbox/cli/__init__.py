"""The command line: one module a verb, imported only when it is used."""

from __future__ import annotations

import errno
import os
import sys

from voidbox.cli import exit_status
from voidbox.cli.complain import complain
from voidbox.cli.verbs import OF_THIS_HOST, VERBS, module_of, nearest, usage

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # said by much, but not by a write


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    _occupy_closed_streams()
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale cannot say
    try:
        status = _main(sys.argv[1:] if argv is None else argv)
    except SystemExit as error:  # argparse, after --help or a mistake
        status = error.code if isinstance(error.code, int) else exit_status.USAGE
    except OSError as error:
        status = _output_failed(error)
    return _flush() or status


def _occupy_closed_streams() -> None:
    """Keep the numbers of closed standard streams from becoming those of sockets and guests.

    They stay useless: standard input can only be written, the others only be read.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # the lowest number that is free is this one
            os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY)


def _flush() -> int:
    """Write what is left for standard output, here where its failure can be told."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return _output_failed(error)
    return exit_status.OK


def _output_failed(error: OSError) -> int:
    if error.errno in _EXHAUSTED:
        complain(f"voidbox: {error.strerror}: see ulimit")
        return exit_status.USAGE
    # What stays in its buffer would fail again at exit.
    sys.stdout = None
    if isinstance(error, BrokenPipeError):
        return exit_status.BROKEN_PIPE
    complain(f"voidbox: cannot write the output: {error.strerror}")
    return exit_status.USAGE


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from voidbox.version import __version__

        print(f"voidbox {__version__}")
        return exit_status.OK
    if not arguments:
        complain(usage().rstrip())
        return exit_status.USAGE
    is_afar = arguments[0].partition("=")[0] == "--remote"
    if is_afar:
        arguments = _take_remote(arguments)
        if not arguments:
            complain("usage: voidbox --remote URL VERB [OPTION …]; see --help")
            return exit_status.USAGE
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-h", "--help") or (verb == "help" and not rest):
        print(usage(), end="")
        return exit_status.OK
    if verb == "help":
        verb, rest = rest[0], ["--help"]
    if verb not in VERBS:
        meant = nearest(verb)
        hint = f": do you mean {meant}?" if meant else ""
        complain(f"voidbox: no such verb: {verb}{hint}\nusage: voidbox VERB [OPTION …]; see --help")
        return exit_status.USAGE
    if os.environ.get("VOIDBOX_REMOTE"):
        if verb not in OF_THIS_HOST:
            return _run_verb("afar", [verb, *rest])
        if is_afar:
            complain(f"voidbox: {verb} is about this host: leave out --remote")
            return exit_status.USAGE
        del os.environ["VOIDBOX_REMOTE"]
    return _run_verb(verb, rest)


def _take_remote(arguments: list[str]) -> list[str]:
    """Note which server is meant; return what follows."""
    _, is_glued, url = arguments[0].partition("=")
    if not is_glued:
        url = arguments[1] if len(arguments) > 1 else ""
    os.environ["VOIDBOX_REMOTE"] = url
    return arguments[1 if is_glued else 2 :]


def _run_verb(verb: str, arguments: list[str]) -> int:
    from voidbox.errors import VoidboxError

    try:
        status: int = __import__(module_of(verb), fromlist=["main"]).main(arguments)
    except VoidboxError as error:
        complain(f"voidbox: {error}")
        return exit_status.USAGE
    except KeyboardInterrupt:
        return exit_status.INTERRUPTED
    except OSError:
        raise  # the output's
    except Exception as error:
        if os.environ.get("VOIDBOX_DEBUG"):
            raise
        complain(f"voidbox failed: {error!r}: this is a bug; VOIDBOX_DEBUG=1 shows where")
        return exit_status.INTERNAL
    return status
