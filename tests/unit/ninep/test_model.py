"""Random operations on a shared folder, and the same by os.* on its twin: both stay the same."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.ninep.client import ROOT, Client
from voidbox.ninep import numbers
from voidbox.ninep.server import Server

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(max_size=20)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700])
OFFSETS = st.integers(0, 30)
# A walk that ends on its way does not say why; and of two reasons either may be told.
_REASONS = dict.fromkeys([None, errno.ENOENT, errno.ELOOP], errno.ENOTDIR)
_REASONS[errno.EPERM] = errno.EEXIST


def split(path: str) -> tuple[str, bytes]:
    folder, _, name = path.rpartition("/")
    return folder, name.encode()


class Twins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="vb9p-"))
        self.folder, self.twin = self.base / "shared", self.base / "twin"
        for folder in (self.folder, self.twin):
            folder.mkdir()
        self.client = Client(Server(str(self.folder)))

    def teardown(self) -> None:
        self.client.server.close()
        shutil.rmtree(self.base)

    def both(self, remote: Callable[[], object], local: Callable[[Path], object]) -> None:
        """Do it in both places: it works in both, or fails in both, and for the same reason."""
        outcomes = []
        for call in (remote, lambda: local(self.twin)):
            try:
                call()
            except OSError as error:
                outcomes.append(_REASONS.get(error.errno, error.errno))
            else:
                outcomes.append(0)
        assert outcomes[0] == outcomes[1], outcomes
        self.client.version()
        self.client.attach()

    def at(self, path: str) -> int:
        return self.client.path(path) if path else ROOT

    def place(self, path: str) -> tuple[int, bytes]:
        """Return a fid of the folder and a name, as the kernel finds them."""
        folder, name = split(path)
        fid = self.at(folder)
        if not stat.S_ISDIR(self.client.getattr(fid).mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        return fid, name

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: str, mode: int) -> None:
        def local(twin: Path) -> None:
            os.mkdir(twin / path)
            os.chmod(twin / path, mode)

        self.both(lambda: self.client.mkdir(*self.place(path), mode), local)

    @rule(path=PATHS, data=DATA, mode=MODES)
    def create(self, path: str, data: bytes, mode: int) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR

        def remote() -> None:
            folder, name = self.place(path)
            self.client.write(self.client.create(folder, name, mode, flags), data)

        def local(twin: Path) -> None:
            fd = os.open(twin / path, flags)
            os.write(fd, data)
            os.fchmod(fd, mode)
            os.close(fd)

        self.both(remote, local)

    @rule(path=PATHS, data=DATA, offset=OFFSETS)
    def write(self, path: str, data: bytes, offset: int) -> None:
        def remote() -> None:
            fid = self.client.open(self.at(path), os.O_WRONLY)
            self.client.write(fid, data, offset)

        def local(twin: Path) -> None:
            fd = os.open(twin / path, os.O_WRONLY | os.O_NOFOLLOW)
            os.pwrite(fd, data, offset)
            os.close(fd)

        self.both(remote, local)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        valid = numbers.P9_SETATTR_SIZE

        def local(twin: Path) -> None:
            fd = os.open(twin / path, os.O_WRONLY | os.O_NOFOLLOW)
            os.ftruncate(fd, size)
            os.close(fd)

        self.both(lambda: self.client.setattr(self.at(path), valid, size=size), local)

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(
            lambda: self.client.renameat(*self.place(old), *self.place(new)),
            lambda twin: os.rename(twin / old, twin / new),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        def remote() -> None:
            fid = self.at(old)
            folder, name = self.place(new)
            self.client.link(folder, fid, name)

        def local(twin: Path) -> None:
            os.link(twin / old, twin / new, follow_symlinks=False)

        self.both(remote, local)

    @rule(path=PATHS)
    def symlink(self, path: str) -> None:
        self.both(
            lambda: self.client.symlink(*self.place(path), b"nowhere"),
            lambda twin: os.symlink("nowhere", twin / path),
        )

    @rule(path=PATHS, is_folder=st.booleans())
    def remove(self, path: str, is_folder: bool) -> None:
        self.both(
            lambda: self.client.unlinkat(*self.place(path), is_folder),
            lambda twin: (os.rmdir if is_folder else os.unlink)(twin / path),
        )

    @rule(path=PATHS, seconds=st.integers(0, 1 << 31))
    def set_mtime(self, path: str, seconds: int) -> None:
        def local(twin: Path) -> None:
            os.utime(twin / path, (seconds, seconds), follow_symlinks=False)

        self.both(
            lambda: self.client.setattr(self.at(path), 0x1B0, atime=seconds, mtime=seconds), local
        )

    @invariant()
    def same(self) -> None:
        assert snapshot(self.folder) == snapshot(self.twin) == self.seen(ROOT)

    def seen(self, fid: int, prefix: str = "") -> dict[str, object]:
        """What the client sees."""
        found: dict[str, object] = {}
        for name in self.client.names(fid):
            child = self.client.walk(fid, name)
            path = f"{prefix}{name.decode()}"
            status = self.client.getattr(child)
            if stat.S_ISDIR(status.mode):
                found[path] = (stat.S_IMODE(status.mode), "")
                found |= self.seen(child, f"{path}/")
            elif stat.S_ISLNK(status.mode):
                found[path] = (0, self.client.readlink(child).decode())
            else:
                data = self.client.read(self.client.open(self.client.walk(child)))
                found[path] = (stat.S_IMODE(status.mode), data, status.nlink)
        return found


def snapshot(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        status, name = path.lstat(), str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = (0, os.readlink(path))
        elif path.is_dir():
            found[name] = (stat.S_IMODE(status.st_mode), "")
        else:
            found[name] = (stat.S_IMODE(status.st_mode), path.read_bytes(), status.st_nlink)
    return found


Twins.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestTwins = Twins.TestCase
