"""What the messages do, each by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.ninep.client import MSIZE, ROOT, Client, text
from voidbox.errors import ConfigError
from voidbox.ninep import numbers
from voidbox.ninep.numbers import P9_NOFID
from voidbox.ninep.server import GUEST_UID, Server
from voidbox.ninep.session import MSIZE_MAX, NOBODY


def fails(number: int, call: Callable[..., object], *arguments: object, **values: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **values)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# Sessions.


def test_version(server: Server) -> None:
    client = Client(server, attaches=False)
    fails(errno.EPROTO, client.attach)  # nothing comes before it
    assert client.version(8192) == (8192, b"9P2000.L")
    assert client.version(1 << 31) == (MSIZE_MAX, b"9P2000.L")
    assert client.version(8192, b"9P2000.u") == (8192, b"unknown")
    fails(errno.EPROTO, client.attach)
    fails(errno.EINVAL, client.version, 4095)


def test_a_new_version_ends_the_session(client: Client, folder: Path) -> None:
    (folder / "a").write_text("a")
    client.open(client.path("a"))
    assert (client.server.fids, client.server.descriptors) == (2, 3)
    client.version()
    assert (client.server.fids, client.server.descriptors) == (0, 1)
    fails(errno.EBADF, client.getattr, ROOT)
    client.attach()


def test_attach(client: Client) -> None:
    fails(errno.EINVAL, client.attach, ROOT)  # in use
    fails(errno.EINVAL, client.attach, P9_NOFID)
    body = struct.pack("<II", 9, P9_NOFID) + text(b"") + text(b"/etc") + bytes(4)
    fails(errno.ENOENT, client.send, numbers.P9_TATTACH, body)
    body = struct.pack("<II", 9, 3) + text(b"") + text(b"") + bytes(4)
    fails(errno.EINVAL, client.send, numbers.P9_TATTACH, body)
    fails(errno.EOPNOTSUPP, client.send, numbers.P9_TAUTH, bytes(12))
    assert client.send(numbers.P9_TFLUSH, b"\x01\x02") == b""


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "missing"):
        with pytest.raises(ConfigError, match="cannot share"):
            Server(str(tmp_path / name))


# Walking.


def test_walk(client: Client, folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_text("c")
    fid = client.path("a/b/c")
    assert client.read(client.open(fid)) == b"c"
    fails(errno.ENOENT, client.path, "x")
    with pytest.raises(NotADirectoryError, match="2 of 4"):
        client.walk(ROOT, b"a", b"b", b"x", b"y")
    fails(errno.ENOTDIR, client.walk, client.path("a/b/c"), b"d")
    with pytest.raises(NotADirectoryError, match="3 of 4"):
        client.path("a/b/c/d")
    fails(errno.EINVAL, client.walk, ROOT, to=fid)  # in use
    fails(errno.EBADF, client.walk, 999)
    moved = client.path("a")
    assert client.walk(moved, b"b", to=moved) == moved
    assert client.names(moved) == {b"c"}


def test_dots_lead_nowhere(client: Client, folder: Path) -> None:
    (folder / "a").mkdir()
    root = client.getattr(ROOT).qid
    assert client.getattr(client.walk(ROOT, b"..", b"..")).qid == root
    for name in (b"..", b".", b"", b"a/..", b"/", b"/etc", b"a\0b"):
        fails(errno.EINVAL, client.walk, client.path("a"), name)
        if name != b"..":
            fails(errno.EINVAL, client.walk, ROOT, name)
        fails(errno.EINVAL, client.mkdir, ROOT, name)
        fails(errno.EINVAL, client.create, ROOT, name)
        fails(errno.EINVAL, client.mknod, ROOT, name, stat.S_IFREG)
        fails(errno.EINVAL, client.symlink, ROOT, name, b"x")
        fails(errno.EINVAL, client.link, ROOT, ROOT, name)
        fails(errno.EINVAL, client.unlinkat, ROOT, name)
        fails(errno.EINVAL, client.renameat, ROOT, name, ROOT, b"x")
        fails(errno.EINVAL, client.renameat, ROOT, b"a", ROOT, name)
        fails(errno.EINVAL, client.rename, client.path("a"), ROOT, name)
    fails(errno.ENAMETOOLONG, client.walk, ROOT, b"x" * 256)
    assert os.listdir(folder) == ["a"]


def test_the_guest_keeps_no_contents(client: Client, folder: Path) -> None:
    """Linux reads a version of 0 as: others change this file."""
    (folder / "a").write_text("a")
    fid = client.path("a")
    before = client.getattr(fid).qid
    (folder / "a").write_text("changed")
    assert client.getattr(fid).qid == before
    opened = client.send(numbers.P9_TLOPEN, struct.pack("<II", fid, os.O_RDONLY))
    walk = struct.pack("<IIH", ROOT, client.new(), 1) + text(b"a")
    walked = client.send(numbers.P9_TWALK, walk)
    for _type, version, path in (
        before,
        struct.unpack_from("<BIQ", opened),
        struct.unpack_from("<BIQ", walked, 2),
    ):
        assert (version, path) == (0, before[2])


def test_links_are_the_guests_to_follow(client: Client, folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent / "outside")
    (folder / "file").symlink_to(folder.parent / "outside/secret")
    fid = client.path("out")
    assert stat.S_ISLNK(client.getattr(fid).mode)
    assert client.readlink(fid) == os.fsencode(folder.parent / "outside")
    fails(errno.ENOTDIR, client.walk, fid, b"secret")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        fails(errno.ELOOP, client.open, client.path("file"), flags)
    fails(errno.ELOOP, client.create, ROOT, b"file")
    fails(errno.ELOOP, client.setattr, client.path("file"), numbers.P9_SETATTR_SIZE)
    fails(errno.EOPNOTSUPP, client.setattr, client.path("file"), numbers.P9_SETATTR_MODE, mode=0)
    fails(errno.ENOTDIR, client.mkdir, fid, b"x")
    fails(errno.EOPNOTSUPP, client.xattrwalk, client.path("file"), b"user.x")
    client.setattr(client.path("file"), 0x1A0, mtime=5)  # the link's own
    assert os.lstat(folder / "file").st_mtime == 5
    assert (folder / "file").stat().st_mtime != 5
    assert (folder.parent / "outside/secret").read_text() == "the secret"


def test_the_hosts_devices_are_not_opened(client: Client, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY):
        fails(errno.EACCES, client.open, client.path("fifo"), flags)
        fails(errno.EACCES, client.create, ROOT, b"fifo", flags=flags | os.O_CREAT)
    for kind in (stat.S_IFBLK, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFLNK):
        fails(errno.EPERM, client.mknod, ROOT, b"dev", kind | 0o666)
    for name, kind in ((b"f", stat.S_IFIFO), (b"s", stat.S_IFSOCK), (b"r", stat.S_IFREG)):
        client.mknod(ROOT, name, kind | 0o4666)
        assert os.lstat(folder / os.fsdecode(name)).st_mode == kind | 0o666
    fails(errno.EPERM, client.link, ROOT, client.path("fifo"), b"another")


# Files.


def test_create_write_read(client: Client, folder: Path) -> None:
    fid = client.create(ROOT, b"new", 0o4640)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o640
    assert client.write(fid, b"hello") == 5
    assert client.write(fid, b"!", 10) == 1
    assert (folder / "new").read_bytes() == b"hello\0\0\0\0\0!"
    assert client.read(fid, 3, 4) == b"lo\0\0"
    assert client.read(fid, 100) == b""
    client.fsync(fid)
    client.fsync(fid, 1)
    assert client.getattr(fid).size == 11
    os.unlink(folder / "new")
    assert client.read(fid, 0, 5) == b"hello"  # as anywhere
    client.setattr(fid, numbers.P9_SETATTR_SIZE, size=2)
    assert client.getattr(fid).size == 2
    client.clunk(fid)
    fails(errno.EBADF, client.read, fid)


def test_create_what_exists(client: Client, folder: Path) -> None:
    (folder / "old").write_text("old")
    fails(errno.EEXIST, client.create, ROOT, b"old", flags=os.O_CREAT | os.O_EXCL | os.O_RDWR)
    assert client.read(client.create(ROOT, b"old")) == b"old"
    client.create(ROOT, b"old", flags=os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    assert (folder / "old").read_text() == ""


def test_open_modes(client: Client, folder: Path) -> None:
    (folder / "f").write_text("text")
    (folder / "d").mkdir()
    reader = client.open(client.path("f"))
    fails(errno.EBADF, client.write, reader, b"x")
    fails(errno.EINVAL, client.open, reader)  # it is open
    fails(errno.EBADF, client.read, client.path("f"))
    fails(errno.EBADF, client.read, client.open(client.path("f"), os.O_WRONLY))
    fails(errno.EINVAL, client.open, client.path("f"), 3)
    fails(errno.ENOTDIR, client.open, client.path("f"), os.O_DIRECTORY)
    fails(errno.EISDIR, client.open, client.path("d"), os.O_RDWR)
    fails(errno.EISDIR, client.read, client.open(client.path("d")))
    appender = client.open(client.path("f"), os.O_WRONLY | os.O_APPEND)
    with open(folder / "f", "a") as file:
        file.write("+host")
    client.write(appender, b"+guest", 4)  # where the guest thought that the end is
    assert (folder / "f").read_text() == "text+host+guest"
    client.open(client.path("f"), os.O_WRONLY | os.O_TRUNC)
    assert (folder / "f").read_text() == ""


def test_offsets_have_an_end(client: Client, folder: Path) -> None:
    fid = client.create(ROOT, b"f")
    for offset in (1 << 63, (1 << 64) - 1):
        fails(errno.EINVAL, client.read, fid, offset)
        fails(errno.EINVAL, client.write, fid, b"x", offset)
        fails(errno.EINVAL, client.setattr, fid, numbers.P9_SETATTR_SIZE, size=offset)
    with pytest.raises(OSError):
        client.write(fid, b"x", (1 << 63) - 1)
    body = struct.pack("<IQI", fid, 0, 100) + b"short"
    fails(errno.EPROTO, client.send, numbers.P9_TWRITE, body)


def test_reads_fit(client: Client, folder: Path) -> None:
    (folder / "f").write_bytes(bytes(2 * MSIZE))
    fid = client.open(client.path("f"))
    assert len(client.read(fid, 0, (1 << 32) - 1)) == MSIZE - 11
    answer = client.send(numbers.P9_TREAD, struct.pack("<IQI", fid, 0, 100), room_bytes=10)
    assert len(answer) == 14
    assert client.send(numbers.P9_TREAD, struct.pack("<IQI", fid, 0, 9), room_bytes=-4) == bytes(4)


def test_readdir(client: Client, folder: Path) -> None:
    names = {f"{n:03}-{'x' * (n % 200)}".encode() for n in range(300)}
    for name in names:
        (folder / os.fsdecode(name)).write_text("")
    (folder / "d").mkdir()
    (folder / "l").symlink_to("d")
    fid = client.open(client.walk(ROOT))
    for count in (300, 1000, MSIZE):
        found = dict(client.readdir(fid, count))
        assert found.keys() == names | {b"d", b"l", b".", b".."}
        assert (found[b"d"], found[b"l"], found[b".."]) == (4, 10, 4)
    fails(errno.EINVAL, client.readdir, fid, 20)  # no room for one
    fails(errno.ENOTDIR, client.readdir, client.create(ROOT, b"f"))
    answer = client.send(numbers.P9_TREADDIR, struct.pack("<IQI", fid, 0, 4096))
    inodes = {data[1] for data in [struct.unpack_from("<BIQ", answer, 4)]}
    assert os.stat(folder.parent).st_ino not in inodes


# Names.


def test_mkdir_rename_remove(client: Client, folder: Path) -> None:
    client.mkdir(ROOT, b"d", 0o7750)
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o750
    fails(errno.EEXIST, client.mkdir, ROOT, b"d")
    client.create(client.path("d"), b"f")
    client.renameat(client.path("d"), b"f", ROOT, b"g")
    assert sorted(os.listdir(folder)) == ["d", "g"]
    fid = client.path("g")
    client.rename(fid, client.path("d"), b"h")
    assert os.listdir(folder / "d") == ["h"]
    client.rename(fid, ROOT, b"i")  # it knows where it is now
    assert sorted(os.listdir(folder)) == ["d", "i"]
    os.rename(folder / "i", folder / "j")
    fails(errno.ENOENT, client.rename, fid, ROOT, b"k")
    fails(errno.EBUSY, client.rename, ROOT, client.path("d"), b"k")
    fails(errno.EINVAL, client.renameat, ROOT, b"d", client.path("d"), b"k")
    fails(errno.EISDIR, client.unlinkat, ROOT, b"d")
    fails(errno.ENOTDIR, client.unlinkat, ROOT, b"j", True)
    client.unlinkat(ROOT, b"j")
    client.unlinkat(ROOT, b"d", True)
    assert os.listdir(folder) == []


def test_remove(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    (folder / "d").mkdir()
    before = client.server.fids
    for name in ("f", "d"):
        client.remove(client.path(name))
    assert os.listdir(folder) == []
    fails(errno.EBUSY, client.remove, client.walk(ROOT))
    (folder / "f").write_text("")
    fid = client.path("f")
    os.rename(folder / "f", folder / "g")
    (folder / "f").write_text("another")
    fails(errno.ENOENT, client.remove, fid)
    fid = client.path("f")
    fails(errno.EBADF, client.remove, client.xattrcreate(fid, b"user.x", 1))
    client.clunk(fid)
    assert sorted(os.listdir(folder)) == ["f", "g"]
    assert client.server.fids == before  # gone in any case
    assert client.server.descriptors == 1


def test_links(client: Client, folder: Path) -> None:
    client.symlink(ROOT, b"l", b"../x")
    assert os.readlink(folder / "l") == "../x"
    for target, number in ((b"", errno.EINVAL), (b"a\0", errno.EINVAL)):
        fails(number, client.symlink, ROOT, b"m", target)
    fails(errno.ENAMETOOLONG, client.symlink, ROOT, b"m", b"x" * 4096)
    (folder / "f").write_text("f")
    client.link(ROOT, client.path("f"), b"g")
    assert (folder / "g").stat().st_nlink == 2
    fails(errno.EINVAL, client.readlink, client.path("f"))
    fails(errno.EPERM, client.link, ROOT, client.walk(ROOT), b"h")


# Attributes.


def test_owners(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    fid = client.path("f")
    found = client.getattr(fid)
    assert (found.uid, found.gid) == (GUEST_UID, GUEST_UID)
    client.setattr(fid, 6, uid=GUEST_UID, gid=GUEST_UID)  # what it has
    for uid in (0, NOBODY, os.getuid() or 5):
        if uid != GUEST_UID:
            fails(errno.EPERM, client.setattr, fid, numbers.P9_SETATTR_UID, uid=uid)
            fails(errno.EPERM, client.setattr, fid, numbers.P9_SETATTR_GID, gid=uid)
    if os.getuid() == 0:
        os.chown(folder / "f", 4321, 4321)
        found = client.getattr(fid)
        assert (found.uid, found.gid) == (NOBODY, NOBODY)


def test_modes(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    (folder / "d").mkdir()
    os.chmod(folder / "d", 0o2755)
    client.setattr(client.path("f"), numbers.P9_SETATTR_MODE, mode=0o106755)
    client.setattr(client.path("d"), numbers.P9_SETATTR_MODE, mode=0o1700)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o2700
    os.chmod(folder / "f", 0o4755)
    for flags in (os.O_RDWR, os.O_TRUNC):
        fails(errno.EACCES, client.open, client.path("f"), flags)
    fails(errno.EACCES, client.setattr, client.path("f"), numbers.P9_SETATTR_SIZE)
    client.open(client.path("f"))


def test_nothing_is_made_that_cannot_be_opened(client: Client, folder: Path) -> None:
    """A lock file, say, that stays behind and that its maker was told is not there."""
    root = client.walk(ROOT)
    descriptors = client.server._session.folder.descriptors
    for room in (0, 1):
        descriptors.limit = descriptors.count + room
        body = struct.pack("<I", root) + text(b"new") + struct.pack("<III", os.O_RDWR, 0o644, 0)
        fails(errno.EMFILE, client.send, numbers.P9_TLCREATE, body)
    descriptors.limit = descriptors.count
    fails(errno.EMFILE, client.mkdir, ROOT, b"d")
    fails(errno.EMFILE, client.symlink, ROOT, b"l", b"x")
    fails(errno.EMFILE, client.mknod, ROOT, b"n", stat.S_IFREG)
    assert os.listdir(folder) == []
    descriptors.limit += 2
    client.send(numbers.P9_TLCREATE, body)
    client.unlinkat(ROOT, b"new")
    client.clunk(root)
    client.mkdir(ROOT, b"d")
    assert os.listdir(folder) == ["d"]


def test_a_file_of_somebody_else_is_cut(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux asks for the time as well; only the owner may ask for it by itself."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not the owner's")

    (folder / "f").write_text("text")
    os.utime(folder / "f", (5, 5))
    monkeypatch.setattr("voidbox.ninep.attributes.set_times", refuse)
    fid = client.open(client.path("f"), os.O_RDWR)
    valid = numbers.P9_SETATTR_SIZE | numbers.P9_SETATTR_MTIME | numbers.P9_SETATTR_CTIME
    client.setattr(fid, valid, size=2)
    assert (folder / "f").read_text() == "te"
    assert (folder / "f").stat().st_mtime > 5
    fails(errno.EPERM, client.setattr, fid, valid | numbers.P9_SETATTR_MTIME_SET, size=1, mtime=7)
    fails(errno.EPERM, client.setattr, fid, valid & ~numbers.P9_SETATTR_SIZE)


def test_times(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    fid = client.path("f")
    client.setattr(fid, 0x1B0, atime=5, atime_ns=6, mtime=7, mtime_ns=8)
    found = os.stat(folder / "f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_000_000_006, 7_000_000_008)
    assert client.getattr(fid).mtime == (7, 8)
    client.setattr(fid, 0x20)  # now
    assert os.stat(folder / "f").st_mtime > 1e9
    assert os.stat(folder / "f").st_atime_ns == 5_000_000_006
    client.setattr(fid, 0x1B0, atime=(1 << 64) - 1, mtime=1)  # before 1970
    assert os.stat(folder / "f").st_atime <= 0
    assert client.getattr(fid).mtime == (1, 0)
    fails(errno.EINVAL, client.setattr, fid, 0x1B0, mtime_ns=1_000_000_000)


def test_statfs(client: Client) -> None:
    found = client.statfs(ROOT)
    assert found[0] == numbers.V9FS_MAGIC
    assert found[2] > 0


def test_locks_are_the_guests_own(client: Client, folder: Path) -> None:
    fid = client.create(ROOT, b"f")
    body = struct.pack("<IBIQQI", fid, 1, 0, 0, 0, 5) + text(b"guest")
    assert client.send(numbers.P9_TLOCK, body) == b"\0"
    body = struct.pack("<IBQQI", fid, 1, 2, 3, 5) + text(b"guest")
    answer = client.send(numbers.P9_TGETLOCK, body)
    assert answer == struct.pack("<BQQI", 2, 2, 3, 5) + text(b"guest")


def test_xattrs(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    try:
        os.setxattr(folder / "f", "user.one", b"1")
    except OSError:
        pytest.skip("this file system has no user.* attributes: run with TMPDIR on another")
    fid = client.path("f")
    new, size = client.xattrwalk(fid, b"user.one")
    assert (size, client.read(new)) == (1, b"1")
    fails(errno.EBADF, client.getattr, new)  # it is no file
    fails(errno.EBADF, client.walk, new)
    client.clunk(new)
    new, size = client.xattrwalk(fid)
    assert client.read(new, 3, 100) == b"r.one\0"
    two = client.xattrcreate(fid, b"user.two", 5)
    assert client.write(two, b"ab") == 2
    assert client.write(two, b"cde", 2) == 3
    fails(errno.ENOSPC, client.write, two, b"f", 5)
    fails(errno.ENOSPC, client.write, two, b"f", 0)
    client.clunk(two)
    assert os.getxattr(folder / "f", "user.two") == b"abcde"
    client.clunk(client.xattrcreate(fid, b"user.two", 0, os.XATTR_REPLACE))
    assert os.listxattr(folder / "f") == ["user.one"]
    fails(errno.EIO, client.clunk, client.xattrcreate(fid, b"user.short", 5))


def test_xattrs_of_others(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    fid = client.path("f")
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access", b"x"):
        fails(errno.EOPNOTSUPP, client.xattrwalk, fid, name)
        fails(errno.EOPNOTSUPP, client.xattrcreate, fid, name, 1)
    fails(errno.EINVAL, client.xattrcreate, fid, b"user.", 1)
    fails(errno.EINVAL, client.xattrcreate, fid, b"user.a\0b", 1)
    fails(errno.ERANGE, client.xattrcreate, fid, b"user." + b"x" * 300, 1)
    fails(errno.E2BIG, client.xattrcreate, fid, b"user.x", (64 << 10) + 1)
    with pytest.raises(OSError) as caught:
        for _ in range(100):
            client.xattrcreate(fid, b"user.x", 64 << 10)
    assert caught.value.errno == errno.ENOSPC  # memory is bounded


# Read-only.


def test_read_only(folder: Path) -> None:
    (folder / "f").write_text("text")
    (folder / "d").mkdir()
    before = {path: os.stat(path) for path in (folder / "f", folder / "d", folder)}
    server = Server(str(folder), is_read_only=True)
    client = Client(server)
    assert client.read(client.open(client.path("f"))) == b"text"
    assert client.names(ROOT) == {b"f", b"d"}
    f, d = client.path("f"), client.path("d")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_RDWR | os.O_APPEND):
        fails(errno.EROFS, client.open, f, flags)
    fails(errno.EROFS, client.create, ROOT, b"g")
    fails(errno.EROFS, client.create, ROOT, b"f")
    fails(errno.EROFS, client.mkdir, ROOT, b"g")
    fails(errno.EROFS, client.mknod, ROOT, b"g", stat.S_IFREG)
    fails(errno.EROFS, client.symlink, ROOT, b"g", b"x")
    fails(errno.EROFS, client.link, ROOT, f, b"g")
    fails(errno.EROFS, client.rename, f, d, b"g")
    fails(errno.EROFS, client.renameat, ROOT, b"f", d, b"g")
    fails(errno.EROFS, client.unlinkat, ROOT, b"f")
    fails(errno.EROFS, client.unlinkat, ROOT, b"d", True)
    fails(errno.EROFS, client.remove, client.walk(f))
    for valid in (1, 2, 4, 8, 0x10, 0x20, 0x40, 0x1B0):
        fails(errno.EROFS, client.setattr, f, valid, uid=1000, gid=1000)
    fails(errno.EROFS, client.xattrcreate, f, b"user.x", 1)
    server.close()
    for path, status in before.items():
        now = os.stat(path)
        assert (now.st_mode, now.st_mtime_ns, now.st_ctime_ns, now.st_size) == (
            status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_size,
        )  # fmt: skip


def test_what_the_user_may_not_read() -> None:
    with tempfile.TemporaryDirectory(prefix="vb9p-") as path:  # pytest's are for one user alone
        os.chmod(path, 0o777)
        Path(path, "theirs").write_text("")
        os.chmod(f"{path}/theirs", 0o600 if os.getuid() == 0 else 0)
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setresgid(4321, 4321, 4321)
                    os.setresuid(4321, 4321, 4321)
                _refused(path)
                status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _refused(path: str) -> None:
    client = Client(Server(path))
    fails(errno.EACCES, client.open, client.path("theirs"))
    fails(errno.EACCES, client.open, client.path("theirs"), os.O_RDWR)
    fid = client.create(ROOT, b"mine", 0o400)
    assert client.write(fid, b"text") == 4  # open is open
    assert client.getattr(fid).uid == GUEST_UID
    fails(errno.EACCES, client.open, client.path("mine"), os.O_WRONLY)
    client.link(ROOT, client.path("mine"), b"hard")
