"""Transfers of files that change meanwhile, or are not what they seem."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.sandbox.conftest import Box, in_event_loop
from tests.unit.sdk.test_files import PIECE, leftovers, small_pieces
from voidbox.agent import protocol
from voidbox.agent.call import RequestFailed
from voidbox.errors import ConfigError, HostError
from voidbox.sandbox.transfer import pieces, trees
from voidbox.sandbox.transfer.host_tree import HostFile, HostFolder
from voidbox.sandbox.transfer.steady import Changed

__all__ = ["small_pieces"]


def replace(path: Path, content: bytes) -> None:
    new = path.parent / "new"
    new.write_bytes(content)
    new.rename(path)


def rewrite(path: Path, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path)  # the kernel's clock ticks slowly


def once(action: Callable[[], None], at: int = 0) -> Callable[[int, int], None]:
    """A progress callback that does something once, when so many bytes are done."""
    is_done = False

    def tell(done: int, total: int) -> None:
        nonlocal is_done
        if not is_done and done >= at:
            is_done = True
            action()

    return tell


# --- from the guest -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [replace, rewrite])
@pytest.mark.parametrize("at", [0, PIECE + 1])
@pytest.mark.parametrize("size", [10, 3 * PIECE, 4 * PIECE + 5])
@in_event_loop
async def test_a_download_is_no_mixture_and_not_cut(
    box: Box,
    guest: Path,
    tmp_path: Path,
    small_pieces: None,
    change: Callable[[Path, bytes], None],
    at: int,
    size: int,
) -> None:
    path = guest / "d" / "f"
    path.parent.mkdir()
    new = os.urandom(size)
    for source, target in (("d/f", tmp_path / "out"), ("d", tmp_path / "all")):
        path.write_bytes(bytes(3 * PIECE))
        tell = once(lambda: change(path, new), at)
        result = await box.files.download(source, target, progress=tell)
        got = target / "f" if source == "d" else target
        assert got.read_bytes() == new
        assert (result.files, result.bytes, result.skipped) == (1, size, ())


@in_event_loop
async def test_a_small_file_that_grew_after_it_was_listed(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    (guest / "d").mkdir()
    for name in ("grown", "same", "more"):
        (guest / "d" / name).write_bytes(b"old")

    def grow() -> None:
        (guest / "d" / "grown").write_bytes(bytes(200_000))
        (guest / "d" / "more").write_bytes(bytes(1000))

    result = await box.files.download("d", tmp_path / "out", progress=once(grow))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"grown": 200_000, "same": 3, "more": 1000}
    assert (result.files, result.bytes) == (3, 201_003)


@in_event_loop
async def test_a_log_is_copied_as_long_as_it_was(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None
) -> None:
    old = os.urandom(3 * PIECE)
    (guest / "log").write_bytes(old)

    def grow(done: int, total: int) -> None:
        with open(guest / "log", "ab") as file:
            file.write(b"a line\n")

    result = await box.files.download("log", tmp_path / "log", progress=grow)
    got = (tmp_path / "log").read_bytes()
    assert got.startswith(old) and set(got[len(old) :]) <= set(b"a line\n")
    assert result.bytes == len(got)


@in_event_loop
async def test_a_file_that_is_written_to_all_the_time(
    box: Box, guest: Path, tmp_path: Path, small_pieces: None
) -> None:
    (guest / "d").mkdir()
    (guest / "d" / "f").write_bytes(bytes(3 * PIECE))
    (guest / "d" / "good").write_bytes(b"good")
    ticks = 0

    def disturb(done: int, total: int) -> None:
        nonlocal ticks
        ticks += 1
        os.utime(guest / "d" / "f", ns=(0, ticks))

    with pytest.raises(Changed, match="d/f: it changed again and again"):
        await box.files.download("d/f", tmp_path / "out", progress=disturb)
    result = await box.files.download("d", tmp_path / "all", progress=disturb)
    assert result.skipped == ("f: it changed again and again",) and result.errors == 1
    assert os.listdir(tmp_path / "all") == ["good"] and not (tmp_path / "out").exists()
    assert result.bytes == 4


@in_event_loop
async def test_files_of_the_kernels(box: Box, tmp_path: Path) -> None:
    await box.files.download("/proc/meminfo", tmp_path / "meminfo")
    assert (tmp_path / "meminfo").read_text().startswith("MemTotal:")
    await box.files.download("/proc/self/net", tmp_path / "net")
    assert (tmp_path / "net" / "dev").read_text().startswith("Inter-|")
    online = Path("/sys/devices/system/cpu/online")
    await box.files.download(str(online), tmp_path / "online")
    assert (tmp_path / "online").read_bytes() == online.read_bytes()


@in_event_loop
async def test_what_cannot_be_read_is_left_out_and_said(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    (guest / "d" / "sub").mkdir(parents=True)
    for name in ("fine", "fifo", "gone", "big"):
        (guest / "d" / name).write_bytes(bytes(100_000 if name == "big" else 10))

    def spoil() -> None:
        for name in ("fifo", "gone", "big"):
            (guest / "d" / name).unlink()
        os.mkfifo(guest / "d" / "fifo")
        (guest / "d" / "big").mkdir()

    result = await box.files.download("d", tmp_path / "out", progress=once(spoil))
    assert sorted(result.skipped) == [
        "big: Is a directory", "fifo: not a regular file", "gone: it was removed meanwhile",
    ]  # fmt: skip
    assert result.files == 1 and result.errors == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["fine", "sub"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root's agent acts as others: sudo")
@in_event_loop
async def test_folders_that_cannot_be_read_are_said(box: Box, guest: Path, tmp_path: Path) -> None:
    for path in (guest, *guest.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o011)
    guest.chmod(0o755)
    (guest / "closed").mkdir(mode=0o700)
    (guest / "closed" / "f").touch()
    (guest / "secret").touch(mode=0o600)
    result = await box.files.download(".", tmp_path / "out", user="65534")
    assert sorted(result.skipped) == ["closed: Permission denied", "secret: Permission denied"]
    assert result.errors == 2
    info = {info.name: info for info in await box.files.list(".", depth=2, user="65534")}
    assert info["closed"].error == "Permission denied" and not info["secret"].error


@pytest.mark.parametrize("size", [4, 3 * PIECE])
@in_event_loop
async def test_a_cancelled_download_ends_after_its_thread(
    box: Box,
    guest: Path,
    tmp_path: Path,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    writes, goes_on = threading.Event(), threading.Event()
    failures: list[OSError] = []
    real = HostFile.write

    def slow(file: HostFile, data: bytes) -> int:
        writes.set()
        goes_on.wait()
        try:
            return real(file, data)
        except OSError as error:
            failures.append(error)
            raise

    monkeypatch.setattr(HostFile, "write", slow)
    (guest / "d").mkdir()
    (guest / "d" / "f").write_bytes(bytes(size))
    task = asyncio.create_task(box.files.download("d", tmp_path / "out"))
    await asyncio.to_thread(writes.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    was_done = task.done()
    goes_on.set()
    assert not was_done
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not failures and not leftovers(tmp_path)


# --- to the guest -------------------------------------------------------------------------------


@in_event_loop
async def test_an_upload_takes_files_as_they_are_when_they_are_read(
    box: Box, guest: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("grown", "replaced", "big"):
        (tree / name).write_bytes(bytes(100_000 if name == "big" else 10))

    def change() -> None:
        (tree / "grown").write_bytes(bytes(100_000))
        for name in ("replaced", "big"):
            replace(tree / name, name.encode())
            (tree / name).chmod(0o640)
            os.utime(tree / name, ns=(0, 1_600_000_000_123_456_789))

    result = await box.files.upload(tree, "tree", progress=once(change))
    assert (guest / "tree" / "grown").stat().st_size == 100_000
    for name in ("replaced", "big"):
        copy = guest / "tree" / name
        assert copy.read_bytes() == name.encode() and copy.stat().st_mode & 0o777 == 0o640
        assert copy.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (result.files, result.bytes) == (3, 100_011)


@in_event_loop
async def test_files_of_the_hosts_kernel(box: Box, guest: Path) -> None:
    await box.files.upload("/proc/self/net", "net")
    assert (guest / "net" / "dev").read_text().startswith("Inter-|")


def test_a_small_file_that_comes_in_little_pieces(tmp_path: Path) -> None:
    """As those of the kernel's do, whose end is not the first short read."""

    class Slow(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(7)

    (tmp_path / "f").write_bytes(b"0123456789")
    with Slow(tmp_path / "f") as file:
        assert trees._read_small(file) == b"0123456789"


@in_event_loop
async def test_a_source_that_has_nothing_yet_is_not_at_its_end(box: Box, guest: Path) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, b"half")
    with open(reader, "rb", buffering=0) as source:
        with pytest.raises(ConfigError, match="nothing yet"):
            await box.files.write("f", source)
        os.write(writer, b"whole")
        os.close(writer)
        assert await box.files.write("f", source) == 5
    with pytest.raises(ConfigError, match="no bytes"):
        await box.files.write("f", io.StringIO("text"))  # type: ignore[arg-type]
    assert (guest / "f").read_bytes() == b"whole"


