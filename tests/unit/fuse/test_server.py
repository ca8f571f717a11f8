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

from tests.unit.fuse.client import ALL_FLAGS, ROOM, Client
from voidbox import free_space
from voidbox.errors import ConfigError
from voidbox.fuse import numbers
from voidbox.fuse.numbers import (
    FATTR_ATIME,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
)
from voidbox.fuse.numbers import FUSE_ROOT_ID as ROOT
from voidbox.fuse.owners import GUEST_UID, NOBODY
from voidbox.fuse.server import Server


def fails(number: int, call: Callable[..., object], *arguments: object, **values: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **values)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# Sessions.


def test_init(server: Server) -> None:
    client = Client(server, begins=False)
    fails(errno.EIO, client.getattr, ROOT)  # nothing comes before it
    major, minor, readahead, flags, *rest = client.init(minor=37)
    assert (major, minor, readahead) == (7, 36, 128 << 10)
    assert rest == [64, 48, 1 << 20, 1, 256, 0]
    assert flags & numbers.FUSE_MAX_PAGES
    assert flags & numbers.FUSE_DO_READDIRPLUS
    assert not flags & numbers.FUSE_WRITEBACK_CACHE  # the host changes files as well
    assert client.init(flags=numbers.FUSE_BIG_WRITES)[3] == numbers.FUSE_BIG_WRITES
    client.init(minor=31)
    fails(errno.EPROTO, client.init, minor=30)
    fails(errno.EIO, client.getattr, ROOT)
    fails(errno.EPROTO, client.init, major=8)
    fails(errno.EPROTO, client.send, numbers.FUSE_INIT, 0, bytes(15))


def test_a_new_session_knows_nothing(client: Client, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d/a").write_text("a")
    node = client.path("d/a")
    file = client.open(node)
    assert (client.server.nodes, client.server.handles) == (3, 1)
    assert client.server.descriptors == 2  # the file's, and its folder's
    client.init()
    assert (client.server.nodes, client.server.handles, client.server.descriptors) == (1, 0, 0)
    fails(errno.ESTALE, client.getattr, node)
    fails(errno.EBADF, client.read, file)
    assert client.send(numbers.FUSE_DESTROY, 0) == b""
    fails(errno.EIO, client.getattr, ROOT)


def test_what_linux_does_without(client: Client) -> None:
    for opcode in (25, 31, 32, 33, 34, 39, 40):  # FLUSH, locks, ACCESS, IOCTL, POLL
        fails(errno.ENOSYS, client.send, opcode, ROOT, bytes(64))


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "missing"):
        with pytest.raises(ConfigError, match="cannot share"):
            Server(str(tmp_path / name))
    with pytest.raises(ConfigError, match="auto, always or none"):
        Server(str(tmp_path), cache="some")


# Looking up.


