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

from tests.unit.fuse.client import Client
from voidbox.fuse.numbers import FATTR_ATIME, FATTR_MTIME, FATTR_SIZE
from voidbox.fuse.numbers import FUSE_ROOT_ID as ROOT
from voidbox.fuse.server import Server

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(max_size=20)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700])
OFFSETS = st.integers(0, 30)
# Of two reasons either may be told; and a link on the way is one to the client, no folder.
_REASONS = dict.fromkeys([errno.ENOENT, errno.ELOOP], errno.ENOTDIR)
_REASONS[errno.EPERM] = errno.EEXIST


def split(path: str) -> tuple[str, bytes]:
    folder, _, name = path.rpartition("/")
    return folder, name.encode()


class Twins(RuleBasedStateMachine):
    forgets = True  # the client forgets all after each step; else it knows what it ever saw

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="vbfs-"))
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
        if self.forgets:
            self.client.init()
        else:
            self.client.server._session.folder.forget_all()

    def at(self, path: str) -> int:
        return self.client.path(path) if path else ROOT

    def file(self, path: str) -> int:
        """Return a node that can be opened for writing."""
        node = self.at(path)
        if stat.S_ISDIR(self.client.getattr(node).mode):
            raise IsADirectoryError(errno.EISDIR, "")
        return node

    def place(self, path: str) -> tuple[int, bytes]:
        """Return the node of the folder and a name, as the kernel finds them."""
        folder, name = split(path)
        node = self.at(folder)
        if not stat.S_ISDIR(self.client.getattr(node).mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        return node, name

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
            file = self.client.create(folder, name, mode, flags)
            self.client.write(file, data)
            self.client.release(file)

        def local(twin: Path) -> None:
            fd = os.open(twin / path, flags)
            os.write(fd, data)
            os.fchmod(fd, mode)
            os.close(fd)

        self.both(remote, local)

    @rule(path=PATHS, data=DATA, offset=OFFSETS)
    def write(self, path: str, data: bytes, offset: int) -> None:
        def remote() -> None:
            file = self.client.open(self.file(path), os.O_WRONLY)
            self.client.write(file, data, offset)
            self.client.release(file)

        def local(twin: Path) -> None:
            fd = os.open(twin / path, os.O_WRONLY | os.O_NOFOLLOW)
            os.pwrite(fd, data, offset)
            os.close(fd)

        self.both(remote, local)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        def local(twin: Path) -> None:
            fd = os.open(twin / path, os.O_WRONLY | os.O_NOFOLLOW)
            os.ftruncate(fd, size)
            os.close(fd)

        self.both(lambda: self.client.setattr(self.at(path), FATTR_SIZE, size=size), local)

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(
            lambda: self.client.rename(*self.place(old), *self.place(new)),
            lambda twin: os.rename(twin / old, twin / new),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        def remote() -> None:
            node = self.at(old)
            folder, name = self.place(new)
            self.client.link(folder, node, name)

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
            lambda: self.client.remove(*self.place(path), is_folder),
            lambda twin: (os.rmdir if is_folder else os.unlink)(twin / path),
        )

    @rule(path=PATHS, seconds=st.integers(0, 1 << 31))
    def set_mtime(self, path: str, seconds: int) -> None:
        def local(twin: Path) -> None:
            os.utime(twin / path, (seconds, seconds), follow_symlinks=False)

        both = FATTR_ATIME | FATTR_MTIME
        self.both(
            lambda: self.client.setattr(self.at(path), both, atime=seconds, mtime=seconds), local
        )

    @invariant()
    def same(self) -> None:
        assert snapshot(self.folder) == snapshot(self.twin) == self.seen(ROOT)

    def seen(self, folder: int, prefix: str = "") -> dict[str, object]:
        """What the client sees."""
        found: dict[str, object] = {}
        for name in self.client.names(folder):
            child = self.client.lookup(folder, name).node
            path = f"{prefix}{name.decode()}"
            status = self.client.getattr(child)
            if stat.S_ISDIR(status.mode):
                found[path] = (stat.S_IMODE(status.mode), "")
                found |= self.seen(child, f"{path}/")
            elif stat.S_ISLNK(status.mode):
                found[path] = (0, self.client.readlink(child).decode())
            else:
                file = self.client.open(child)
                data = self.client.read(file)
                self.client.release(file)
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


class LongTwins(Twins):
    forgets = False


LongTwins.TestCase.settings = Twins.TestCase.settings
TestLongTwins = LongTwins.TestCase
