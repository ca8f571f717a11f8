"""Files, by the real client on the real agent."""

from __future__ import annotations

import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.conftest import USER
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.agent.client import AgentClient

Connect = Callable[[], AgentClient]
NOBODY = "65534"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root's agent acts as others: sudo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that everybody may reach and change."""
    path = tmp_path
    while path != Path("/tmp") and path.parent != path:
        path.chmod(path.stat().st_mode | 0o011)
        path = path.parent
    tmp_path.chmod(0o1777)
    return tmp_path


def write(client: AgentClient, path: Path, content: bytes, **options: Any) -> int:
    return client.write_file(str(path), io.BytesIO(content), **{"user": USER, **options})


def read(client: AgentClient, path: Path, user: str = USER) -> bytes:
    output = io.BytesIO()
    client.read_file(str(path), output, user=user)
    return output.getvalue()


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".voidbox")]


# --- contents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, protocol.CHUNK_BYTES, protocol.CHUNK_BYTES + 1, 5_000_000])
def test_what_is_written_is_what_is_read(client: AgentClient, folder: Path, size: int) -> None:
    content = os.urandom(size)
    assert write(client, folder / "f", content) == size
    assert (folder / "f").read_bytes() == content
    assert read(client, folder / "f") == content
    assert not leftovers(folder)