def test_lookup(client: Client, folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_text("c")
    node = client.path("a/b/c")
    assert client.read(client.open(node)) == b"c"
    assert client.path("a/b/c") == node
    fails(errno.ENOENT, client.path, "x")
    fails(errno.ENOTDIR, client.lookup, node, b"d")
    fails(errno.ESTALE, client.lookup, 999, b"d")
    assert client.getattr(node).ino == (folder / "a/b/c").stat().st_ino


def test_dots_lead_nowhere(client: Client, folder: Path) -> None:
    (folder / "a").mkdir()
    node = client.path("a")
    for name in (b"..", b".", b"", b"a/..", b"/", b"/etc"):
        for at in (ROOT, node):
            fails(errno.EINVAL, client.lookup, at, name)
        fails(errno.EINVAL, client.mkdir, ROOT, name)
        fails(errno.EINVAL, client.create, ROOT, name)
        fails(errno.EINVAL, client.mknod, ROOT, name, stat.S_IFREG)
        fails(errno.EINVAL, client.symlink, ROOT, name, b"x")
        fails(errno.EINVAL, client.link, ROOT, ROOT, name)
        fails(errno.EINVAL, client.remove, ROOT, name)
        fails(errno.EINVAL, client.remove, ROOT, name, True)
        fails(errno.EINVAL, client.rename, ROOT, name, ROOT, b"x")
        fails(errno.EINVAL, client.rename, ROOT, b"a", ROOT, name)
        fails(errno.EINVAL, client.rename, ROOT, b"a", ROOT, name, 0)
    fails(errno.ENAMETOOLONG, client.lookup, ROOT, b"x" * 256)
    for names in (b"a\0b\0", b"a", b"", b"a\0b"):
        fails(errno.EPROTO, client.send, numbers.FUSE_LOOKUP, ROOT, names)
    assert os.listdir(folder) == ["a"]


def test_what_may_be_believed(folder: Path) -> None:
    (folder / "f").write_text("")
    for cache, valid_s, file_flags, folder_flags in (
        ("auto", 1, 0, 0),
        ("always", 86400, numbers.FOPEN_KEEP_CACHE, 0xA),
        ("none", 0, numbers.FOPEN_DIRECT_IO, 0),
    ):
        server = Server(str(folder), cache=cache)
        client = Client(server)
        found = client.lookup(ROOT, b"f")
        assert (found.entry_valid, found.attr_valid) == (valid_s, valid_s)
        assert client.open(found.node).open_flags == file_flags
        assert client.opendir(ROOT).open_flags == folder_flags
        with pytest.raises(FileNotFoundError) as caught:
            client.lookup(ROOT, b"missing")
        assert (f"for {valid_s} s" in str(caught.value)) == bool(valid_s)  # said, or an error
        server.close()


def test_a_client_that_writes_later(folder: Path) -> None:
    (folder / "f").write_text("text")
    server = Server(str(folder), cache="always")
    client = Client(server)
    assert client.init()[3] & numbers.FUSE_WRITEBACK_CACHE
    file = client.open(client.path("f"), os.O_WRONLY | os.O_APPEND)
    assert client.read(file) == b"text"  # what it writes a part of
    assert client.write(file, b"T") == 1
    assert (folder / "f").read_text() == "Text"
    client.init(flags=ALL_FLAGS & ~numbers.FUSE_WRITEBACK_CACHE)
    fails(errno.EBADF, client.read, client.open(client.path("f"), os.O_WRONLY))
    server.close()


def test_forgetting(client: Client, folder: Path) -> None:
    (folder / "d/e").mkdir(parents=True)
    (folder / "d/e/f").write_text("f")
    d, e, f = client.path("d"), client.path("d/e"), client.path("d/e/f")
    client.forget(d, 3)
    client.forget(e, 2)
    assert client.read(client.open(f)) == b"f"  # the way to it is still known
    assert client.server.nodes == 4
    client.init()
    d, e, f = client.path("d"), client.path("d/e"), client.path("d/e/f")
    client.forget_many((d, 3), (e, 2), (f, 1), (12345, 1), (ROOT, 1 << 63))
    assert client.server.nodes == 1
    f = client.path("d/e/f")
    file = client.open(f)
    client.forget(f, 1 << 40)
    assert client.read(file) == b"f"
    assert client.getattr(f, file).size == 1
    client.release(file)
    fails(errno.ESTALE, client.getattr, f)


def test_a_file_is_one_node(client: Client, folder: Path) -> None:
    (folder / "a").write_text("a")
    os.link(folder / "a", folder / "b")
    node = client.path("a")
    assert client.path("b") == node
    client.remove(ROOT, b"b")
    assert client.path("a") == node
    client.rename(ROOT, b"a", ROOT, b"c")
    assert client.getattr(node).size == 1  # it is known where it went
    assert client.path("c") == node


def test_a_name_that_leads_elsewhere(client: Client, folder: Path) -> None:
    """What the host puts in a file's place is not taken for the file."""
    (folder / "d").mkdir()
    (folder / "d/f").write_text("mine")
    node, inner = client.path("d"), client.path("d/f")
    os.rename(folder / "d/f", folder / "d/g")
    (folder / "d/f").write_text("another")
    for call in (client.getattr, client.open):
        fails(errno.ESTALE, call, inner)
    fails(errno.ESTALE, client.setattr, inner, FATTR_MODE, mode=0o600)
    assert client.path("d/g") == inner  # found again
    assert client.read(client.open(inner)) == b"mine"
    client.server._session.folder.forget_all()
    os.rename(folder / "d", folder / "moved")
    (folder / "d").symlink_to("moved")
    fails(errno.ESTALE, client.lookup, node, b"g")
    (folder / "d").unlink()
    fails(errno.ESTALE, client.lookup, node, b"missing")  # and not: there is nothing of that name
    (folder / "d").mkdir()
    fails(errno.ESTALE, client.lookup, node, b"g")
    assert client.path("moved") == node
    assert client.lookup(node, b"g").node == inner


def test_folders_that_changed_places(client: Client, folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    a, b = client.path("a"), client.path("a/b")
    client.lookup(ROOT, b"a")
    os.rename(folder / "a/b", folder / "b")
    os.rename(folder / "a", folder / "b/a")
    # b is in a, as far as is known, and a in b: there is no way from the root.
    fails(errno.ESTALE, client.lookup, b, b"a")
    assert client.path("b") == b
    assert client.lookup(b, b"a").node == a
    (folder / "b/a/f").write_text("f")
    client.server._session.folder.forget_all()
    assert client.lookup(a, b"f").attr.size == 1


def test_links_are_the_guests_to_follow(client: Client, folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent / "outside")
    (folder / "file").symlink_to(folder.parent / "outside/secret")
    node = client.path("out")
    assert stat.S_ISLNK(client.getattr(node).mode)
    assert client.readlink(node) == os.fsencode(folder.parent / "outside")
    fails(errno.ENOTDIR, client.lookup, node, b"secret")
    fails(errno.ENOTDIR, client.opendir, node)
    link = client.path("file")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        fails(errno.ELOOP, client.open, link, flags)
    fails(errno.ELOOP, client.create, ROOT, b"file")
    fails(errno.ELOOP, client.setattr, link, FATTR_SIZE)
    fails(errno.EOPNOTSUPP, client.setattr, link, FATTR_MODE, mode=0)
    fails(errno.ENOTDIR, client.mkdir, node, b"x")
    fails(errno.EOPNOTSUPP, client.getxattr, link, b"user.x")
    client.setattr(link, FATTR_MTIME, mtime=5)  # the link's own
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


# Files.


def test_create_write_read(client: Client, folder: Path) -> None:
    file = client.create(ROOT, b"new", 0o4640)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o640
    assert client.write(file, b"hello") == 5
    assert client.write(file, b"!", 10) == 1
    assert (folder / "new").read_bytes() == b"hello\0\0\0\0\0!"
    assert client.read(file, 3, 4) == b"lo\0\0"
    assert client.read(file, 100) == b""
    client.fsync(file)
    client.fsync(file, numbers.FUSE_FSYNC_FDATASYNC)
    client.release(file)
    fails(errno.EBADF, client.release, file)
    fails(errno.EBADF, client.write, file, b"x")


def test_create_what_is_there(client: Client, folder: Path) -> None:
    (folder / "old").write_text("old")
    fails(errno.EEXIST, client.create, ROOT, b"old", flags=os.O_CREAT | os.O_EXCL | os.O_RDWR)
    assert client.read(client.create(ROOT, b"old")) == b"old"
    client.create(ROOT, b"old", flags=os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    assert (folder / "old").read_text() == ""
    (folder / "d").mkdir()
    fails(errno.EISDIR, client.create, ROOT, b"d")
    fails(errno.ENOTDIR, client.create, client.path("old"), b"x")
    assert client.server.nodes == 2  # who was refused was told of nothing


def test_open_modes(client: Client, folder: Path) -> None:
    (folder / "f").write_text("text")
    (folder / "d").mkdir()
    node = client.path("f")
    reader = client.open(node)
    fails(errno.EBADF, client.write, reader, b"x")
    fails(errno.EBADF, client.read, client.open(node, os.O_WRONLY))
    fails(errno.EINVAL, client.open, node, 3)
    fails(errno.EISDIR, client.open, client.path("d"))
    fails(errno.EISDIR, client.read, client.opendir(client.path("d")))
    appender = client.open(node, os.O_WRONLY | os.O_APPEND)
    with open(folder / "f", "a") as file:
        file.write("+host")
    client.write(appender, b"+guest", 4)  # where the guest thought that the end is
    assert (folder / "f").read_text() == "text+host+guest"
    client.open(node, os.O_WRONLY | os.O_TRUNC)
    assert (folder / "f").read_text() == ""


def test_a_removed_file_stays_open(client: Client, folder: Path) -> None:
    file = client.create(ROOT, b"f")
    client.remove(ROOT, b"f")
    client.write(file, b"text")
    assert client.read(file) == b"text"
    assert client.getattr(file.node).nlink == 0
    client.setattr(file.node, FATTR_SIZE, size=2)
    assert client.getattr(file.node, file).size == 2
    client.create(ROOT, b"f")
    assert client.path("f") != file.node
    client.release(file)
    fails(errno.ESTALE, client.getattr, file.node)


def test_a_file_without_a_name(client: Client, folder: Path) -> None:
    try:
        file = client.create(ROOT, b"#1", opcode=numbers.FUSE_TMPFILE)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("this file system has no O_TMPFILE: run with TMPDIR on another")
    assert client.write(file, b"text") == 4
    assert os.listdir(folder) == []
    assert client.link(ROOT, file.node, b"named").node == file.node
    client.release(file)
    assert (folder / "named").read_text() == "text"
    assert client.getattr(file.node).nlink == 1
    fails(errno.ENOTDIR, client.create, file.node, b"#2", opcode=numbers.FUSE_TMPFILE)


def test_offsets_have_an_end(client: Client, folder: Path) -> None:
    file = client.create(ROOT, b"f")
    for offset in (1 << 63, (1 << 64) - 1):
        fails(errno.EINVAL, client.read, file, offset)
        fails(errno.EINVAL, client.write, file, b"x", offset)
        fails(errno.EINVAL, client.setattr, file.node, FATTR_SIZE, size=offset)
        fails(errno.EINVAL, client.fallocate, file, offset, 1)
        fails(errno.EINVAL, client.fallocate, file, 0, offset)
        fails(errno.EINVAL, client.lseek, file, offset, os.SEEK_DATA)
        fails(errno.EINVAL, client.copy, file, file, 1, at=offset)
    with pytest.raises(OSError):
        client.write(file, b"x", (1 << 63) - 1)
    body = struct.pack("<QQIIQII", file.fh, 0, 100, 0, 0, 0, 0) + b"short"
    fails(errno.EPROTO, client.send, numbers.FUSE_WRITE, file.node, body)


def test_reads_fit(client: Client, folder: Path) -> None:
    (folder / "f").write_bytes(bytes(2 * ROOM))
    file = client.open(client.path("f"))
    assert len(client.read(file, 0, (1 << 32) - 1)) == ROOM
    assert len(client.read(file, 0, 100, room_bytes=10)) == 10
    assert client.read(file, 0, 9, room_bytes=0) == b""


def test_holes_and_copies(client: Client, folder: Path) -> None:
    file = client.create(ROOT, b"f")
    client.write(file, b"x" * 4096, 1 << 20)
    assert client.lseek(file, 0, os.SEEK_DATA) == 1 << 20
    assert client.lseek(file, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
    fails(errno.EINVAL, client.lseek, file, 0, os.SEEK_END)
    copy = client.create(ROOT, b"copy")
    assert client.copy(file, copy, 10, at=1 << 20, to=5) == 10
    assert (folder / "copy").read_bytes() == bytes(5) + b"x" * 10
    client.fallocate(file, 0, 8 << 20, numbers.FALLOC_FL_KEEP_SIZE)
    assert client.getattr(file.node).size == (1 << 20) + 4096
    punch = numbers.FALLOC_FL_PUNCH_HOLE | numbers.FALLOC_FL_KEEP_SIZE
    client.fallocate(file, 1 << 20, 4096, punch)
    assert client.read(file, 1 << 20, 10) == bytes(10)
    fails(errno.EOPNOTSUPP, client.fallocate, file, 0, 4096, 0x08)  # FALLOC_FL_COLLAPSE_RANGE
    reader = client.open(file.node)
    fails(errno.EBADF, client.fallocate, reader, 0, 1)
    fails(errno.EBADF, client.copy, file, reader, 1)


def test_no_guest_fills_the_hosts_disk(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "f").write_bytes(b"x" * 4096)
    old, new = client.open(client.path("f"), os.O_RDWR), client.create(ROOT, b"new")
    monkeypatch.setattr(free_space, "FLOOR_BYTES", 1 << 62)
    monkeypatch.setattr(free_space, "_FLOOR_SHARE", 1)
    fails(errno.ENOSPC, client.write, new, b"x")
    fails(errno.ENOSPC, client.fallocate, new, 0, 4096)
    fails(errno.ENOSPC, client.copy, old, new, 10)
    assert client.write(old, b"over what is there") == 18
    punch = numbers.FALLOC_FL_PUNCH_HOLE | numbers.FALLOC_FL_KEEP_SIZE
    client.fallocate(old, 0, 4096, punch)


# Folders.


def test_readdir(client: Client, folder: Path) -> None:
    names = {f"{n:03}-{'x' * (n % 200)}".encode() for n in range(300)}
    for name in names:
        (folder / os.fsdecode(name)).write_text("")
    (folder / "d").mkdir()
    (folder / "l").symlink_to("d")
    opened = client.opendir(ROOT)
    for count in (300, 1000, ROOM):
        found = dict(client.readdir(opened, count))
        assert found.keys() == names | {b"d", b"l", b".", b".."}
        assert (found[b"d"], found[b"l"], found[b".."]) == (4, 10, 4)
    assert client.server.nodes == 1
    for count in (400, ROOM):
        entries = client.readdirplus(opened, count)
        assert entries.keys() == found.keys()
        assert (entries[b"."].node, entries[b".."].node) == (0, 0)
        assert entries[b"d"].node == client.path("d")
        assert stat.S_ISLNK(entries[b"l"].attr.mode)
    fails(errno.EINVAL, client.readdir, opened, 20)  # no room for one
    fails(errno.ENOTDIR, client.readdir, client.create(ROOT, b"f"))
    body = struct.pack("<QQIIQII", opened.fh, 0, 4096, 0, 0, 0, 0)
    answer = client.send(numbers.FUSE_READDIR, ROOT, body)
    assert struct.pack("<Q", os.stat(folder.parent).st_ino) not in answer


def test_what_is_listed_is_counted(client: Client, folder: Path) -> None:
    for number in range(50):
        (folder / f"f{number}").write_text("")
    opened = client.opendir(ROOT)
    found = client.readdirplus(opened, 700)
    assert client.server.nodes == 51
    client.forget_many(*((told.node, 1) for told in found.values() if told.node))
    assert client.server.nodes == 1


@pytest.mark.parametrize("base", ["/dev/shm", None])
def test_removing_what_is_listed(base: str | None) -> None:
    """As rm -r does it. Where positions are counts, going back to one would leave entries out."""
    with tempfile.TemporaryDirectory(prefix="vbfs-", dir=base) as path:
        for number in range(300):
            Path(path, f"f{number}").write_text("")
        server = Server(path)
        client = Client(server)
        opened = client.opendir(ROOT)
        offset = 0
        while True:
            body = struct.pack("<QQIIQII", opened.fh, offset, 4096, 0, 0, 0, 0)
            data = client.send(numbers.FUSE_READDIRPLUS, ROOT, body)
            if not data:
                break
            while data:
                _, offset, length, _ = struct.unpack_from("<QQII", data, 128)
                name = data[152 : 152 + length]
                data = data[128 + -(-(24 + length) // 8) * 8 :]
                if name not in (b".", b".."):
                    client.remove(ROOT, name)
        assert os.listdir(path) == []
        server.close()


def test_mkdir_rename_remove(client: Client, folder: Path) -> None:
    d = client.mkdir(ROOT, b"d", 0o7750)
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o750 == stat.S_IMODE(d.attr.mode)
    fails(errno.EEXIST, client.mkdir, ROOT, b"d")
    client.release(client.create(d.node, b"f"))
    client.rename(d.node, b"f", ROOT, b"g")
    assert sorted(os.listdir(folder)) == ["d", "g"]
    client.release(client.create(d.node, b"h"))
    fails(errno.EEXIST, client.rename, d.node, b"h", ROOT, b"g", numbers.RENAME_NOREPLACE)
    g, h = client.path("g"), client.path("d/h")
    client.rename(d.node, b"h", ROOT, b"g", numbers.RENAME_EXCHANGE)
    assert (client.path("g"), client.path("d/h")) == (h, g)
    assert client.getattr(h).ino == (folder / "g").stat().st_ino
    fails(errno.EINVAL, client.rename, d.node, b"h", ROOT, b"g", 4)  # RENAME_WHITEOUT
    client.rename(d.node, b"h", ROOT, b"g")
    fails(errno.ESTALE, client.getattr, h)  # nobody has it open
    fails(errno.EINVAL, client.rename, ROOT, b"d", d.node, b"k")
    fails(errno.EISDIR, client.remove, ROOT, b"d")
    fails(errno.ENOTDIR, client.remove, ROOT, b"g", True)
    client.remove(ROOT, b"g")
    client.remove(ROOT, b"d", True)
    assert os.listdir(folder) == []
    assert client.server.descriptors == 0


def test_a_folder_that_moves_with_what_is_in_it(client: Client, folder: Path) -> None:
    client.mkdir(client.mkdir(ROOT, b"d").node, b"e")
    client.release(client.create(client.path("d/e"), b"f"))
    node = client.path("d/e/f")
    client.server._session.folder.forget_all()
    client.rename(ROOT, b"d", ROOT, b"other")
    assert client.getattr(node).size == 0
    client.rename(client.path("other"), b"e", ROOT, b"e")
    client.server._session.folder.forget_all()
    assert client.getattr(node).size == 0


def test_links(client: Client, folder: Path) -> None:
    client.symlink(ROOT, b"l", b"../x")
    assert os.readlink(folder / "l") == "../x"
    fails(errno.EINVAL, client.symlink, ROOT, b"m", b"")
    fails(errno.ENAMETOOLONG, client.symlink, ROOT, b"m", b"x" * 4096)
    (folder / "f").write_text("f")
    assert client.link(ROOT, client.path("f"), b"g").attr.nlink == 2
    assert (folder / "g").stat().st_nlink == 2
    fails(errno.EINVAL, client.readlink, client.path("f"))
    fails(errno.EPERM, client.link, ROOT, ROOT, b"h")


# Attributes.


def test_owners(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    node = client.path("f")
    found = client.getattr(node)
    assert (found.uid, found.gid) == (GUEST_UID, GUEST_UID)
    client.setattr(node, FATTR_UID | FATTR_GID, uid=GUEST_UID, gid=GUEST_UID)  # what it has
    for uid in (0, NOBODY, os.getuid() or 5):
        if uid != GUEST_UID:
            fails(errno.EPERM, client.setattr, node, FATTR_UID, uid=uid)
            fails(errno.EPERM, client.setattr, node, FATTR_GID, gid=uid)
    if os.getuid() == 0:
        os.chown(folder / "f", 4321, 4321)
        found = client.getattr(node)
        assert (found.uid, found.gid) == (NOBODY, NOBODY)


def test_modes(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    (folder / "d").mkdir()
    os.chmod(folder / "d", 0o2755)
    node = client.path("f")
    client.setattr(node, FATTR_MODE, mode=0o106755)
    client.setattr(client.path("d"), FATTR_MODE, mode=0o1700)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o2700
    os.chmod(folder / "f", 0o4755)
    for flags in (os.O_RDWR, os.O_TRUNC):
        fails(errno.EACCES, client.open, node, flags)
    fails(errno.EACCES, client.setattr, node, FATTR_SIZE)
    client.open(node)


def test_nothing_is_made_that_cannot_be_opened(client: Client, folder: Path) -> None:
    """A lock file, say, that stays behind and that its maker was told is not there."""
    descriptors = client.server._session.folder.descriptors
    descriptors.limit = descriptors.count
    fails(errno.EMFILE, client.create, ROOT, b"new")
    assert os.listdir(folder) == []
    descriptors.limit += 1
    file = client.create(ROOT, b"new")
    client.remove(ROOT, b"new")
    client.release(file)
    client.mkdir(ROOT, b"d")
    assert os.listdir(folder) == ["d"]


def test_a_file_of_somebody_else_is_cut(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux may ask for the time as well; only the owner may ask for it by itself."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not the owner's")

    (folder / "f").write_text("text")
    os.utime(folder / "f", (5, 5))
    monkeypatch.setattr("voidbox.fuse.attributes.set_times", refuse)
    file = client.open(client.path("f"), os.O_RDWR)
    valid = FATTR_SIZE | FATTR_MTIME | FATTR_MTIME_NOW
    client.setattr(file.node, valid, file, size=2)
    assert (folder / "f").read_text() == "te"
    assert (folder / "f").stat().st_mtime > 5
    fails(errno.EPERM, client.setattr, file.node, FATTR_SIZE | FATTR_MTIME, size=1, mtime=7)
    fails(errno.EPERM, client.setattr, file.node, FATTR_MTIME | FATTR_MTIME_NOW)


def test_times(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    node = client.path("f")
    both = FATTR_ATIME | FATTR_MTIME
    client.setattr(node, both, atime=5, atime_ns=6, mtime=7, mtime_ns=8)
    found = os.stat(folder / "f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_000_000_006, 7_000_000_008)
    told = client.getattr(node)
    assert (told.mtime, told.mtimensec) == (7, 8)
    client.setattr(node, FATTR_MTIME | FATTR_MTIME_NOW)
    assert os.stat(folder / "f").st_mtime > 1e9
    assert os.stat(folder / "f").st_atime_ns == 5_000_000_006
    told = client.setattr(node, both, atime=-1, atime_ns=1, mtime=1)  # before 1970
    assert (told.atime, told.atimensec, told.mtime) == (-1, 1, 1)
    fails(errno.EINVAL, client.setattr, node, both, mtime_ns=1_000_000_000)


def test_statfs(client: Client) -> None:
    blocks, _, _, _, _, bsize, namelen, frsize = client.statfs(ROOT)
    assert blocks > 0
    assert min(bsize, namelen, frsize) > 0


def test_xattrs(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    try:
        os.setxattr(folder / "f", "user.one", b"1")
    except OSError:
        pytest.skip("this file system has no user.* attributes: run with TMPDIR on another")
    node = client.path("f")
    assert client.getxattr(node, b"user.one") == b"1"
    assert client.getxattr(node, b"user.one", 0) == struct.pack("<II", 1, 0)
    client.setxattr(node, b"user.two", b"two\0three", os.XATTR_CREATE)
    fails(errno.EEXIST, client.setxattr, node, b"user.two", b"", os.XATTR_CREATE)
    assert os.getxattr(folder / "f", "user.two") == b"two\0three"
    assert set(client.listxattr(node).split(b"\0")) == {b"user.one", b"user.two", b""}
    assert client.listxattr(node, 0) == struct.pack("<II", 18, 0)
    fails(errno.ERANGE, client.getxattr, node, b"user.two", 8)
    fails(errno.ERANGE, client.listxattr, node, 17)
    client.removexattr(node, b"user.two")
    fails(errno.ENODATA, client.getxattr, node, b"user.two")
    assert os.listxattr(folder / "f") == ["user.one"]
    body = struct.pack("<II", 5, 0) + b"user.x\0abc"
    fails(errno.EPROTO, client.send, numbers.FUSE_SETXATTR, node, body)


def test_xattrs_of_others(client: Client, folder: Path) -> None:
    (folder / "f").write_text("")
    node = client.path("f")
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access", b"x"):
        fails(errno.EOPNOTSUPP, client.getxattr, node, name)
        fails(errno.EOPNOTSUPP, client.setxattr, node, name, b"x")
        fails(errno.EOPNOTSUPP, client.removexattr, node, name)
    fails(errno.EINVAL, client.setxattr, node, b"user.", b"x")
    fails(errno.ERANGE, client.setxattr, node, b"user." + b"x" * 300, b"x")
    fails(errno.E2BIG, client.setxattr, node, b"user.x", bytes((64 << 10) + 1))
    fails(errno.EINVAL, client.setxattr, node, b"user.x", b"", 4)


# Read-only.


def test_read_only(folder: Path) -> None:
    (folder / "f").write_text("text")
    (folder / "d").mkdir()
    before = {path: os.stat(path) for path in (folder / "f", folder / "d", folder)}
    server = Server(str(folder), is_read_only=True, cache="always")
    client = Client(server)
    f, d = client.path("f"), client.path("d")
    file = client.open(f)
    assert client.read(file) == b"text"
    assert client.names(ROOT) == {b"f", b"d"}
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_RDWR | os.O_APPEND):
        fails(errno.EROFS, client.open, f, flags)
    fails(errno.EROFS, client.create, ROOT, b"g")
    fails(errno.EROFS, client.create, ROOT, b"f")
    fails(errno.EROFS, client.create, ROOT, b"#", opcode=numbers.FUSE_TMPFILE)
    fails(errno.EROFS, client.mkdir, ROOT, b"g")
    fails(errno.EROFS, client.mknod, ROOT, b"g", stat.S_IFREG)
    fails(errno.EROFS, client.symlink, ROOT, b"g", b"x")
    fails(errno.EROFS, client.link, ROOT, f, b"g")
    fails(errno.EROFS, client.rename, ROOT, b"f", d, b"g")
    fails(errno.EROFS, client.rename, ROOT, b"f", d, b"g", numbers.RENAME_EXCHANGE)
    fails(errno.EROFS, client.remove, ROOT, b"f")
    fails(errno.EROFS, client.remove, ROOT, b"d", True)
    fails(errno.EBADF, client.write, file, b"x")
    fails(errno.EBADF, client.fallocate, file, 0, 1)
    for valid in (1, 2, 4, 8, 0x10, 0x20, 0x30, 0xB0):
        fails(errno.EROFS, client.setattr, f, valid, uid=1000, gid=1000)
    fails(errno.EROFS, client.setxattr, f, b"user.x", b"x")
    fails(errno.EROFS, client.removexattr, f, b"user.x")
    server.close()
    for path, status in before.items():
        now = os.stat(path)
        assert (now.st_mode, now.st_mtime_ns, now.st_ctime_ns, now.st_size) == (
            status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_size,
        )  # fmt: skip


def test_what_the_user_may_not_read() -> None:
    with tempfile.TemporaryDirectory(prefix="vbfs-") as path:  # pytest's are for one user alone
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
    file = client.create(ROOT, b"mine", 0o400)
    assert client.write(file, b"text") == 4  # open is open
    assert client.getattr(file.node).uid == GUEST_UID
    client.release(file)
    fails(errno.EACCES, client.open, client.path("mine"), os.O_WRONLY)
    client.link(ROOT, client.path("mine"), b"hard")
