"""A tree from Debian's packages, by mmdebstrap or, for root, by debootstrap.

mmdebstrap needs no root: in a user namespace of its own it makes a tar archive, whose owners and
device nodes are what they should be, and which is applied like any layer.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO, BinaryIO, NamedTuple

from voidbox.images.errors import ImageError
from voidbox.images.limits import DEFAULT_LIMITS, Limits
from voidbox.images.tar_layers import Applied, apply_layer
from voidbox.images.tree import Regular, Tree

DEFAULT_SUITE = "bookworm"
_ARCHITECTURE = "amd64"
_COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?")  # Debian Policy, 5.6.1
_SUITE = re.compile(r"[a-z][a-z0-9-]*")
_SOURCES = "etc/apt/sources.list"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_LAST_LINES = 12
_TARGETS_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
_HOW_TO_INSTALL = "install it: sudo apt-get install mmdebstrap uidmap"

OnLine = Callable[[str], None]


class Source(NamedTuple):
    """A part of an archive of packages, as in sources.list(5)."""

    uri: str
    release: str
    component: str

    def __str__(self) -> str:
        return f"deb {self.uri} {self.release} {self.component}"


def build_debian(
    tree: Tree,
    packages: Sequence[str] = (),
    *,
    suite: str = DEFAULT_SUITE,
    sources: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_line: OnLine | None = None,
) -> Applied:
    """Fill an empty tree with a minimal Debian and these packages.

    What is fetched is checked against the host's keys of Debian's archive.

    Args:
        packages: beside the essential ones and apt.
        suite: a release's code name.
        sources: lines as in sources.list(5); the host's own for this suite if None.
        on_line: called with each line that the program says of its progress, in another thread.
    Raises:
        ImageError: a name that cannot be, no program to do it, or it failed: with what it said.
        OSError: reading or writing failed.
    """
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise ImageError(f"{package!r} is no name of a Debian package")
    if not _SUITE.fullmatch(suite):
        raise ImageError(f"{suite!r} is no name of a Debian release")
    lines = list(sources) if sources else [str(source) for source in find_sources(suite)]
    make = _find_program()
    with make(packages, suite, lines, on_line or (lambda line: None)) as stream:
        applied = apply_layer(tree, stream, limits)
    _hide_credentials(tree)
    return applied


def find_sources(suite: str) -> list[Source]:
    """Return the host's own sources of a Debian release.

    Raises:
        ImageError: it has none.
    """
    if shutil.which("apt-get"):
        command = ["apt-get", "indextargets", "--format", _TARGETS_FORMAT, "Created-By: Packages"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = _parse_targets(result.stdout, suite)
        if any(source.release == suite for source in found):
            return found
    raise ImageError(
        f"this host's apt has no source of Debian's {suite}: name a mirror with --mirror URL"
    )


def _parse_targets(text: str, suite: str) -> list[Source]:
    """Return what of apt-get's list is Debian's and of this release."""
    releases = (suite, f"{suite}-updates", f"{suite}-security")
    found: dict[Source, None] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 3:
            continue
        source = Source(*fields)
        if source.release in releases and source.component in _COMPONENTS:
            found[source] = None
    return list(found)


_Make = Callable[
    [Sequence[str], str, Sequence[str], OnLine], contextlib.AbstractContextManager[BinaryIO]
]


def _find_program() -> _Make:
    """Return what makes a tar archive of a Debian."""
    is_root = os.geteuid() == 0
    if shutil.which("mmdebstrap"):
        if not is_root and not shutil.which("newuidmap"):
            raise ImageError("mmdebstrap needs newuidmap; install it: sudo apt-get install uidmap")
        return _mmdebstrap
    if shutil.which("debootstrap"):
        if is_root:
            return _debootstrap
        raise ImageError(f"debootstrap needs root, mmdebstrap does not; {_HOW_TO_INSTALL}")
    raise ImageError(f"there is no mmdebstrap; {_HOW_TO_INSTALL}")


@contextlib.contextmanager
def _mmdebstrap(
    packages: Sequence[str], suite: str, sources: Sequence[str], on_line: OnLine
) -> Iterator[BinaryIO]:
    command = ["mmdebstrap", "--variant=minbase", "--format=tar"]
    command += [f"--architectures={_ARCHITECTURE}"]
    command += [f"--mode={'root' if os.geteuid() == 0 else 'unshare'}"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    # Sources by a file of ours, not as arguments: they may hold a password.
    with tempfile.TemporaryFile("w+") as listed:
        listed.write("".join(f"{line}\n" for line in sources))
        listed.seek(0)
        with _output_of([*command, suite, "-", "-"], on_line, stdin=listed) as stream:
            yield stream


@contextlib.contextmanager
def _debootstrap(
    packages: Sequence[str], suite: str, sources: Sequence[str], on_line: OnLine
) -> Iterator[BinaryIO]:
    uri, release, component = sources[0].split()[-3:]
    with tempfile.TemporaryDirectory(prefix="voidbox-debian-") as folder:
        os.chmod(folder, 0o755)
        command = ["debootstrap", "--variant=minbase", f"--arch={_ARCHITECTURE}"]
        command.append(f"--components={component}")
        if packages:
            command.append(f"--include={','.join(packages)}")
        last: deque[str] = deque(maxlen=_LAST_LINES)  # it tells all that it does on its output
        with _output_of([*command, release, folder, uri], on_line, last=last) as lines:
            _tell(lines, last, on_line)
        with open(os.path.join(folder, _SOURCES), "w") as file:
            file.write("".join(f"{line}\n" for line in sources))
        command = ["tar", "-C", folder, "--sort=name", "--numeric-owner", "--one-file-system"]
        command += ["--format=posix", "--xattrs", "--xattrs-include=*", "--exclude=./proc/*"]
        command += ["--exclude=./sys/*", "--exclude=./var/cache/apt/archives/*.deb"]
        with _output_of([*command, "-cf", "-", "."], on_line) as stream:
            yield stream


@contextlib.contextmanager
def _output_of(
    command: Sequence[str],
    on_line: OnLine,
    *,
    stdin: IO[str] | None = None,
    last: deque[str] | None = None,
) -> Iterator[BinaryIO]:
    """Run a command and yield its output; it has ended when this does, whatever happens.

    Raises:
        ImageError: it failed; with its last words.
    """
    last = deque(maxlen=_LAST_LINES) if last is None else last
    failure: ImageError | None = None
    with _started(command, stdin) as process:
        output = process.stdout
        assert output is not None and process.stderr is not None
        teller = threading.Thread(
            target=_tell, args=(process.stderr, last, on_line), name="debian-lines"
        )
        teller.start()
        try:
            yield output  # type: ignore[misc]  # a BufferedReader does what a BinaryIO does
        except BaseException as error:
            # An archive cut short has a reason: whatever the command says of itself.
            if not isinstance(error, ImageError) or output.read(1):
                process.terminate()
                raise
            failure = error
        finally:
            output.close()
            status = process.wait()
            teller.join()
    if status:
        errors = [line.removeprefix("E: ") for line in last if line.startswith("E: ")]
        words = [*errors[:1], *list(last)[-1:], f"status {status}"][0]
        raise ImageError(f"{command[0]} failed: {words}") from failure
    if failure is not None:
        raise failure


def _started(command: Sequence[str], stdin: IO[str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )


def _tell(said: IO[bytes] | BinaryIO, last: deque[str], on_line: OnLine) -> None:
    for line in said:
        text = line.decode("utf-8", "replace").rstrip()
        last.append(text)
        on_line(text)


def _hide_credentials(tree: Tree) -> None:
    """Take names and passwords out of the image's list of sources."""
    node = tree.find(_SOURCES)
    if isinstance(node, Regular):
        text = tree.read(node, limit_bytes=1 << 20).decode("utf-8", "surrogateescape")
        clean = _CREDENTIALS.sub("", text)
        if clean != text:
            new = tree.add_bytes(clean.encode("utf-8", "surrogateescape"))
            node.size, node.extents = new.size, new.extents