def test_permissions_and_times(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    write(client, path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write(client, path, b"2", mode=0o750, mtime_ns=1_500_000_000_123_456_789)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert path.stat().st_mtime_ns == 1_500_000_000_123_456_789
    write(client, path, b"3")
    assert stat.S_IMODE(path.stat().st_mode) == 0o750, "an existing file keeps its permissions"
    values = client.read_file(str(path), io.BytesIO(), user=USER)
    assert (values["size"], values["mode"]) == (1, 0o750)


def test_folders_above_are_made(client: AgentClient, folder: Path) -> None:
    write(client, folder / "a" / "b" / "c", b"x")
    assert (folder / "a" / "b" / "c").read_bytes() == b"x"


def test_a_link_is_followed_to_what_it_names(client: AgentClient, folder: Path) -> None:
    (folder / "target").write_bytes(b"old")
    (folder / "link").symlink_to("target")
    write(client, folder / "link", b"new")
    assert (folder / "link").is_symlink()
    assert (folder / "target").read_bytes() == b"new"


def test_a_part_of_a_file(client: AgentClient, folder: Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    values = {"path": str(folder / "f"), "user": USER, "offset": 3, "length": 4}
    call = client._link.call(protocol.FILE_READ, values, "read")
    assert b"".join(event.data for event in call if hasattr(event, "data")) == b"3456"


def test_a_file_is_seen_whole_or_not_at_all(connect: Connect, folder: Path) -> None:
    """The client leaves in the middle of a transfer."""
    path = folder / "f"
    path.write_bytes(b"old")
    client = connect()
    values = {"path": str(path), "user": USER}
    call = client._link.call(protocol.FILE_WRITE, values, "write")
    call.write(b"new")
    other = connect()
    while not leftovers(folder):
        other.metrics()  # the agent's time to get there
    client.close()
    while leftovers(folder):
        other.metrics()
    assert path.read_bytes() == b"old"


def test_a_wrong_checksum_leaves_the_old_file(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"old")
    call = client._link.call(protocol.FILE_WRITE, {"path": str(path), "user": USER}, "write")
    call.write(b"new")
    call.end_input({"checksum": bytes(32)})
    with pytest.raises(RequestFailed) as caught:
        call.result(20)
    assert caught.value.code == protocol.CHECKSUM
    assert path.read_bytes() == b"old" and not leftovers(folder)


def test_a_source_that_breaks_leaves_the_old_file(client: AgentClient, folder: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError("the disk is on fire")
            return super().read(10)

    path = folder / "f"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="on fire"):
        client.write_file(str(path), Broken(bytes(1000)), user=USER)
    client.metrics()
    assert path.read_bytes() == b"old" and not leftovers(folder)


@needs_root
def test_a_full_disk_is_told_and_leaves_nothing(client: AgentClient, folder: Path) -> None:
    mount = folder / "small"
    mount.mkdir()
    assert os.system(f"mount -t tmpfs -o size=64k,mode=1777 tmpfs {mount}") == 0
    try:
        with pytest.raises(RequestFailed, match=f"{mount}/f: No space left") as caught:
            write(client, mount / "f", bytes(1 << 20))
        assert caught.value.code == "ENOSPC"
        client.metrics()
        assert os.listdir(mount) == []
        write(client, mount / "g", b"fits")
    finally:
        os.system(f"umount {mount}")


@needs_root
def test_each_request_acts_as_its_user(client: AgentClient, folder: Path) -> None:
    (folder / "secret").write_bytes(b"x")
    (folder / "secret").chmod(0o600)
    with pytest.raises(RequestFailed) as caught:
        read(client, folder / "secret", NOBODY)
    assert caught.value.code == "EACCES"
    with pytest.raises(RequestFailed):
        client.remove(str(folder / "secret"), user=NOBODY)  # the folder is sticky
    with pytest.raises(RequestFailed):
        write(client, Path("/etc/voidbox-test"), b"x", user=NOBODY)
    write(client, folder / "own", b"x", user=NOBODY)
    status = (folder / "own").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)
    assert read(client, folder / "secret") == b"x", "the agent itself is root again"


@needs_root
def test_a_file_keeps_its_owner_where_that_is_allowed(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"old")
    os.chown(path, 65534, 65533)
    write(client, path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)
    folder.chmod(0o777)
    os.chown(path, 0, 0)
    path.chmod(0o646)
    write(client, path, b"newer", user=NOBODY)
    assert (path.stat().st_uid, path.read_bytes()) == (65534, b"newer")


@needs_root
def test_a_file_in_a_folder_of_others_is_written_in_place(
    client: AgentClient, folder: Path
) -> None:
    inner = folder / "roots"
    inner.mkdir(mode=0o755)
    path = inner / "f"
    path.write_bytes(b"old and longer")
    path.chmod(0o666)
    before = path.stat()
    assert write(client, path, b"new", user=NOBODY, mode=0o600, mtime_ns=10**18) == 3
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_ino, after.st_uid, after.st_mode) == (before.st_ino, 0, before.st_mode)
    path.chmod(0o644)
    with pytest.raises(RequestFailed, match=f"{path}: Permission denied"):
        write(client, path, b"newer", user=NOBODY)
    assert path.read_bytes() == b"new" and not leftovers(folder)


@needs_root
def test_a_file_of_others_in_a_sticky_folder_is_written_in_place(
    client: AgentClient, folder: Path
) -> None:
    path = folder / "f"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write(client, path, b"new", user=NOBODY)
    assert (path.stat().st_uid, path.read_bytes()) == (0, b"new") and not leftovers(folder)


@needs_root
@pytest.mark.parametrize("flags", ["--bind", "-t tmpfs"])
def test_what_is_mounted_on_a_file_is_written_in_place(
    client: AgentClient, folder: Path, flags: str
) -> None:
    path, source = folder / "f", folder / "source"
    path.touch()
    if flags == "-t tmpfs":
        (folder / "other").mkdir()
        assert os.system(f"mount -t tmpfs tmpfs {folder / 'other'}") == 0
        source = folder / "other" / "source"
    source.write_bytes(b"old")
    assert os.system(f"mount --bind {source} {path}") == 0
    try:
        assert write(client, path, b"new") == 3
        assert source.read_bytes() == b"new" and not leftovers(folder)
    finally:
        os.system(f"umount {path}; umount {folder / 'other'} 2>/dev/null")


def test_a_file_of_the_kernels_is_written_where_it_is(client: AgentClient) -> None:
    path = Path("/proc/self/oom_score_adj")  # of the agent, which may raise its own
    score = read(client, path).strip()
    assert write(client, path, score) == len(score)
    assert read(client, path).strip() == score
    with pytest.raises(RequestFailed, match="oom_score_adj: Invalid argument"):
        write(client, path, b"no number")
    with pytest.raises(RequestFailed) as caught:
        write(client, path, bytes(100_000))
    assert caught.value.code == "EFBIG"


# --- what is not a file -------------------------------------------------------------------------


def test_what_is_no_regular_file_is_refused_at_once(client: AgentClient, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    for path, code in (
        (folder / "fifo", "EINVAL"),
        (folder, "EISDIR"),
        (Path("/dev/zero"), "EINVAL"),
        (folder / "none", "ENOENT"),
    ):
        with pytest.raises(RequestFailed) as caught:
            read(client, path)
        assert caught.value.code == code, path
    for path in (folder / "fifo", folder):
        with pytest.raises(RequestFailed):
            write(client, path, b"x")
    assert not leftovers(folder)


@pytest.mark.parametrize("path", ["", "relative", "/" + "x" * 5000, "/a\0b"])
def test_odd_paths_are_refused(client: AgentClient, path: str) -> None:
    with pytest.raises(RequestFailed, match="'path' must be"):
        client.stat(path, user=USER)


# --- folders ------------------------------------------------------------------------------------


def test_list_and_stat(client: AgentClient, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "inner").write_bytes(b"123")
    (folder / "link").symlink_to("sub")
    names = [entry["name"] for entry in client.list_files(str(folder), user=USER)]
    assert names == ["link", "sub"]
    deep = {entry["name"]: entry for entry in client.list_files(str(folder), depth=9, user=USER)}
    assert set(deep) == {"link", "sub", "sub/inner"}, "links are not entered"
    assert deep["link"]["type"] == "link" and deep["link"]["target"] == "sub"
    assert deep["sub/inner"]["size"] == 3
    assert client.stat(str(folder / "link"), user=USER)["type"] == "folder"
    assert client.stat(str(folder / "link"), follow=False, user=USER)["type"] == "link"


def test_a_folder_of_many_long_names(client: AgentClient, folder: Path) -> None:
    names = {f"{number:05}" + "ä" * 120 for number in range(3000)}
    for name in names:
        (folder / name).touch()
    assert {entry["name"] for entry in client.list_files(str(folder), user=USER)} == names


def test_names_that_are_no_utf8(client: AgentClient, folder: Path) -> None:
    path = os.fsencode(folder) + b"/\xff\xfe"
    with open(path, "wb") as file:
        file.write(b"odd")
    (entry,) = client.list_files(str(folder), user=USER)
    assert os.fsencode(entry["name"]) == b"\xff\xfe"
    assert read(client, folder / entry["name"]) == b"odd"


def test_what_cannot_be_listed_is_told(client: AgentClient, folder: Path) -> None:
    """A path that is too long is an error that also root gets."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    *readable, last = client.list_files(str(folder), depth=99, user=USER)
    assert all(entry["type"] == "folder" and "error" not in entry for entry in readable)
    assert last["error"] == "File name too long"
    shutil.rmtree(folder / ("d" * 250))


@needs_root
def test_a_folder_that_cannot_be_read_is_told(client: AgentClient, folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    (folder / "names only").mkdir()
    (folder / "names only" / "f").touch()
    (folder / "names only").chmod(0o744)
    flat = {entry["name"]: entry for entry in client.list_files(str(folder), user=NOBODY)}
    assert not any("error" in entry for entry in flat.values()), "it is not entered"
    deep = {entry["name"]: entry for entry in client.list_files(str(folder), depth=9, user=NOBODY)}
    assert deep["closed"]["type"] == "folder" and deep["closed"]["error"] == "Permission denied"
    assert deep["names only/f"]["type"] == "unknown"
    assert deep["names only/f"]["error"] == "Permission denied"


def test_a_file_that_changes_while_it_is_read(client: AgentClient, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(bytes(4 << 20))  # more than goes without credit
    for does_change in (False, True):
        call = client._link.call(protocol.FILE_READ, {"path": str(path), "user": USER}, "read")
        assert call.next(20) is not None
        if does_change:
            os.utime(path, ns=(0, 5))
        result = call.result(20)
        assert (result["end_mtime_ns"] == 5) is does_change
        assert (result["end_mtime_ns"] != result["mtime_ns"]) is does_change


def test_a_folder_gets_its_mode_and_time_at_the_end(client: AgentClient, folder: Path) -> None:
    path = folder / "d"
    for mode in (0o775, 0o700):
        values = {"path": str(path), "mode": mode, "mtime_ns": 1_500_000_000_123_456_789}
        client.request(protocol.FILE_MKDIR, {**values, "user": USER}, "finish")
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.stat().st_mtime_ns == 1_500_000_000_123_456_789
    (folder / "link").symlink_to("d")
    values = {"path": str(folder / "link"), "mode": 0o777, "mtime_ns": 1, "user": USER}
    with pytest.raises(RequestFailed):
        client.request(protocol.FILE_MKDIR, values, "finish")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["d/.", "d/./", "d/e/.."])
def test_a_folder_without_a_name_of_its_own_is_left_as_it_is(
    client: AgentClient, folder: Path, name: str
) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    with pytest.raises(RequestFailed, match="own name") as caught:
        client.remove(f"{folder}/{name}", recursive=True, user=USER)
    assert caught.value.code == "EINVAL" and (folder / "d" / "e").exists()


def test_make_rename_remove(client: AgentClient, folder: Path) -> None:
    one, two = folder / "x" / "one", folder / "x" / "two"
    assert client.make_dir(str(one), user=USER) is True
    assert client.make_dir(str(one), user=USER) is False
    with pytest.raises(RequestFailed) as caught:
        client.make_dir(str(one), parents=False, user=USER)
    assert caught.value.code == "EEXIST"
    (one / "file").touch()
    client.rename(str(one), str(two), user=USER)
    assert (two / "file").exists() and not one.exists()
    with pytest.raises(RequestFailed) as caught:
        client.remove(str(two), user=USER)
    assert caught.value.code == "ENOTEMPTY"
    client.remove(str(folder / "x"), recursive=True, user=USER)
    assert not (folder / "x").exists()
    with pytest.raises(RequestFailed):
        client.remove("/", recursive=True, user=USER)


def test_removing_a_tree_does_not_follow_links_nor_hold_others_up(
    client: AgentClient, folder: Path
) -> None:
    (folder / "kept").mkdir()
    (folder / "kept" / "file").touch()
    tree = folder / "tree"
    for number in range(20):
        (tree / str(number)).mkdir(parents=True)
        for name in range(50):
            (tree / str(number) / str(name)).touch()
    (tree / "link").symlink_to(folder / "kept")
    client.remove(str(tree), recursive=True, user=USER)
    assert not tree.exists() and (folder / "kept" / "file").exists()


# --- watching -----------------------------------------------------------------------------------


def changes(watch: Any, last: str) -> list[tuple[str, str]]:
    """What is told until the file `last` is created."""
    found = []
    while True:
        event = watch.next(20)
        assert event is not None
        if event["name"] == last and event["kind"] == "create":
            return found
        found.append((event["kind"], event["name"]))


def test_watch(client: AgentClient, folder: Path) -> None:
    watch = client.watch(str(folder), user=USER)
    (folder / "f").write_bytes(b"x")
    (folder / "f").rename(folder / "g")
    (folder / "g").unlink()
    (folder / "last").touch()
    found = changes(watch, "last")
    assert [c for c in found if c[0] not in ("write", "chmod")] == [
        ("create", "f"),
        ("rename", "f"),
        ("create", "g"),
        ("remove", "g"),
    ]
    assert ("write", "f") in found
    watch.close()


def test_a_recursive_watch_sees_what_a_new_folder_brings(client: AgentClient, folder: Path) -> None:
    watch = client.watch(str(folder), recursive=True, user=USER)
    for number in range(20):
        path = folder / f"d{number}" / "e"
        path.mkdir(parents=True)
        (path / "f").touch()
    (folder / "last").touch()
    found = changes(watch, "last")
    for number in range(20):
        assert ("create", f"d{number}/e/f") in found
    # A folder that got another name is told under the new one.
    (folder / "d0").rename(folder / "moved")
    (folder / "between").touch()
    changes(watch, "between")
    (folder / "moved" / "e" / "g").touch()
    (folder / "end").touch()
    found = changes(watch, "end")
    assert ("create", "moved/e/g") in found
    assert not [c for c in found if c[1].startswith("d0")]
    watch.close()


def test_a_watch_ends_with_its_folder(client: AgentClient, folder: Path) -> None:
    (folder / "sub").mkdir()
    watch = client.watch(str(folder / "sub"), user=USER)
    (folder / "sub").rmdir()
    assert [event["kind"] for event in watch] in ([], ["remove"])


def test_a_watcher_that_does_not_read_is_told_that_it_missed_something(
    client: AgentClient, folder: Path
) -> None:
    watch = client.watch(str(folder), user=USER)
    path = folder / "f"
    for number in range(16_000):
        path.touch()
        path.unlink()
        if not number % 500:
            client.metrics()  # the agent takes them from the kernel
    client.metrics()
    kinds = set()
    while "overflow" not in kinds:
        event = watch.next(20)
        assert event is not None
        kinds.add(event["kind"])
    watch.close()


def test_watching_what_is_no_folder(client: AgentClient, folder: Path) -> None:
    (folder / "f").touch()
    for name, code in (("f", "ENOTDIR"), ("none", "ENOENT")):
        with pytest.raises(RequestFailed) as caught:
            client.watch(str(folder / name), user=USER)
        assert caught.value.code == code


def make_deep(folder: Path, depth: int) -> None:
    """Folders within folders, deeper than Python's recursion goes."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.mark.slow
def test_a_deep_tree_is_listed_watched_and_removed(client: AgentClient, folder: Path) -> None:
    for number in range(300):  # more than one pass before it gets deep
        (folder / f"a{number:03}").touch()
    make_deep(folder, 1500)
    listed = list(client.list_files(str(folder), depth=9999, user=USER))
    assert len(listed) == 1800 and listed[-1]["name"] == "/".join(["d"] * 1500)
    watch = client.watch(str(folder), recursive=True, user=USER)
    watch.close()
    client.remove(str(folder), recursive=True, user=USER)
    assert not folder.exists()


@pytest.mark.parametrize("path", ["/", "//", "/.", "/usr/..", "/./../."])
def test_the_root_is_not_removed(client: AgentClient, path: str) -> None:
    with pytest.raises(RequestFailed, match="not to be removed"):
        client.remove(path, user=USER)
