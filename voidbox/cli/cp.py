"""`voidbox cp`: files and folders between host and sandbox."""

from __future__ import annotations

import argparse
import os
import posixpath
from collections.abc import Callable

from voidbox.agent.aio import AsyncAgent
from voidbox.agent.call import RequestFailed
from voidbox.cli import exit_status, interrupt
from voidbox.cli.attach import status_of
from voidbox.cli.complain import complain
from voidbox.cli.in_sandbox import check_ended
from voidbox.cli.output import print_json
from voidbox.cli.parser import make_parser
from voidbox.cli.progress import ProgressBar
from voidbox.cli.sandboxes import check_answers, open_store
from voidbox.errors import AgentError, ConfigError, SandboxTimeout
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.endpoint import StoredEndpoint
from voidbox.sandbox.session import Session
from voidbox.sandbox.state.names import is_id, is_name
from voidbox.sandbox.transfer.transfer import TransferResult
from voidbox.sdk.files import AsyncFiles

_EPILOG = """\
As with cp -r, a target that is a folder gets the source into it, and one that ends with / must be a
folder. A source folder that ends with /. or /.. is copied without its name. Paths in a sandbox
begin in its workdir, /workspace by default. Write ./a:b for a file of the host with a colon in its
name.

Files appear whole or not at all, their contents checked; permissions, times and links go along.
What the guest sends is never written outside the target. What cannot be read in a folder of the
guest is left out and said, and the exit status is 1.

examples:
  voidbox cp script.py builder:
  voidbox cp project builder:/workspace/
  voidbox cp builder:/workspace/project/dist .
  voidbox cp a.txt b.txt builder:/tmp/
"""


class _Place(NamedTuple):
    """A file or folder: of a sandbox, or of the host, where sandbox is ""."""

    sandbox: str
    path: str


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("cp", "Copy files and folders into or out of a sandbox.", _EPILOG)
    parser.usage = (
        "voidbox cp [OPTION …] PATH … NAME:PATH\n       voidbox cp [OPTION …] NAME:PATH … PATH"
    )
    parser.add_argument("-u", "--user", metavar="NAME", help="whose they are in the sandbox")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no bar")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what happens, on stderr")
    parser.add_argument("--json", action="store_true", help="print what was copied as JSON")
    parser.add_argument("places", nargs="+", metavar="PATH", help="what to copy, then where to")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    return copy(make_options().parse_args(argv), _open_session)


def _open_session(name: str, options: argparse.Namespace) -> Session:
    store = open_store()
    record = store.read(name)
    check_ended(store, record)
    check_answers(record)
    agent = AsyncAgent(
        StoredEndpoint(store, record),
        store.secret(record.id),
        log=complain if options.verbose else lambda line: None,
    )
    return Session(agent, record.name, None, record.workdir, options.user or record.user)


def copy(
    options: argparse.Namespace, open_session: Callable[[str, argparse.Namespace], Session]
) -> int:
    """Copy what the options say; returns the exit status.

    Args:
        open_session: returns the session of a sandbox, by its name.
    """
    if len(options.places) < 2:
        raise ConfigError("give what to copy, and where to: voidbox cp FILE NAME:PATH")
    *sources, target = map(_parse, options.places)
    names = {place.sandbox for place in sources}
    if len(names) > 1 or bool(target.sandbox) == bool(names - {""}):
        raise ConfigError("copy from the host into one sandbox, NAME:PATH, or from one to the host")
    session = open_session(target.sandbox or sources[0].sandbox, options)
    copier = _Copier(session, options.quiet or options.json)
    try:
        results = interrupt.run(copier.copy(sources, target))
    except RequestFailed as error:
        complain(f"voidbox: {session.name}: {error}")
        return exit_status.USAGE
    except (AgentError, SandboxTimeout) as error:
        complain(f"voidbox: {error}")
        return status_of(error)
    finally:
        session.agent.close()
    if options.json:
        print_json(
            [_describe(place, result) for place, result in zip(sources, results, strict=True)]
        )
    return exit_status.INCOMPLETE if any(result.errors for result in results) else exit_status.OK


def _parse(text: str) -> _Place:
    name, colon, path = text.partition(":")
    if not colon or not (is_name(name) or is_id(name)):
        if colon and "/" not in name:
            raise ConfigError(
                f"{name!r} is no sandbox's name; begin the path of a file of the host with ./"
            )
        if text == "-":
            raise ConfigError(
                "cp copies no streams: tar c FOLDER | voidbox exec -i NAME -- tar x does"
            )
        return _Place("", text)
    return _Place(name, path or ".")


def _describe(source: _Place, result: TransferResult) -> dict[str, object]:
    return {
        "source": f"{source.sandbox}:{source.path}" if source.sandbox else source.path,
        "files": result.files,
        "bytes": result.bytes,
        "skipped": list(result.skipped),
        "errors": result.errors,
        "seconds": round(result.seconds, 3),
        "carrier": result.carrier,
    }


class _Copier:
    def __init__(self, session: Session, is_quiet: bool) -> None:
        self._session = session
        self._files = AsyncFiles(session)
        self._is_quiet = is_quiet

    async def copy(self, sources: list[_Place], target: _Place) -> list[TransferResult]:
        """Copy all; returns what was copied for each."""
        is_upload = bool(target.sandbox)
        is_folder = await (self._is_guest_folder if is_upload else _is_host_folder)(target.path)
        if not is_folder and (len(sources) > 1 or target.path.endswith("/")):
            raise ConfigError(f"{target.path} is no folder")
        names = [_last(source) for source in sources] if is_folder else [""]
        twice = {name for name in names if name and names.count(name) > 1}
        if twice:
            raise ConfigError(f"more than one of these would be {target.path}/{min(twice)}")
        results = []
        for source, name in zip(sources, names, strict=True):
            path = f"{target.path.rstrip('/')}/{name}" if name else target.path
            with ProgressBar(name or source.path, self._is_quiet) as bar:
                do = self._files.upload if is_upload else self._files.download
                result = await do(source.path.rstrip("/") or "/", path, progress=bar.update)
            for line in result.skipped:
                complain(f"voidbox: left out {line}")
            results.append(result)
        return results

    async def _is_guest_folder(self, path: str) -> bool:
        try:
            info = await self._files.stat(path)
        except RequestFailed as error:
            if error.code in ("ENOENT", "ENOTDIR"):
                return False
            raise
        return info.type == "folder"


async def _is_host_folder(path: str) -> bool:
    return os.path.isdir(path)


def _last(place: _Place) -> str:
    """Return what a copy is called in a folder; "" if what is in it goes there without a name."""
    path = place.path.rstrip("/")
    if posixpath.basename(path) in (".", ".."):
        return ""
    return posixpath.basename(path) or "root"