@in_event_loop
async def test_a_source_is_sent_again_from_where_it_began(
    box: Box, guest: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, forgets = pieces._send_piece, True

    async def forget(agent, values, *rest):  # type: ignore[no-untyped-def]
        nonlocal forgets
        if values.get("offset") == PIECE and forgets:
            forgets = False
            raise RequestFailed(protocol.GONE, "forgotten")
        return await real(agent, values, *rest)

    monkeypatch.setattr(pieces, "_send_piece", forget)
    content = os.urandom(3 * PIECE)
    source = io.BytesIO(b"header" + content)
    source.seek(6)
    assert await box.files.write("f", source) == 3 * PIECE
    assert not forgets and (guest / "f").read_bytes() == content


# --- both ways ----------------------------------------------------------------------------------


@in_event_loop
async def test_folders_keep_permissions_and_times(box: Box, guest: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "f").write_text("x")
    (tree / "a" / "l").symlink_to("b")
    modes = {"a/b": 0o755, "a": 0o775, ".": 0o750}
    for number, (name, mode) in enumerate(modes.items()):
        (tree / name).chmod(mode)
        os.utime(tree / name, ns=(0, 1_600_000_000_123_456_789 + number))
    umask = os.umask(0)
    try:
        await box.files.upload(tree, "tree")
        await box.files.download("tree", tmp_path / "back")
    finally:
        os.umask(umask)
    for copy in (guest / "tree", tmp_path / "back"):
        for number, (name, mode) in enumerate(modes.items()):
            status = (copy / name).stat()
            assert status.st_mode & 0o7777 == mode
            assert status.st_mtime_ns == 1_600_000_000_123_456_789 + number
    # Those that there were already keep what they have.
    for copy in (guest / "tree", tmp_path / "back"):
        for name in modes:
            (copy / name).chmod(0o711)
    await box.files.upload(tree, "tree")
    await box.files.download("tree", tmp_path / "back")
    for copy in (guest / "tree", tmp_path / "back"):
        assert {(copy / name).stat().st_mode & 0o777 for name in modes} == {0o711}


@in_event_loop
async def test_progress_by_a_coroutine_function(box: Box, guest: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(1_000_000))
    told: list[tuple[int, int]] = []

    async def tell(done: int, total: int) -> None:
        await asyncio.sleep(0.001)
        told.append((done, total))

    await box.files.upload(tmp_path / "source", "up", progress=tell)
    assert told[-1] == (1_000_000, 1_000_000) and told == sorted(told)

    async def fail(done: int, total: int) -> None:
        raise ValueError("enough")

    for attempt in (
        lambda: box.files.upload(tmp_path / "source", "other", progress=fail),
        lambda: box.files.download("up", tmp_path / "back", progress=fail),
    ):
        with pytest.raises(ValueError, match="enough"):
            await attempt()


def test_a_file_that_is_replaced_is_on_the_disk_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = os.rename
    monkeypatch.setattr("os.fsync", lambda fd: done.append("fsync"))
    monkeypatch.setattr("os.rename", lambda *a, **k: (done.append("rename"), real(*a, **k)))
    with HostFolder(str(tmp_path)) as folder:
        folder.write_file(("f",), b"old", 0o644, 0)
        assert done == ["rename"], "a new one has nothing to lose"
        folder.write_file(("f",), b"new", 0o644, 0)
    assert done == ["rename", "fsync", "rename"]


def test_an_error_of_the_disk_is_told(tmp_path: Path) -> None:
    with HostFolder(str(tmp_path)) as folder, pytest.raises(HostError, match="cannot write"):
        folder.finish_folder(("none",), 0o755, 0)
